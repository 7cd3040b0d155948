"""What all OFA tasks share: vocabulary, data, generation and validation.

A task adds its instruction, what its columns are called, which answers are allowed, and its metric: see `caption.py`
for a whole one. The way of a row: TSV row -> `example` -> collate -> model -> criterion or generator -> `decode` ->
metric.
"""

import json
import logging
import math
import os
from argparse import Namespace
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Optional

import torch
from fairseq import checkpoint_utils, metrics
from fairseq.data import Dictionary
from fairseq.dataclass import FairseqDataclass
from fairseq.dataclass.configs import GenerationConfig
from fairseq.tasks import TASK_DATACLASS_REGISTRY, FairseqTask
from omegaconf import DictConfig, open_dict
from torch import Tensor, nn

from ..data.bad_rows import BadRows
from ..data.example import DEFAULT_BATCH_SIZE, Batch, Example, ExampleDataset
from ..data.image_transforms import SquareResize
from ..data.images import decode_image
from ..data.tsv import TsvFile, parse_columns
from ..generation.answer_space import AnswerSpace, TokenRange
from ..generation.generator import OFASequenceGenerator, diverse_beam_search
from ..instruction import RELEASED, Instruction, Value, parse
from ..optim import training_length
from ..vocabulary import Vocabulary

logger = logging.getLogger(__name__)


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
NEVER_ADOPTED = {"_name", "data", "strict_data", "bad_rows", "ema_eval", "zero_shot"}
# Released --eval-args also hold this; it is what our generator always does.
RELEASED_EVAL_OPTIONS = {"stop_on_max_len"}
# Files that a checkpoint names: it may be used from another folder than the one it was trained in.
PATH_OPTIONS = ("bpe_dir", "sentencepiece_model")


class OFATask(FairseqTask):
    """Base of the tasks.

    Class attributes that a task sets:
        instruction_name: its row in `instruction.RELEASED`.
        columns: what the selected columns hold, in order.
    """

    instruction_name: str
    columns: Sequence[str]
    cfg: OFATaskConfig

    def __init__(self, cfg: OFATaskConfig) -> None:
        super().__init__(cfg)
        self.root = _root_of(cfg)
        self.dictionary = Dictionary()
        self._vocabulary: Vocabulary | None = None
        self._generators: dict[int, OFASequenceGenerator] = {}
        self.num_updates = 0
        self.instruction = self.build_instruction()
        self.instruction.check(self.columns)
        self.bad_rows = BadRows(self._bad_rows_path(), cfg.strict_data)
        self._eval_options()  # a mistake in them should not wait for the first validation

    @classmethod
    def setup_task(cls, cfg: Any, **kwargs: Any) -> "OFATask":
        """Called by fairseq. The vocabulary is read later, since a checkpoint may say where it is."""
        adjust_run(_root_of(cfg))
        make_paths_absolute(cfg)
        return cls(cfg)

    def __getstate__(self) -> dict[str, Any]:
        """For spawned data workers: without what only the main process has."""
        own: dict[str, Any] = {
            "state": None,
            "datasets": {},
            "dataset_to_epoch_iter": {},
            "_generators": {},
            "root": None,
        }
        return vars(self) | own

    # -- what a task defines --------------------------------------------------------------------------

    def build_instruction(self) -> Instruction:
        """The task's instruction; overridden where options choose between several."""
        return parse(RELEASED[self.instruction_name])

    def example(self, row: dict[str, str], split: str, root: Path) -> Example:
        """Make an example of a row, given by column name; `root` is the folder of its file.

        Raises:
            ValueError: for a row that can't be used; the message is the reason.
        """
        raise NotImplementedError

    def answer_space(self) -> AnswerSpace | None:
        """What outputs may be (None: anything)."""
        if self.cfg.constraint_range is None:
            return None
        return TokenRange.parse(self.cfg.constraint_range, len(self.dictionary))

    # -- vocabulary -----------------------------------------------------------------------------------

    @property
    def vocabulary(self) -> Vocabulary:
        """Read on first use, into the dictionary that fairseq may already hold."""
        if self._vocabulary is None:
            cfg = self.cfg
            self._vocabulary = Vocabulary.load(
                cfg.bpe_dir,
                cfg.bpe,
                cfg.code_dict_size,
                cfg.num_bins,
                self.dictionary,
                cfg.sentencepiece_model or None,
            )
            logger.info("vocabulary: %d entries", len(self._vocabulary))
        return self._vocabulary

    @property
    def source_dictionary(self) -> Dictionary:
        """fairseq's dictionary; source and target share one."""
        return self.dictionary

    @property
    def target_dictionary(self) -> Dictionary:
        """See `source_dictionary`."""
        return self.dictionary

    def build_bpe(self, args: Any) -> Any:
        """The vocabulary's own encoder and decoder, for fairseq-generate; its `--bpe` options are not needed."""
        return self.vocabulary.bpe

    def build_tokenizer(self, args: Any) -> None:
        """Nothing is tokenized before the subword model."""
        return None

    # -- model ----------------------------------------------------------------------------------------

    def build_model(self, cfg: Any, from_checkpoint: bool = False) -> nn.Module:
        """Build the model; from a checkpoint, first take over the options that its task was trained with."""
        if from_checkpoint and not self.cfg.zero_shot:
            saved = cfg if isinstance(cfg, Namespace) else getattr(_root_of(cfg), "task", None)
            self._adopt_options(saved)
        assert len(self.vocabulary) == len(self.dictionary)
        with open_dict(cfg) if isinstance(cfg, DictConfig) else nullcontext():
            for name in ("max_source_positions", "max_target_positions", "orig_patch_image_size"):
                if getattr(cfg, name, None) is None:  # YAML with a preset's name has no fields of its own
                    setattr(cfg, name, getattr(self.cfg, name))
        return super().build_model(cfg, from_checkpoint)

    def _adopt_options(self, saved: Any) -> None:
        """Options left at their defaults get the values they had in training (or in --model-overrides)."""
        changed = {}
        defaults = TASK_DATACLASS_REGISTRY[self.cfg._name]()
        for f in fields(defaults):
            value = getattr(saved, f.name, None)
            own = getattr(self.cfg, f.name)
            never = f.name in NEVER_ADOPTED or f.name.startswith("eval_")
            if never or value is None or own != getattr(defaults, f.name) or own == value:
                continue
            changed[f.name] = value
            setattr(self.cfg, f.name, value)
        if changed:
            logger.info("options from the checkpoint: %s", changed)
            self.instruction = self.build_instruction()

    # -- data -----------------------------------------------------------------------------------------

    def has_sharded_data(self, split: str) -> bool:
        """Several training files: fairseq then loads one an epoch."""
        return split == "train" and len(self._files("train")) > 1

    def _files(self, split: str) -> list[str]:
        """The files of a split: all but the last for training, else the last.

        Raises:
            ValueError: if there are too few.
        """
        files = [f for f in (self.cfg.data or "").split(",") if f]
        if not files or (split == "train" and len(files) < 2):
            raise ValueError(
                f"data {self.cfg.data!r}: expected comma-separated TSV files, the last one for validation"
                " (train.tsv,valid.tsv); a single file only for fairseq-generate"
            )
        return files[:-1] if split == "train" else files[-1:]

    def _open(self, path: str) -> TsvFile:
        selected = parse_columns(self.cfg.selected_cols)
        rows = TsvFile(path, selected)
        count = rows.num_columns if selected is None else len(selected)
        if count != len(self.columns):
            raise ValueError(
                f"--selected-cols {self.cfg.selected_cols}: task {self.cfg._name} needs {len(self.columns)} columns"
                f" ({', '.join(self.columns)}), got {count} of the {rows.num_columns} in {path}"
            )
        return rows

    def load_dataset(
        self, split: str, combine: bool = False, task_cfg: Any = None, epoch: int = 1, **kwargs: Any
    ) -> None:
        """Open the file of a split (and epoch)."""
        files = self._files(split)
        rows = self._open(files[(epoch - 1) % len(files)])
        self.prepare_split(split, rows)
        self.datasets[split] = ExampleDataset(
            rows,
            RowBuilder(self, split, rows.path.parent),
            self.dictionary.pad(),
            shuffle=split == "train",
            bad_rows=self.bad_rows,
        )

    def prepare_split(self, split: str, rows: TsvFile) -> None:
        """Hook: look at a split's file before it is read."""

    def _bad_rows_path(self) -> Path:
        if self.cfg.bad_rows:
            return Path(self.cfg.bad_rows)
        folder = None
        if self.root is not None:
            generating = self.root.common_eval.path is not None
            folder = self.root.common_eval.results_path if generating else self.root.checkpoint.save_dir
        return Path(folder or ".") / "bad_rows.tsv"

    def get_batch_iterator(self, dataset: ExampleDataset, *args: Any, **kwargs: Any) -> Any:
        """fairseq's iterator; for training, also tells the schedule how long an epoch is."""
        iterator = super().get_batch_iterator(dataset, *args, **kwargs)
        if dataset.shuffle:
            size = kwargs.get("max_sentences") or DEFAULT_BATCH_SIZE
            shards = kwargs.get("num_shards", 1)
            # fairseq leaves out the last batch of each process then, full or not.
            left_out = int(kwargs.get("skip_remainder_batch", False))
            rows = [len(self._open(file)) for file in self._files("train")]
            training_length.announce([math.ceil(math.ceil(n / size) / shards) - left_out for n in rows])
        return iterator

    def make_example(
        self,
        id: str,
        values: Mapping[str, Value],
        picture: str | None,
        root: Path,
        **more: Any,
    ) -> Example:
        """An example from the values of the instruction's slots.

        Args:
            id: the row's name in outputs.
            values: for `Instruction.encode_source` and `encode_target`.
            picture: base64 text or path, or None.
            root: folder that a relative path starts from.
            more: other fields of `Example`.

        Raises:
            ValueError: if source or target is longer than its positions, or the picture can't be used.
        """
        v = self.vocabulary
        source = [v.bos, *self.instruction.encode_source(values, v), v.eos]
        target = self.instruction.encode_target(values, v)
        for name, tokens, limit in (
            ("source", source, self.cfg.max_source_positions),
            ("target", target, self.cfg.max_target_positions - 1),
        ):
            if len(tokens) > limit:
                raise ValueError(f"the {name} has {len(tokens)} tokens, at most {limit} fit")
        return Example(
            id=id,
            source=torch.tensor(source),
            target=torch.tensor([*target, v.eos]),
            prev_output=torch.tensor([v.bos, *target]),
            image=None if picture is None else self.transform(decode_image(picture, root)),
            **more,
        )

    @property
    def transform(self) -> SquareResize:
        """From a picture to the model's input."""
        return SquareResize(self.cfg.patch_image_size, self.cfg.imagenet_default_mean_and_std)

    def max_positions(self) -> tuple[int, int]:
        """Longest source and target, in tokens."""
        return self.cfg.max_source_positions, self.cfg.max_target_positions

    # -- training and validation ----------------------------------------------------------------------

    def train_step(
        self,
        sample: Batch,
        model: Any,
        criterion: Any,
        optimizer: Any,
        update_num: int,
        ignore_grad: bool = False,
        **extra: Any,
    ) -> tuple[Tensor, Any, dict[str, Any]]:
        """As stock's, but criterions see the number of updates (drop-worst starts late)."""
        self.num_updates = update_num + 1
        model.train()
        model.set_num_updates(update_num)
        device = sample["target"].device.type
        with torch.autocast(device, enabled=self._autocast()):
            loss, sample_size, logging_output = criterion(model, sample, update_num=update_num)
        if ignore_grad:
            loss = loss * 0
        optimizer.backward(loss)
        logging_output["skipped_rows"] = sample.get("skipped_rows", 0)
        return loss, sample_size, logging_output

    def _autocast(self) -> bool:
        return self.root is not None and bool(self.root.common.amp)

    def valid_step(
        self, sample: Batch, model: nn.Module, criterion: nn.Module, ema_model: nn.Module | None = None
    ) -> tuple[Tensor, Any, dict[str, Any]]:
        """Loss, and whatever `validate` adds; with `--uses-ema` on the averaged weights."""
        model = model if ema_model is None else ema_model
        model.eval()
        with torch.no_grad():
            loss, sample_size, logging_output = criterion(model, sample)
            logging_output["skipped_rows"] = sample.get("skipped_rows", 0)
            logging_output.update(self.validate(sample, model))
        return loss, sample_size, logging_output

    def validate(self, sample: Batch, model: nn.Module) -> dict[str, float]:
        """Hook: sums and counts that `reduce_metrics` makes a score of; the same keys for every batch."""
        return {}

    def reduce_metrics(self, logging_outputs: list[dict[str, Any]], criterion: Any) -> None:
        """Stock's metrics and the number of skipped rows."""
        super().reduce_metrics(logging_outputs, criterion)
        skipped = sum(int(log.get("skipped_rows", 0)) for log in logging_outputs)
        if skipped:
            metrics.log_scalar_sum("skipped_rows", skipped)

    # -- generation -----------------------------------------------------------------------------------

    def build_generator(
        self,
        models: Sequence[nn.Module],
        args: Any,
        seq_gen_cls: Any = None,
        extra_gen_cls_kwargs: dict[str, Any] | None = None,
        prefix_allowed_tokens_fn: Any = None,
    ) -> OFASequenceGenerator:
        """A generator with fairseq's options (`--beam`, `--lenpen`, ...) over the task's answer space."""
        if self.cfg.ema_eval and self.root is not None and self.root.common_eval.path:
            load_ema(models, self.root.common_eval.path)
        extra = {
            "answer_space": None if self.cfg.zero_shot else self.answer_space(),
            **(extra_gen_cls_kwargs or {}),
        }
        generator = super().build_generator(
            models, args, seq_gen_cls or OFASequenceGenerator, extra, prefix_allowed_tokens_fn
        )
        groups = getattr(args, "diverse_beam_groups", -1)
        if groups > 0:
            generator.search = diverse_beam_search(
                self.dictionary, groups, getattr(args, "diverse_beam_strength", 0.5)
            )
        return generator

    def inference_step(
        self,
        generator: Any,
        models: Sequence[nn.Module],
        sample: Batch,
        prefix_tokens: Tensor | None = None,
        constraints: Tensor | None = None,
    ) -> list[list[dict[str, Tensor]]]:
        """Generate; a row's own prompt is forced unless the caller gives another."""
        if prefix_tokens is None:
            prefix_tokens = sample.get("prefix_tokens")
        with torch.no_grad():
            return generator.generate(models, sample, prefix_tokens=prefix_tokens, constraints=constraints)

    def generate_texts(self, sample: Batch, model: nn.Module) -> list[str]:
        """The best output of each row with the options of `--eval-args`, as text."""
        if id(model) not in self._generators:
            self._generators = {id(model): self.build_generator([model], self._eval_options())}
        hypotheses = self.inference_step(self._generators[id(model)], [model], sample)
        return [self.decode(best[0]["tokens"]) if best else "" for best in hypotheses]

    def _eval_options(self) -> Namespace:
        text = self.cfg.eval_args or "{}"
        try:
            options = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"--eval-args {text}: not JSON ({error})") from error
        if not isinstance(options, dict):
            raise ValueError(f"--eval-args {text}: expected a JSON object of generation options")
        unknown = options.keys() - {f.name for f in fields(GenerationConfig)} - RELEASED_EVAL_OPTIONS
        if unknown:
            raise ValueError(
                f"--eval-args {text}: fairseq-generate has no option {', '.join(sorted(unknown))}"
            )
        return Namespace(**options)

    def decode(self, tokens: Tensor) -> str:
        """Text of an output."""
        return self.vocabulary.decode(tokens.tolist())


class RowBuilder:
    """Names a row's columns and hands it to the task; pickles for spawned data-loading processes."""

    def __init__(self, task: OFATask, split: str, root: Path) -> None:
        self.task, self.split, self.root = task, split, root

    def __call__(self, row: list[str]) -> Example:
        return self.task.example(dict(zip(self.task.columns, row)), self.split, self.root)


def load_ema(models: Sequence[Any], paths: str) -> None:
    """Replace models' weights by the averaged ones of the files they came from (colon-separated).

    Raises:
        ValueError: if a file has none.
    """
    for model, path in zip(models, paths.split(":")):
        state = checkpoint_utils.load_checkpoint_to_cpu(path)
        if "ema" not in state["extra_state"]:
            raise ValueError(f"--ema-eval: {path} holds no averaged weights (extra_state.ema)")
        model.load_state_dict(state["extra_state"]["ema"], strict=True)


def _root_of(cfg: Any) -> Any:
    """The whole run's configuration, or None where a task is made without one."""
    root = cfg._get_root() if isinstance(cfg, DictConfig) else None
    return root if root is not None and "common" in root else None


def make_paths_absolute(cfg: Any) -> None:
    """`PATH_OPTIONS` of a task's configuration, in place."""
    for name in PATH_OPTIONS:
        if getattr(cfg, name, None):
            setattr(cfg, name, os.path.abspath(getattr(cfg, name)))


def adjust_run(root: Any) -> None:
    """Two settings that stock fairseq gets wrong for us, put right in the run's configuration, and absolute paths.

    Our data are files in a list, and fairseq would look for further validation sets in them as in a folder; and its
    option parser takes every `--bf16` for a TPU.
    """
    if root is None:
        return
    with open_dict(root):
        make_paths_absolute(root.task)
        root.dataset.ignore_unused_valid_subsets = True
        if root.common.bf16:
            root.common.tpu = False
