"""Accuracy of boxes: a box counts as found when its intersection over union (IoU) with the reference is at least half.

A box is a text, x0, y0 (top left) and x1, y1 (bottom right), in one of two forms:

    35.5,20.0,210.25,400.0                  four numbers, separated by commas or spaces
    <bin_68><bin_39><bin_410><bin_781>      four coordinate bins, spaces between them or not: their numbers

All boxes of a row must be in the same unit. Which one does not matter: stretching an axis multiplies every area by
the same number, so pixels and bins (before they are rounded) give the same IoU.
"""

import re
from collections.abc import Iterable, Sequence
from itertools import chain
from math import isfinite

import numpy as np

from .cider import Floats, check_paired

Box = tuple[float, ...]  # x0, y0, x1, y1

FOUND = 0.5

_BINS = re.compile(r"\s*".join([r"<bin_(\d+)>"] * 4), re.ASCII)
_SEPARATOR = re.compile(r"\s*,\s*|\s+")
# What an output that is no box is scored as.
_NOWHERE: Box = (0.0, 0.0, 0.0, 0.0)


def parse_box(text: str) -> Box | None:
    """The box that a text stands for, None if it is none: other words, other counts, NaN."""
    text = text.strip()
    if bins := _BINS.fullmatch(text):
        return tuple(map(float, bins.groups()))
    try:
        box = tuple(float(number) for number in _SEPARATOR.split(text))
    except ValueError:
        return None
    return box if len(box) == 4 and all(map(isfinite, box)) else None


def box_iou(outputs: Sequence[str], references: Sequence[Sequence[str]]) -> Floats:
    """IoU of each output with the best of its references.

    0 for an output that is no box, and where one of the two has no area or its corners are swapped.

    Args:
        outputs: H texts.
        references: for each output one or more boxes.

    Returns:
        H numbers from 0 to 1, float64.

    Raises:
        ValueError: the lengths differ, an output has no reference, or a reference is no box (names its row).
    """
    check_paired(outputs, references)
    if not outputs:
        return np.zeros(0)
    counts = np.array([len(texts) for texts in references])
    output_boxes = _corners(parse_box(text) or _NOWHERE for text in outputs)
    reference_boxes = _corners(
        _reference_box(text, row) for row, texts in enumerate(references) for text in texts
    )
    pairs = _paired_iou(np.repeat(output_boxes, counts, axis=0), reference_boxes)
    return np.maximum.reduceat(pairs, np.cumsum(counts) - counts)


def box_accuracy(outputs: Sequence[str], references: Sequence[Sequence[str]]) -> Floats:
    """1.0 for each output whose IoU is at least 0.5 (an intersection without area never is), else 0.0.

    The released evaluation adds 1e-6 square pixels to the union. In its single precision this is lost in any union of
    32 square pixels or more, so that exactly half is enough there as it is here; here nothing is added, since boxes
    need not be in pixels.

    Arguments, result and errors as of `box_iou`.
    """
    return (box_iou(outputs, references) >= FOUND).astype(np.float64)


def _reference_box(text: str, row: int) -> Box:
    box = parse_box(text)
    if box is None:
        raise ValueError(
            f"row {row}: the reference {text!r} is no box: expected four numbers (x0,y0,x1,y1)"
            " or four bins (<bin_0><bin_0><bin_9><bin_9>)"
        )
    return box


def _corners(boxes: Iterable[Box]) -> Floats:
    """[N, 2 (top left, bottom right), 2 (x, y)]"""
    return np.fromiter(chain.from_iterable(boxes), np.float64).reshape(-1, 2, 2)


def _paired_iou(a: Floats, b: Floats) -> Floats:
    """IoU [N] of the boxes that stand at the same place of two arrays from `_corners`."""
    top_left, bottom_right = np.maximum(a[:, 0], b[:, 0]), np.minimum(a[:, 1], b[:, 1])
    intersection = np.clip(bottom_right - top_left, 0, None).prod(axis=1)
    union = _area(a) + _area(b) - intersection
    # Boxes that intersect have an area; the others may not even have a union.
    return np.divide(intersection, union, out=np.zeros(len(a)), where=intersection > 0)


def _area(corners: Floats) -> Floats:
    return (corners[:, 1] - corners[:, 0]).prod(axis=1)
