"""How well the probability of a box tells whether the picture shows what a phrase names.

Reads the output of fairseq-generate for refcoco_absent_test.tsv, whose ids say "present" or "absent". A phrase is taken
to name nothing where its box is less probable than a threshold. The table shows, for several thresholds, how many of
the phrases so found are absent (precision) and how many of the absent ones are found (recall).
"""

import argparse
from pathlib import Path

import numpy as np
from sklearn.metrics import average_precision_score, precision_recall_curve

from ..predictions import read_outputs

RECALLS = (0.5, 0.7, 0.8, 0.9, 0.95)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--predictions", type=Path, required=True, help="output of fairseq-generate")


def run(args: argparse.Namespace) -> None:
    """Raises ValueError if the ids are not of both kinds."""
    outputs = read_outputs(args.predictions)
    absent = np.array([key.startswith("absent-") for key in outputs])
    if absent.all() or not absent.any():
        raise ValueError(f"{args.predictions}: expected ids that begin with present- and with absent-")
    doubt = -np.array([output.probability for output in outputs.values()])
    precision, recall, thresholds = precision_recall_curve(absent, doubt)
    print("probability below   precision   recall   (of absent digits)")
    for wanted in RECALLS:
        place = np.flatnonzero(recall[:-1] >= wanted)[-1]  # recall falls with the threshold of doubt
        print(f"{-thresholds[place]:17.4g}   {100 * precision[place]:9.1f}   {100 * recall[place]:6.1f}")
    score = 100 * average_precision_score(absent, doubt)
    print(f"average precision {score:.1f} (chance {100 * absent.mean():.1f}) over {len(absent)} phrases")
