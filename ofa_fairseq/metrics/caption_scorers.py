"""fairseq `--scoring` entries for captions: `cider` (BLEU-4 and ROUGE-L beside it), `caption_bleu`, `rouge_l`.

`fairseq-generate` hands over decoded strings; the target holds all references of an image, joined by `&&`.
As in the released validation, ASCII punctuation is deleted from hypotheses and references.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Optional

import numpy as np
import sacrebleu
from fairseq.dataclass import FairseqDataclass
from fairseq.scoring import BaseScorer, register_scorer

from ..data.text_normalize import split_references, strip_punctuation
from .cider import CiderD, DocumentFrequencies, Floats, check_paired
from .vqa_accuracy import without_confidence


def bleu4(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Corpus BLEU-4 (sacrebleu, words split at white space), 0 to 100; rows may differ in references.

    Raises:
        ValueError: the lengths differ, or a hypothesis has no reference at all.
    """
    check_paired(hypotheses, references)
    if not hypotheses:
        return 0.0
    streams = list(zip_longest(*references))  # the i-th reference of every row, None where a row has fewer
    return sacrebleu.corpus_bleu(hypotheses, streams, tokenize="none").score


def rouge_l(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Mean over rows of `rouge_l_per_row`, 0 to 100.

    Raises:
        ValueError: the lengths differ, or a hypothesis has no reference at all.
    """
    return float(rouge_l_per_row(hypotheses, references).mean()) if hypotheses else 0.0


def rouge_l_per_row(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> Floats:
    """ROUGE-L F-measure (rouge_score, no stemmer) with the best reference of each row, 0 to 100.

    Raises:
        ValueError: the lengths differ, or a hypothesis has no reference at all.
    """
    # Imported here because it brings nltk with it: seconds that most runs need not wait.
    from rouge_score.rouge_scorer import RougeScorer

    check_paired(hypotheses, references)
    scorer = RougeScorer(["rougeL"], tokenizer=_WhiteSpaceTokenizer())
    pairs = zip(hypotheses, references)
    best = (scorer.score_multi(texts, hypothesis)["rougeL"].fmeasure for hypothesis, texts in pairs)
    return 100.0 * np.fromiter(best, np.float64)


class _WhiteSpaceTokenizer:
    """As the other metrics split; rouge_score's own tokenizer deletes every letter outside a-z."""

    def tokenize(self, text: str) -> list[str]:
        return text.split()


NOTHING_SCORED = "no row has a reference, nothing was scored"


class CaptionScorer(BaseScorer):
    """Collects hypotheses (`pred`) and their references (`ref`, a list for each); leaves out those without any."""

    pred: list[str]
    ref: list[list[str]]

    def add_string(self, ref: str, pred: str) -> None:
        references = [strip_punctuation(without_confidence(text)) for text in split_references(ref)]
        if any(references):
            self.ref.append(references)
            self.pred.append(strip_punctuation(pred))


@dataclass
class CiderScorerConfig(FairseqDataclass):
    # Optional[...], since fairseq's parser does not understand `str | None`.
    cider_document_frequencies: Optional[str] = field(
        default=None,
        metadata={
            "help": "file of document frequencies, ours or a released pickle "
            "(default: counted over the references that are scored)"
        },
    )


@register_scorer("cider", dataclass=CiderScorerConfig)
class CiderScorer(CaptionScorer):
    """Mean CIDEr-D over the images (1.4 is what captioning papers print as 140)."""

    def __init__(self, cfg: CiderScorerConfig) -> None:
        super().__init__(cfg)
        path = cfg.cider_document_frequencies
        self.cider = CiderD(DocumentFrequencies.load(path) if path else None)

    def score(self) -> float:
        return float(self.cider.score(self.pred, self.ref).mean()) if self.pred else 0.0

    def result_string(self) -> str:
        if not self.pred:
            return NOTHING_SCORED
        bleu, rouge = bleu4(self.pred, self.ref), rouge_l(self.pred, self.ref)
        return f"CIDEr = {self.score():.4f} (BLEU-4 = {bleu:.2f}, ROUGE-L = {rouge:.2f})"


@register_scorer("caption_bleu", dataclass=FairseqDataclass)
class CaptionBleuScorer(CaptionScorer):
    """Corpus BLEU-4 with several references, 0 to 100."""

    def score(self) -> float:
        return bleu4(self.pred, self.ref)

    def result_string(self) -> str:
        return f"BLEU-4 = {self.score():.2f}" if self.pred else NOTHING_SCORED


@register_scorer("rouge_l", dataclass=FairseqDataclass)
class RougeLScorer(CaptionScorer):
    """Mean ROUGE-L with the best reference of each image, 0 to 100."""

    def score(self) -> float:
        return rouge_l(self.pred, self.ref)

    def result_string(self) -> str:
        return f"ROUGE-L = {self.score():.2f}" if self.pred else NOTHING_SCORED
