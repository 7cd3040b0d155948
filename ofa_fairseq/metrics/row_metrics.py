"""Metrics by name: texts and their references in, a score for each row out.

One interface for validation, `fairseq-generate --scoring` and rewards in training: higher is better, and the mean over
the rows is the corpus score.
"""

from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ..data.text_normalize import strip_punctuation
from .box_accuracy import box_accuracy, box_iou
from .caption_scorers import rouge_l_per_row
from .cider import CiderD, Floats, check_paired
from .vqa_accuracy import vqa_score

# Outputs [H], for each its references -> scores [H].
RowMetric = Callable[[Sequence[str], Sequence[Sequence[str]]], Floats]


def row_metric(name: str) -> RowMetric:
    """The metric of this name. It can be pickled, as spawned data workers need.

    Args:
        name: one of
            accuracy: 1 where the output is one of its references;
            cider: CIDEr-D (0 to 10) with document frequencies of the rows that are scored at once, and
            rouge_l (0 to 1), both with punctuation deleted;
            vqa: confidence of the answer (0 to 1), see `vqa_score`;
            box_accuracy, box_iou: see there (0 to 1);
            package.module:function: a function of your own with this interface.

    Raises:
        ValueError: there is no such metric, or your own can't be imported.
    """
    metrics = TEXT_METRICS | BOX_METRICS
    if name in metrics:
        return metrics[name]
    if ":" in name:
        return partial(_own_scores, import_function("metric", name), name)
    raise ValueError(
        f"unknown metric {name!r}: expected {', '.join(sorted(metrics))} or package.module:function"
    )


def accuracy(outputs: Sequence[str], references: Sequence[Sequence[str]]) -> Floats:
    """1.0 for each output that equals one of its references, white space at the ends aside, else 0.0.

    Raises:
        ValueError: the lengths differ, or an output has no reference.
    """
    check_paired(outputs, references)
    rows = zip(outputs, references)
    equal = (output.strip() in {text.strip() for text in texts} for output, texts in rows)
    return np.fromiter(equal, np.float64, len(outputs))


def _cider(outputs: Sequence[str], references: Sequence[Sequence[str]]) -> Floats:
    return CiderD().score(*_without_punctuation(outputs, references))


def _rouge_l(outputs: Sequence[str], references: Sequence[Sequence[str]]) -> Floats:
    return rouge_l_per_row(*_without_punctuation(outputs, references)) / 100


def _without_punctuation(
    outputs: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[list[str], list[list[str]]]:
    return [strip_punctuation(text) for text in outputs], [
        list(map(strip_punctuation, r)) for r in references
    ]


TEXT_METRICS: dict[str, RowMetric] = {
    "accuracy": accuracy,
    "cider": _cider,
    "rouge_l": _rouge_l,
    "vqa": vqa_score,
}
BOX_METRICS: dict[str, RowMetric] = {"box_accuracy": box_accuracy, "box_iou": box_iou}


def import_function(kind: str, name: str) -> Callable[..., Any]:
    """A user's own function; `kind` says in errors what it is for.

    Args:
        name: package.module:function.

    Raises:
        ValueError: it can't be imported, or is no function.
    """
    module, _, function = name.partition(":")
    if not all(part.isidentifier() for part in [*module.split("."), function]):
        raise ValueError(f"{kind} {name!r}: expected package.module:function")
    try:
        found = getattr(import_module(module), function, None)
    except ImportError as error:
        raise ValueError(
            f"{kind} {name!r}: {module} can't be imported ({error}); is its folder on PYTHONPATH?"
        ) from error
    if not callable(found):
        raise ValueError(f"{kind} {name!r}: {module} has no function {function}")
    return found


def _own_scores(
    function: RowMetric, name: str, outputs: Sequence[str], references: Sequence[Sequence[str]]
) -> Floats:
    return checked_scores("metric", name, function(outputs, references), outputs)


def checked_scores(kind: str, name: str, scores: ArrayLike, outputs: Sequence[str]) -> Floats:
    """What a user's function made of some outputs, as an array; any sequence of numbers will do.

    Raises:
        ValueError: not one number for each output.
    """
    found = np.asarray(scores, np.float64)
    if found.shape != (len(outputs),):
        raise ValueError(
            f"{kind} {name!r}: expected one score for each of {len(outputs)} outputs,"
            f" got an array of shape {found.shape}"
        )
    if not np.isfinite(found).all():
        worst = int(np.flatnonzero(~np.isfinite(found))[0])
        raise ValueError(f"{kind} {name!r}: the score of {outputs[worst]!r} is {found[worst]}, not a number")
    return found
