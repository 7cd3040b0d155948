"""Boxes as they stand in a TSV column: `x0,y0,x1,y1` in pixels of the stored picture."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

Box = tuple[float, float, float, float]

# Pixels that a box may reach out of its picture: sums of rounded numbers are that exact.
ROUNDING = 0.05


def parse_box(text: str, size: tuple[int, int]) -> Box:
    """The box of a column.

    Args:
        text: four numbers between commas.
        size: width and height of the picture, in pixels.

    Raises:
        ValueError: not four numbers, not inside the picture (by more than `ROUNDING`), or without an area.
    """
    try:
        x0, y0, x1, y1 = (float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"the box {text!r}: expected four numbers x0,y0,x1,y1") from None
    try:
        return clipped((x0, y0, x1, y1), size, ROUNDING)
    except ValueError as error:
        raise ValueError(f"the box {text} {error}") from None


def clipped(box: Box, size: tuple[int, int], tolerance: float) -> Box:
    """The part of a box that lies in a picture of this width and height.

    Raises:
        ValueError: what is wrong with the box, if it reaches out by more than `tolerance` pixels or has no area.
    """
    limits = (*size, *size)
    if not all(-tolerance <= edge <= limit + tolerance for edge, limit in zip(box, limits)):
        raise ValueError(f"reaches out of the picture of {size[0]} x {size[1]} pixels")
    x0, y0, x1, y1 = (min(max(edge, 0.0), float(limit)) for edge, limit in zip(box, limits))
    if not (x0 < x1 and y0 < y1):
        raise ValueError("has no area: expected x0 < x1 and y0 < y1")
    return x0, y0, x1, y1


class BoxFrame(NamedTuple):
    """How boxes of a picture become bins.

    The picture is stretched to `side` x `side` pixels, and the last bin stands for pixel `span` of them.
    """

    width: int
    height: int
    side: int  # --patch-image-size
    span: int  # --max-image-size
    num_bins: int

    def to_bins(self, box: Box) -> list[float]:
        """Coordinates in units of bins, not rounded; in single precision, as released."""
        scale = np.array([self.side / self.width, self.side / self.height] * 2, np.float32)
        resized = np.asarray(box, np.float32) * scale
        return (resized / np.float32(self.span) * np.float32(self.num_bins - 1)).tolist()

    def quantize(self, box: Box) -> list[int]:
        """The nearest bins, halves to even."""
        return np.rint(self.to_bins(box)).astype(int).tolist()

    def to_pixels(self, bins: Sequence[float]) -> list[float]:
        """The inverse of `to_bins`."""
        scale = [self.width / self.side, self.height / self.side] * 2
        return [bin_ / (self.num_bins - 1) * self.span * factor for bin_, factor in zip(bins, scale)]


def box_text(bins: Sequence[float]) -> str:
    """A box in units of bins as a reference that outputs are scored against."""
    return ",".join(f"{bin_:.4f}" for bin_ in bins)
