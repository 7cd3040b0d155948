"""Image captioning: `[image:picture] what does the image describe? -> [text:caption]`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional

from fairseq.tasks import register_task

from ..data.example import Example
from ..data.text_normalize import split_references, strip_punctuation
from ..data.tsv import TsvFile
from ..metrics.cider import CiderD, DocumentFrequencies
from ..metrics.row_metrics import RowMetric
from .ofa_task import OFATask
from .options import OFATaskConfig


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
    score_name = "cider"  # the mean over all pictures; 1.4 is what papers call 140
    cfg: CaptionConfig

    def __init__(self, cfg: CaptionConfig) -> None:
        if cfg.eval_bleu:
            raise ValueError("--eval-bleu never worked; use fairseq-generate --scoring caption_bleu")
        super().__init__(cfg)
        self._cider: RowMetric | None = None

    def example(self, row: dict[str, str], split: str, root: Path) -> Example:
        """See `OFATask.example`."""
        references = [self.clean_output(" ".join(c.split())) for c in split_references(row["caption"])]
        references = [reference for reference in references if reference]
        if split == "train" and not self.cfg.scst:
            if len(references) > 1:
                raise ValueError("several captions joined by &&: training needs a row for each caption")
            words = self.clean_output(row["caption"]).split()
            caption = " ".join(words[: self.cfg.max_tgt_length])
        else:
            caption = "&&".join(references)
        if not caption and split.startswith(("train", "valid")):
            raise ValueError("the caption is empty")
        values = {"caption": caption}
        picture = self.picture(row["picture"], root)
        return self.make_example(row["id"], values, [picture], references=references)

    def cut_target(self, tokens: list[int]) -> list[int]:
        """Joined references may be longer than any caption: the loss sees what fits, the score all of them."""
        return tokens[: self.cfg.max_target_positions - 1]

    def clean_output(self, text: str) -> str:
        """Delete punctuation, unless told to keep it."""
        return text.strip() if self.cfg.keep_punctuation else strip_punctuation(text)

    def prepare_split(self, split: str, rows: TsvFile) -> None:
        """Count the references' n-grams, where no file gives document frequencies."""
        if not self.cfg.eval_cider or split == "train":
            return
        if self.cfg.eval_cider_cached_tokens:
            self._cider = CiderD(DocumentFrequencies.load(self.cfg.eval_cider_cached_tokens)).score
        else:
            self._cider = self.cider(rows)

    def reference_column(self) -> str:
        """See `OFATask.reference_column`."""
        return "caption"

    def validation_metric(self) -> RowMetric | None:
        """CIDEr-D with `--eval-cider`."""
        return self._cider
