"""Drawing: ` what is the complete image? caption: [text:caption] -> [codes:drawing]`."""

import logging
import math
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import Any, Optional

import torch
from fairseq import utils
from fairseq.tasks import register_task
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from torch import Tensor, nn

from ..data.example import Batch, Example
from ..data.images import decode_image
from ..data.tsv import TsvFile
from ..drawing.drawer import Drawer
from ..drawing.drawing_folder import DrawingFolder
from ..drawing.picture_scorers import picture_scorer
from ..generation.answer_space import AnswerSpace, TokenRange
from ..models.image_tokenizer import ImageTokenizer
from ..vocabulary import parse_codes
from .ofa_task import OFATask
from .options import OFATaskConfig

logger = logging.getLogger(__name__)

PIXELS_PER_CODE = 8  # along a side
RANDOM_SHARE = 0.2  # of the variance of embeddings that begin similar
SIMILARITIES = ("ti_sim", "ii_sim")


@dataclass
class ImageGenConfig(OFATaskConfig):
    """Options of drawing."""

    code_image_size: int = field(
        default=256, metadata={"help": "side of a drawn picture in pixels: (side / 8)^2 codes"}
    )
    num_code: Optional[int] = field(
        default=None,
        metadata={
            "help": "refuse rows that have not exactly so many codes (default: rows with too many; too few are told)"
        },
    )
    drop_caption: float = field(
        default=0.0,
        metadata={"help": "share of training rows whose caption is left out, which --guidance needs"},
    )
    similar_codes: bool = field(
        default=False,
        metadata={
            "help": "a new model begins with embeddings that are similar for codes that look similar to the image"
            " tokenizer (--vqgan-model-path)"
        },
    )
    guidance: float = field(
        default=1.0,
        metadata={
            "help": "classifier-free guidance in generation, 1: none; for a model trained with --drop-caption"
        },
    )
    sampling_times: int = field(default=1, metadata={"help": "draw --beam samples so many times"})
    vqgan_model_path: Optional[str] = field(
        default=None, metadata={"help": "weights of the image tokenizer, with which drawings can be seen"}
    )
    vqgan_config_path: Optional[str] = field(default=None, metadata={"help": "its YAML"})
    clip_model_path: Optional[str] = field(default=None, metadata={"help": "weights of CLIP"})
    clip_model: str = field(
        default="ViT-B-16",
        metadata={
            "help": "open_clip's name of the model that they belong to (OpenAI's weights as open_clip's file:"
            " ViT-B-16-quickgelu)"
        },
    )
    rank_by: Optional[str] = field(
        default=None,
        metadata={
            "help": "order of a caption's samples: clip (default with --clip-model-path), caption (how probable a"
            " captioning model finds the text), or your own package.module:function"
        },
    )
    caption_model_path: Optional[str] = field(
        default=None, metadata={"help": "checkpoint of the captioning model of --rank-by caption"}
    )
    eval_clip_method: str = field(
        default="ti_sim",
        metadata={
            "help": "compare drawings with their texts (ti_sim), or with pictures in a column (ii_sim)"
        },
    )
    gen_images_path: str = field(
        default="", metadata={"help": "fairseq-generate: folder for the drawings as PNG files"}
    )


@register_task("image_gen", dataclass=ImageGenConfig)
class ImageGenTask(OFATask):
    """A picture of what a caption says, as codes of an image tokenizer, row by row.

    Of the caption the first `--max-src-length` words are used. Rows have id, caption and codes; or id and caption, to
    be drawn; or id, picture, caption and codes. Outputs are always drawn at random (`--beam` of them), from codes
    only and exactly as many as a picture has.
    """

    instruction_name = "image_gen"
    columns = ("id", "caption", "drawing")
    optional_columns = 1
    score_name = "score"  # the mean over captions of the best sample's, as the ranking says
    cfg: ImageGenConfig
    _told_of_few = False  # codes, of which the log speaks once

    def __getstate__(self) -> dict[str, Any]:
        """See `OFATask.__getstate__`: data workers draw nothing."""
        return {
            name: value for name, value in super().__getstate__().items() if name not in ("drawer", "folder")
        }

    # -- options --------------------------------------------------------------------------------------

    def use_options(self) -> None:
        """See `OFATask.use_options`."""
        super().use_options()
        cfg = self.cfg
        if cfg.code_image_size < 1 or cfg.code_image_size % PIXELS_PER_CODE:
            raise ValueError(
                f"--code-image-size {cfg.code_image_size}: expected a multiple of {PIXELS_PER_CODE}"
            )
        if cfg.similar_codes and not cfg.vqgan_model_path:
            raise ValueError("--similar-codes: --vqgan-model-path is missing, whose codes they are")
        if not 0 <= cfg.drop_caption < 1:
            raise ValueError(f"--drop-caption {cfg.drop_caption}: expected a share from 0 to below 1")
        if cfg.num_code is not None and cfg.num_code != self.num_codes:
            raise ValueError(
                f"--num-code {cfg.num_code}: a picture of --code-image-size {cfg.code_image_size} has"
                f" {self.num_codes} codes"
            )
        if cfg.sampling_times < 1:
            raise ValueError(f"--sampling-times {cfg.sampling_times}: expected 1 or more")
        if bool(cfg.vqgan_model_path) != bool(cfg.vqgan_config_path):
            raise ValueError("--vqgan-model-path and --vqgan-config-path: expected both or none")
        if cfg.eval_clip_method not in SIMILARITIES:
            raise ValueError(
                f"--eval-clip-method {cfg.eval_clip_method}: expected {' or '.join(SIMILARITIES)}"
            )
        if cfg.rank_by == "caption" and cfg.eval_clip_method == "ii_sim":
            raise ValueError("--rank-by caption compares with texts: --eval-clip-method ii_sim needs CLIP")
        if cfg.rank_by == "caption" and not cfg.caption_model_path:
            raise ValueError("--rank-by caption: --caption-model-path is missing, a captioning checkpoint")
        wanted = None if self.root is None else self.root.checkpoint.best_checkpoint_metric
        if wanted == self.score_name and not (self.ranks or self.generating):
            raise ValueError(
                f"--best-checkpoint-metric {wanted} needs a ranking of drawings: give --clip-model-path, or another"
                " --rank-by"
            )
        for name in ("vqgan_model_path", "vqgan_config_path", "clip_model_path", "caption_model_path"):
            path = getattr(cfg, name)
            if path and not Path(path).is_file():
                raise ValueError(f"--{name.replace('_', '-')} {path}: no such file")

    @property
    def ranks(self) -> bool:
        """Whether samples are put in order."""
        return bool(self.cfg.rank_by or self.cfg.clip_model_path)

    @property
    def side(self) -> int:
        """Codes along a side of a picture."""
        return self.cfg.code_image_size // PIXELS_PER_CODE

    @property
    def num_codes(self) -> int:
        """Codes of a picture."""
        return self.side**2

    def build_model(self, cfg: Any, from_checkpoint: bool = False) -> nn.Module:
        """See `OFATask.build_model`.

        Raises:
            ValueError: if the model draws pictures of another size.
        """
        model: Any = super().build_model(cfg, from_checkpoint)
        if model.cfg.code_image_size != self.cfg.code_image_size:
            raise ValueError(
                f"the model draws {model.cfg.code_image_size} pixels a side, the task expects"
                f" {self.cfg.code_image_size}: give --code-image-size"
            )
        if self.cfg.similar_codes and not from_checkpoint:
            start, end = self.vocabulary.code_range
            rows = model.decoder.embed_tokens.weight[start:end]
            with torch.no_grad():
                rows.copy_(similar_embeddings(self.drawer.tokenizer.code_vectors(), rows))
        if self.ranks or self.will_show_drawings:
            _ = self.drawer  # what it lacks is to be told before hours of training, or of sampling
        return model

    @property
    def will_show_drawings(self) -> bool:
        """Whether pictures are written, by fairseq-generate or into the log."""
        if self.generating:
            return bool(self.cfg.gen_images_path)
        return bool(self.cfg.vqgan_model_path and self._pictures.folder)

    # -- rows -----------------------------------------------------------------------------------------

    def layouts(self) -> list[Sequence[str]]:
        """See `OFATask.layouts`."""
        return [("id", "picture", "caption", "drawing"), *super().layouts()]

    def example(self, row: dict[str, str], split: str, root: Path) -> Example:
        """See `OFATask.example`; without codes the target is as many zeros."""
        caption = " ".join(row["caption"].split()[: self.cfg.max_src_length])
        if not caption:
            raise ValueError("the caption is empty")
        text = row.get("drawing")
        learns = split.startswith(("train", "valid")) and not self.cfg.scst
        if text is not None and not text.strip() and learns:
            raise ValueError("there are no image codes")
        values: dict[str, Any] = {
            "caption": caption,
            "drawing": self.picture_codes(text or "") or [0] * self.num_codes,
        }
        # In training nothing is compared with them.
        compares = self.cfg.eval_clip_method == "ii_sim" and "picture" in row and split != "train"
        shown = decode_image(row["picture"], root) if compares else None
        return self.make_example(row["id"], values, code_target=True, references=[caption], shown=shown)

    def picture_codes(self, text: str) -> list[int]:
        """A picture's codes from a column.

        Raises:
            ValueError: no whole numbers, out of range, or not as many as a picture has.
        """
        codes = parse_codes(text)
        wanted = self.num_codes
        if len(codes) > wanted or (self.cfg.num_code is not None and codes and len(codes) != wanted):
            raise ValueError(f"{len(codes)} image codes: a picture of {self.side} x {self.side} has {wanted}")
        if 0 < len(codes) < wanted and not self._told_of_few:
            self._told_of_few = True
            logger.warning(
                "a row with %d of the %d image codes of a picture: this and others are learnt as they are (--num-code"
                " %d refuses them)",
                *(len(codes), wanted, wanted),
            )
        return codes

    def get_batch_iterator(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        """See `OFATask.get_batch_iterator`.

        Raises:
            ValueError: if training rows have no codes, which self-critical training does not need.
        """
        if dataset.shuffle and not self.cfg.scst and "drawing" not in dataset.build.columns:
            raise ValueError(
                f"{dataset.rows.path}: training needs a column of image codes beside id and caption; python -m"
                " ofa_fairseq.prepare image_codes makes it"
            )
        return super().get_batch_iterator(dataset, *args, **kwargs)

    # -- training -------------------------------------------------------------------------------------

    def train_step(self, sample: Batch, *args: Any, **kwargs: Any) -> tuple[Tensor, Any, dict[str, Any]]:
        """See `OFATask.train_step`; some rows lose their caption."""
        if self.cfg.drop_caption and not self.cfg.scst:  # drawings are rewarded for their captions there
            # fairseq seeds each update, so that a resumed run drops the same.
            dropped = torch.rand(len(sample["target"])) < self.cfg.drop_caption
            sample = self.without_captions(sample, dropped.to(sample["target"].device))
        return super().train_step(sample, *args, **kwargs)

    @cached_property
    def null_source(self) -> Tensor:
        """The source of a picture of whatever you like, [T]."""
        v = self.vocabulary
        return torch.tensor([v.bos, *self.instruction.encode_source({"caption": ""}, v), v.eos])

    def without_captions(self, sample: Batch, dropped: Tensor) -> Batch:
        """The batch with the null source in the rows `dropped` [B]."""
        inputs = sample["net_input"]
        source, null = inputs["src_tokens"], self.null_source.to(inputs["src_tokens"])
        width = max(source.size(1), len(null))
        source, null = (
            torch.nn.functional.pad(x, (0, width - x.size(-1)), value=self.vocabulary.pad)
            for x in (source, null)
        )
        source = torch.where(dropped[:, None], null, source)
        lengths = source.ne(self.vocabulary.pad).sum(dim=1)
        return {**sample, "net_input": {**inputs, "src_tokens": source, "src_lengths": lengths}}

    # -- generation -----------------------------------------------------------------------------------

    def answer_space(self) -> AnswerSpace:
        """As many codes as a picture has, within `--constraint-range`.

        Raises:
            ValueError: for a range that has other tokens than codes.
        """
        v, given = self.vocabulary, self.cfg.constraint_range
        start, end = v.code_range
        if given is not None:
            chosen = TokenRange.parse(given, len(v))
            if chosen.start < start or chosen.end > end:
                raise ValueError(
                    f"--constraint-range {given}: the image codes are tokens {start} to {end - 1}"
                )
            start, end = chosen.start, chosen.end
        return TokenRange(start, end, len(v), length=self.num_codes, eos=v.eos)

    def prepare_split(self, split: str, rows: TsvFile) -> None:
        """A wrong range should be told before training, not by an infinite loss.

        Raises:
            ValueError: for such a range, or a file without the pictures that drawings are to be compared with.
        """
        self.answer_space()
        compares = self.ranks and self.cfg.eval_clip_method == "ii_sim" and split != "train"
        if compares and "picture" not in (self._layout(rows) or ()):
            raise ValueError(
                f"{rows.path}: --eval-clip-method ii_sim compares drawings with pictures: select four columns,"
                f" {', '.join(self.layouts()[0])} (--selected-cols)"
            )

    def build_generator(
        self,
        models: Sequence[nn.Module],
        args: Any,
        seq_gen_cls: Any = None,
        extra_gen_cls_kwargs: dict[str, Any] | None = None,
        prefix_allowed_tokens_fn: Any = None,
    ) -> Any:
        """See `GeneratingTask.build_generator`: one that draws at random, and as many tokens as needed."""
        if self.generating and (rank := self.root.distributed_training.distributed_rank):
            utils.set_torch_seed(self.root.common.seed + rank)  # or all processes would draw alike
        options: Any = OmegaConf.to_container(args) if isinstance(args, DictConfig) else vars(args)
        lengths = {"min_len": self.num_codes, "max_len_a": 0, "max_len_b": self.num_codes}
        # Also with --zero-shot: other tokens than codes are no picture.
        extra = {"gen_code": True, "answer_space": self.answer_space(), **(extra_gen_cls_kwargs or {})}
        # What is learnt from has to be drawn as it is learnt.
        if self.cfg.guidance != 1 and not self.cfg.scst:
            extra |= {"guidance": self.cfg.guidance, "null_source": self.null_source}
        drawing = Namespace(**{**options, "sampling": True, **lengths})
        return super().build_generator(models, drawing, seq_gen_cls, extra, prefix_allowed_tokens_fn)

    def inference_step(
        self, generator: Any, models: Sequence[nn.Module], sample: Batch, *args: Any, **kwargs: Any
    ) -> list[list[dict[str, Tensor]]]:
        """See `GeneratingTask.inference_step`; in fairseq-generate the samples of all times, best first."""
        if not self.generating:
            return super().inference_step(generator, models, sample, *args, **kwargs)
        draw = partial(super().inference_step, generator, models, sample, *args, **kwargs)
        hypotheses = self.several_times(draw)
        # A batch of bad rows alone holds a stand-in, which nobody asked for.
        if not (self.ranks or self.cfg.gen_images_path) or not sample["nsentences"]:
            return hypotheses
        drawn = self.drawer.ranked(hypotheses, sample)
        if self.cfg.gen_images_path:
            for name, references, samples in zip(sample["id"], sample["references"], drawn):
                self.folder.add(str(name), references[0], [(s.picture, s.score) for s in samples])
        return [[s.hypothesis for s in samples] for samples in drawn]

    def several_times(self, draw: Callable[[], list[list[Any]]]) -> list[list[Any]]:
        """`--sampling-times` times, each row's together."""
        times = [draw() for _ in range(self.cfg.sampling_times)]
        return [list(chain(*of_row)) for of_row in zip(*times)]

    # -- pictures -------------------------------------------------------------------------------------

    @cached_property
    def drawer(self) -> Drawer:
        """Shows and ranks samples, as the options say."""
        cfg = self.cfg
        if not cfg.vqgan_model_path or not cfg.vqgan_config_path:
            raise ValueError(
                "to see drawings give --vqgan-model-path and --vqgan-config-path, the image tokenizer"
            )
        scorer = None
        if self.ranks:
            scorer = picture_scorer(
                cfg.rank_by or "clip", cfg.clip_model_path, cfg.caption_model_path, cfg.clip_model
            )
        tokenizer = ImageTokenizer.load(cfg.vqgan_model_path, cfg.vqgan_config_path)
        return Drawer(tokenizer, self.vocabulary, self.side, scorer, cfg.eval_clip_method == "ii_sim")

    @cached_property
    def folder(self) -> DrawingFolder:
        """Where fairseq-generate puts drawings."""
        rank = self.root.distributed_training.distributed_rank if self.root is not None else 0
        return DrawingFolder(self.cfg.gen_images_path, rank)

    def outputs(self, tokens: Sequence[Tensor]) -> list[Image.Image]:
        """See `OFATask.outputs`: pictures."""
        return self.drawer.pictures(tokens)

    def validate(self, sample: Batch, model: nn.Module) -> dict[str, float]:
        """Draw and score the best sample of each row, where samples are ranked; else draw what the log shows."""
        if not self.ranks and not (self.cfg.vqgan_model_path and self._pictures.wanted):
            return {}
        if not sample["nsentences"]:
            return {"_score_sum": 0.0, "_score_cnt": 0} if self.ranks else {}
        draw = partial(self.inference_step, self.search(model, self._validation_options()), [model], sample)
        hypotheses = self.several_times(draw) if self.ranks else draw()
        best = [samples[0] for samples in self.drawer.ranked(hypotheses, sample)]
        self._pictures.add([s.picture for s in best], [texts[0] for texts in sample["references"]])
        if not self.ranks:
            return {}
        return {"_score_sum": float(sum(s.score for s in best)), "_score_cnt": len(best)}

    def _validation_options(self) -> dict[str, Any]:
        """`--eval-args`; for the log alone one sample is enough: the other processes wait for it."""
        return self._eval_options() | ({} if self.ranks else {"beam": 1})


def similar_embeddings(vectors: Tensor, rows: Tensor) -> Tensor:
    """Embeddings whose similarity is that of the codes' vectors, with the scale of random ones.

    Random Fourier features (Rahimi & Recht 2007) of the vectors, and a share of the random rows, so that codes of one
    vector still differ.

    Args:
        vectors: of the codes [n, k].
        rows: random initial embeddings [n, d].
    """
    scale = rows.std()
    generator = torch.Generator().manual_seed(0)
    frequencies = torch.randn(vectors.size(1), rows.size(1), generator=generator)
    phases = 2 * math.pi * torch.rand(rows.size(1), generator=generator)
    vectors = vectors / vectors.std(dim=0).clamp(min=1e-6) / math.sqrt(vectors.size(1) / 3)
    features = math.sqrt(2) * scale * torch.cos(vectors @ frequencies + phases)
    return math.sqrt(1 - RANDOM_SHARE) * features + math.sqrt(RANDOM_SHARE) * rows
