"""Image captioning: `[image:picture] what does the image describe? -> [text:caption]`."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

from fairseq import metrics
from fairseq.tasks import register_task
from torch import nn

from ..data.example import Batch, Example
from ..data.text_normalize import split_references, strip_punctuation
from ..data.tsv import RowError, TsvFile
from ..metrics.cider import CiderD, DocumentFrequencies
from .ofa_task import OFATask, OFATaskConfig
from .picture_log import PictureLog

logger = logging.getLogger(__name__)


@dataclass
class CaptionConfig(OFATaskConfig):
    """Options of captioning."""

    eval_cider: bool = field(default=False, metadata={"help": "generate in validation and log CIDEr-D"})
    eval_cider_cached_tokens: Optional[str] = field(
        default=None,
        metadata={
            "help": "document frequencies for CIDEr-D (default: counted over the validation references)"
        },
    )
    eval_bleu: bool = field(
        default=False, metadata={"help": "refused: score with fairseq-generate --scoring caption_bleu"}
    )
    keep_punctuation: bool = field(
        default=False, metadata={"help": "keep punctuation in targets and outputs (releases delete it)"}
    )


@register_task("caption", dataclass=CaptionConfig)
class CaptionTask(OFATask):
    """One sentence about a picture, scored against several references.

    Training learns one caption a row, of at most `--max-tgt-length` words. In other splits the target is all
    references joined by `&&`, as released: their loss is not comparable with training's. Pictures to be captioned
    (split test) may have no reference: they are left out of scores.
    """

    instruction_name = "caption"
    columns = ("id", "picture", "caption")
    cfg: CaptionConfig

    def __init__(self, cfg: CaptionConfig) -> None:
        if cfg.eval_bleu:
            raise ValueError("--eval-bleu never worked; use fairseq-generate --scoring caption_bleu")
        super().__init__(cfg)
        self._cider: CiderD | None = None
        self._pictures = PictureLog(self.root)

    def example(self, row: dict[str, str], split: str, root: Path) -> Example:
        """See `OFATask.example`."""
        references = [self.normalise(" ".join(c.split())) for c in split_references(row["caption"])]
        references = [reference for reference in references if reference]
        if split == "train":
            if len(references) > 1:
                raise ValueError("several captions joined by &&: training needs a row for each caption")
            words = self.normalise(row["caption"]).split()
            caption = " ".join(words[: self.cfg.max_tgt_length])
        else:
            caption = "&&".join(references)
        if not caption and split.startswith(("train", "valid")):
            raise ValueError("the caption is empty")
        values = {"caption": caption}
        return self.make_example(row["id"], values, row["picture"], root, references=references)

    def normalise(self, text: str) -> str:
        """Delete punctuation, unless told to keep it."""
        return text.strip() if self.cfg.keep_punctuation else strip_punctuation(text)

    def prepare_split(self, split: str, rows: TsvFile) -> None:
        """Count the references' n-grams, where no file gives document frequencies."""
        if not self.cfg.eval_cider or split == "train":
            return
        if self.cfg.eval_cider_cached_tokens:
            frequencies = DocumentFrequencies.load(self.cfg.eval_cider_cached_tokens)
        else:
            frequencies = DocumentFrequencies.from_references(list(self._references(rows)))
        self._cider = CiderD(frequencies)

    def _references(self, rows: TsvFile) -> Iterator[list[str]]:
        """The references of each row that can be read; the dataset lists the others."""
        column = self.columns.index("caption")
        for i in range(len(rows)):
            try:
                captions = rows[i][column]
            except RowError:
                continue
            yield [self.normalise(caption) for caption in split_references(captions)]

    def begin_valid_epoch(self, epoch: int, model: nn.Module) -> None:
        """Start a new grid of pictures."""
        self._pictures.begin()

    def post_validate(self, model: nn.Module, stats: Any, agg: Any) -> None:
        """Write the grid."""
        self._pictures.write(self.num_updates)

    def validate(self, sample: Batch, model: nn.Module) -> dict[str, float]:
        """Caption the pictures; sums for `cider`."""
        if not self.cfg.eval_cider:
            return {}
        assert self._cider is not None
        captions = [self.normalise(text) for text in self.generate_texts(sample, model)]
        scored = [(c, r) for c, r in zip(captions, sample["references"]) if r]
        total = (
            float(self._cider.score([c for c, _ in scored], [r for _, r in scored]).sum()) if scored else 0.0
        )
        if self.cfg.eval_print_samples and scored:
            logger.info("caption: %s | references: %s", scored[0][0], " && ".join(scored[0][1]))
        self._pictures.add(sample, captions, self.transform)
        return {"_cider_score_sum": total, "_cider_cnt": len(scored)}

    def reduce_metrics(self, logging_outputs: list[dict[str, Any]], criterion: Any) -> None:
        """Log `cider`, the mean over all validation pictures (1.4 is what papers call 140)."""
        super().reduce_metrics(logging_outputs, criterion)
        count = sum(log.get("_cider_cnt", 0) for log in logging_outputs)
        if count:
            total = sum(log["_cider_score_sum"] for log in logging_outputs)
            metrics.log_scalar("cider", float(total) / float(count), float(count), round=3)
