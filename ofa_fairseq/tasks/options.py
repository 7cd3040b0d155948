"""Options of every task, under their released names."""

from dataclasses import dataclass, field
from typing import Optional

from fairseq.dataclass import FairseqDataclass


@dataclass
class OFATaskConfig(FairseqDataclass):
    """Options of every task, under their released names."""

    data: Optional[str] = field(
        default=None,
        metadata={
            "help": "comma-separated TSV files: the last one is for validation or testing, training takes the others"
            " in turn, one an epoch"
        },
    )
    selected_cols: Optional[str] = field(
        default=None,
        metadata={"help": "comma-separated columns of the TSV files, from 0, in the task's order"},
    )
    bpe: Optional[str] = field(
        default=None, metadata={"help": "gpt2 or sentencepiece (default: what --bpe-dir holds)"}
    )
    bpe_dir: Optional[str] = field(
        default=None, metadata={"help": "folder with dict.txt and the files of the subword model"}
    )
    sentencepiece_model: str = field(  # fairseq's own option of this name takes no None
        default="", metadata={"help": "sentencepiece model, if it is not in --bpe-dir"}
    )
    max_source_positions: int = field(default=1024, metadata={"help": "longest text source, in tokens"})
    max_target_positions: int = field(default=1024, metadata={"help": "longest target, in tokens"})
    max_src_length: int = field(default=128, metadata={"help": "longest source text, in words"})
    max_tgt_length: int = field(default=30, metadata={"help": "longest target text"})
    code_dict_size: int = field(default=8192, metadata={"help": "number of image codes in the vocabulary"})
    patch_image_size: int = field(default=480, metadata={"help": "side of the square model input, in pixels"})
    orig_patch_image_size: int = field(
        default=256, metadata={"help": "side of the pictures that --interpolate-position starts from"}
    )
    num_bins: int = field(default=1000, metadata={"help": "number of coordinate bins in the vocabulary"})
    rows_per_picture: int = field(
        default=1,
        metadata={
            "help": "shuffle training rows in blocks of so many: consecutive rows of one picture share its stem pass"
        },
    )
    imagenet_default_mean_and_std: bool = field(
        default=False, metadata={"help": "normalise pictures with ImageNet's mean and deviation, not 0.5"}
    )
    constraint_range: Optional[str] = field(
        default=None, metadata={"help": "start,end: output tokens outside this range of ids are impossible"}
    )
    strict_data: bool = field(default=False, metadata={"help": "stop at the first row that can't be used"})
    bad_rows: Optional[str] = field(
        default=None,
        metadata={
            "help": "list of skipped rows (default: bad_rows.tsv in --save-dir, of fairseq-generate in --results-path"
            " or the current folder)"
        },
    )
    eval_args: Optional[str] = field(
        default="{}",
        metadata={
            "help": 'JSON with generation options for validation, e.g. \'{"beam": 5, "max_len_b": 16}\''
        },
    )
    eval_print_samples: bool = field(
        default=False, metadata={"help": "log an output and its references for each validation batch"}
    )
    scst: bool = field(
        default=False,
        metadata={"help": "self-critical training: rows may have several references (scst_reward_criterion)"},
    )
    scst_args: Optional[str] = field(
        default="{}",
        metadata={
            "help": "JSON with generation options of self-critical training: beam is the number of samples; they are"
            ' what beam search finds, or drawn with "sampling": true (and sampling_topk or sampling_topp)'
        },
    )
    ema_eval: bool = field(
        default=False, metadata={"help": "fairseq-generate: evaluate the checkpoint's averaged weights (EMA)"}
    )
    zero_shot: bool = field(
        default=False,
        metadata={
            "help": "fairseq-generate: take task options from the command line, none from the checkpoint"
        },
    )


# Where a run's files are, and what was meant for one run only, as is every `eval_` option: never taken over from a
# checkpoint.
NEVER_ADOPTED = {
    *("_name", "data", "strict_data", "bad_rows", "ema_eval", "zero_shot", "scst", "scst_args"),
    *("val_inference_type", "beam_search_vqa_eval", "valid_batch_size", "candidate_memory", "candidates"),
    *("gen_images_path", "guidance", "sampling_times", "rank_by", "clip_model_path", "caption_model_path"),
    *("similar_codes", "clip_model"),
}
# Released --eval-args also hold this; it is what our generator always does.
RELEASED_EVAL_OPTIONS = {"stop_on_max_len"}
# Files that a checkpoint names: it may be used from another folder than the one it was trained in.
PATH_OPTIONS = (
    *("bpe_dir", "sentencepiece_model", "ans2label_file", "answers"),
    *("vqgan_model_path", "vqgan_config_path", "clip_model_path", "caption_model_path"),
)
