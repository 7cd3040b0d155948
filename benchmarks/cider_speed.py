"""Time CIDEr-D as a reward: ours against pycocoevalcap's scorer, alternating in one process.

The batch is that of a self-critical update: 8 images with 5 references each, 5 hypotheses for each image
(invented captions of a realistic length).
Both scorers are given the same document frequencies beforehand, and take the texts from there to the scores.
"""

import argparse
import random
import statistics
import time
from collections import defaultdict
from collections.abc import Callable

import numpy as np
from pycocoevalcap.cider.cider_scorer import CiderScorer

from ofa_fairseq.metrics.cider import CiderD, DocumentFrequencies

NUM_IMAGES, NUM_REFERENCES, NUM_HYPOTHESES = 8, 5, 5
VOCABULARY_SIZE = 5000


def make_caption(rng: random.Random) -> str:
    """8 to 13 words, the frequent ones far more often, and the end mark that the reward counts as a word."""
    words = [int(VOCABULARY_SIZE ** rng.random()) for _ in range(rng.randint(8, 13))]
    return " ".join(f"word{word}" for word in words) + " <eos>"


def vary(rng: random.Random, caption: str) -> str:
    """The caption with two of its words replaced: a hypothesis that shares n-grams with it."""
    words = caption.split()
    for position in rng.sample(range(len(words) - 1), 2):
        words[position] = f"word{int(VOCABULARY_SIZE ** rng.random())}"
    return " ".join(words)


def score_with_pycocoevalcap(
    scorer_class: type[CiderScorer], hypotheses: list[str], references: list[list[str]]
) -> np.ndarray:
    scorer = scorer_class()
    for hypothesis, texts in zip(hypotheses, references):
        scorer += (hypothesis, texts)
    return np.array(scorer.compute_cider())


def with_frequencies(frequencies: DocumentFrequencies) -> type[CiderScorer]:
    """pycocoevalcap's scorer with frequencies of its own, where it would count those of the batch."""
    table = defaultdict(float, frequencies.counts)  # it indexes unseen n-grams
    log_documents = np.log(frequencies.num_documents)

    class GivenFrequencies(CiderScorer):
        document_frequency = property(lambda self: table, lambda self, value: None)
        ref_len = property(lambda self: log_documents, lambda self, value: None)

    return GivenFrequencies


def timed(function: Callable[..., np.ndarray], *args: object) -> tuple[float, np.ndarray]:
    start = time.perf_counter()
    scores = function(*args)
    return time.perf_counter() - start, scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--repeats", type=int, default=100, help="paired timings (default: 100)")
    parser.add_argument(
        "--documents", type=int, default=5000, help="images counted beforehand (default: 5000)"
    )
    args = parser.parse_args()

    rng = random.Random(1)
    corpus = [[make_caption(rng) for _ in range(NUM_REFERENCES)] for _ in range(args.documents)]
    frequencies = DocumentFrequencies.from_references(corpus)
    theirs, ours = with_frequencies(frequencies), CiderD(frequencies)
    ours.score(["warm"], [["up"]])  # orders the table, once

    timings = []
    for _ in range(args.repeats):
        # New texts each time, so that nobody gains from having seen them.
        images = [[make_caption(rng) for _ in range(NUM_REFERENCES)] for _ in range(NUM_IMAGES)]
        references = [texts for texts in images for _ in range(NUM_HYPOTHESES)]
        hypotheses = [vary(rng, rng.choice(texts)) for texts in references]
        their_seconds, their_scores = timed(score_with_pycocoevalcap, theirs, hypotheses, references)
        our_seconds, our_scores = timed(ours.score, hypotheses, references)
        np.testing.assert_allclose(our_scores, their_scores, atol=1e-6)
        timings.append((their_seconds, our_seconds))

    their_median, our_median = (1e3 * statistics.median(column) for column in zip(*timings))
    ratio = statistics.median(their_seconds / our_seconds for their_seconds, our_seconds in timings)
    print(f"{NUM_IMAGES * NUM_HYPOTHESES} hypotheses x {NUM_REFERENCES} references,", end=" ")
    print(f"medians of {args.repeats} paired timings")
    print(f"pycocoevalcap   {their_median:8.2f} ms")
    print(f"ofa_fairseq     {our_median:8.2f} ms")
    print(f"ratio           {ratio:8.1f}")


if __name__ == "__main__":
    main()
