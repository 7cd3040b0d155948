"""How well a probability tells whether the picture shows what a text names.

Reads the output of fairseq-generate, for either of

    refcoco_absent_test.tsv    ids present-... and absent-...: the probability of the box that was found
    vqa_test.tsv               ids exists-..., "is there a red seven?": the probability that the answer is not "no"

Rows of your own need ids of these beginnings; of questions each has one answer, yes or no. A text is taken to name
nothing where this probability is below a threshold. The table shows, for several thresholds, how many of the texts so
found name nothing (precision) and how many of those that name nothing are found (recall).
"""

import argparse
from pathlib import Path

import numpy as np
from sklearn.metrics import average_precision_score, precision_recall_curve

from ...metrics.vqa_accuracy import without_confidence
from ..predictions import Output, read_outputs, read_targets

RECALLS = (0.5, 0.7, 0.8, 0.9, 0.95)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--predictions", type=Path, required=True, help="output of fairseq-generate")


def _presence(kind: str, output: Output) -> float:
    """The model's probability that there is something."""
    return 1 - output.probability if kind == "exists" and output.text.strip() == "no" else output.probability


def run(args: argparse.Namespace) -> None:
    """Raises ValueError if there are no rows of these ids, or only such that name something (or nothing)."""
    targets = read_targets(args.predictions)
    presence, absent = [], []
    for key, output in read_outputs(args.predictions).items():
        kind = key.partition("-")[0]
        if kind in ("present", "absent", "exists"):
            presence.append(_presence(kind, output))
            absent.append(kind == "absent" or without_confidence(targets.get(key, "")) == "no")
    if all(absent) or not any(absent):
        raise ValueError(
            f"{args.predictions}: expected rows present- and absent-, or exists- with both answers"
        )
    doubt = -np.array(presence)
    precision, recall, thresholds = precision_recall_curve(absent, doubt)
    print("probability below   precision   recall   (of absent digits)")
    for wanted in RECALLS:
        place = np.flatnonzero(recall[:-1] >= wanted)[-1]  # recall falls with the threshold of doubt
        print(f"{-thresholds[place]:17.4g}   {100 * precision[place]:9.1f}   {100 * recall[place]:6.1f}")
    score = 100 * average_precision_score(absent, doubt)
    print(f"average precision {score:.1f} (chance {100 * np.mean(absent):.1f}) over {len(absent)} phrases")
