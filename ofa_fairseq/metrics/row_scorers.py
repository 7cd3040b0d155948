"""fairseq `--scoring` entries `accuracy`, `vqa` and `box_accuracy`: the row metrics of these names, in per cent."""

from dataclasses import dataclass, field

from fairseq.dataclass import FairseqDataclass
from fairseq.scoring import BaseScorer, register_scorer

from ..data.text_normalize import split_references
from .caption_scorers import NOTHING_SCORED
from .row_metrics import row_metric
from .vqa_accuracy import normalise_answer, with_answer, without_confidence


class RowScorer(BaseScorer):
    """Collects outputs (`pred`) and their references (`ref`, a list for each); leaves out rows without any.

    Class attributes that a scorer sets:
        metric_name: for `row_metric`.
        label: what the score is called in the printed line.
    """

    metric_name: str
    label: str
    pred: list[str]
    ref: list[list[str]]

    def add_string(self, ref: str, pred: str) -> None:
        references = [self.reference(text) for text in split_references(ref) if text.strip()]
        if references:
            self.ref.append(references)
            self.pred.append(pred)

    def reference(self, text: str) -> str:
        """A reference as the metric takes it."""
        return without_confidence(text)

    def score(self) -> float:
        return 100 * float(row_metric(self.metric_name)(self.pred, self.ref).mean()) if self.pred else 0.0

    def result_string(self) -> str:
        return (
            f"{self.label} = {self.score():.2f} over {len(self.pred)} rows" if self.pred else NOTHING_SCORED
        )


@register_scorer("accuracy", dataclass=FairseqDataclass)
class AccuracyScorer(RowScorer):
    """Share of outputs that equal one of their references."""

    metric_name = "accuracy"
    label = "Accuracy"


@dataclass
class VqaScorerConfig(FairseqDataclass):
    vqa_normalize: bool = field(
        default=False,
        metadata={"help": "compare as the official evaluation does: lower case, no articles or punctuation"},
    )


@register_scorer("vqa", dataclass=VqaScorerConfig)
class VqaScorer(RowScorer):
    """VQA accuracy, from references like `0.6|!+cat&&0.3|!+kitten`."""

    metric_name = "vqa"
    label = "VQA accuracy"

    def add_string(self, ref: str, pred: str) -> None:
        super().add_string(ref, self._compared(pred))

    def reference(self, text: str) -> str:
        """With its confidence."""
        return with_answer(self._compared, text)

    def _compared(self, answer: str) -> str:
        return normalise_answer(answer) or answer if self.cfg.vqa_normalize else answer


@register_scorer("box_accuracy", dataclass=FairseqDataclass)
class BoxAccuracyScorer(RowScorer):
    """Share of outputs whose IoU with the reference is at least 0.5.

    The task writes the exact box as reference: four numbers in units of bins, as outputs are read.
    """

    metric_name = "box_accuracy"
    label = "Acc@0.5"
