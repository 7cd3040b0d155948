"""Rewards for training: any metric of `row_metrics`, and CIDEr-D as the paper counts it.

Rennie et al. 2017 count the end of a caption as a word, of outputs and references: otherwise captions that break off
("a man on a") score best. An output that only the limit of length has ended does not have the word.
"""

import logging
from collections.abc import Callable, Iterable, Sequence

from .cider import CiderD, DocumentFrequencies, Floats
from .row_metrics import row_metric
from .vqa_accuracy import without_confidence

END = "<eos>"

logger = logging.getLogger(__name__)

# Outputs, each with whether the model ended it; for each its references -> rewards [H].
Reward = Callable[[Sequence[tuple[str, bool]], Sequence[Sequence[str]]], Floats]


def with_end(text: str) -> str:
    """The text with its end as a word."""
    return f"{text} {END}"


def reward(
    name: str, frequencies: str | None, training_references: Callable[[], Iterable[Sequence[str]]]
) -> Reward:
    """The reward of this name (see `row_metric`).

    Args:
        name: of a metric.
        frequencies: file of document frequencies for `cider`, counted with ends; None: they are counted over
        training_references: the references of each picture, asked for when the first reward is.

    Raises:
        ValueError: no such metric, or frequencies for another one than cider.
    """
    if name == "cider":
        return CiderReward(frequencies, training_references)
    if frequencies is not None:
        raise ValueError(f"--scst-cider-cached-tokens is for the reward cider, not {name}")
    metric = row_metric(name)
    # Confidences, as answers may have them, mean something to the metric vqa and perhaps to a user's own.
    weighs = name == "vqa" or ":" in name

    def score(outputs: Sequence[tuple[str, bool]], references: Sequence[Sequence[str]]) -> Floats:
        if not weighs:
            references = [[without_confidence(text) for text in texts] for texts in references]
        return metric([text for text, _ in outputs], references)

    return score


class CiderReward:
    """CIDEr-D over texts with their ends.

    Raises:
        ValueError, OSError, pickle.UnpicklingError: see `DocumentFrequencies.load`.
    """

    def __init__(
        self, frequencies: str | None, training_references: Callable[[], Iterable[Sequence[str]]]
    ) -> None:
        self.training_references = training_references
        self.cider: CiderD | None = None
        if frequencies is not None:
            loaded = DocumentFrequencies.load(frequencies)
            if (END,) not in loaded.counts:
                logger.warning(
                    "%s counts no ends of captions (%s): outputs that break off are rewarded too well; make another"
                    " with python -m ofa_fairseq.prepare document_frequencies",
                    frequencies,
                    END,
                )
            self.cider = CiderD(loaded)

    def __call__(self, outputs: Sequence[tuple[str, bool]], references: Sequence[Sequence[str]]) -> Floats:
        """0 to 10 for each output."""
        if self.cider is None:
            logger.info("counting the n-grams of all training references")
            self.cider = CiderD(frequencies_with_ends(self.training_references()))
        texts = [with_end(text) if ended else text for text, ended in outputs]
        return self.cider.score(texts, [list(map(with_end, texts)) for texts in references])


def frequencies_with_ends(references: Iterable[Sequence[str]]) -> DocumentFrequencies:
    """Document frequencies of the references of each picture, ends counted as words."""
    return DocumentFrequencies.from_references([list(map(with_end, texts)) for texts in references])
