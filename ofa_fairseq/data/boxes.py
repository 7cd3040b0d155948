"""Boxes as they stand in a TSV column: `x0,y0,x1,y1` in pixels of the stored picture."""

from typing import NamedTuple

import numpy as np

Box = tuple[float, float, float, float]


def parse_box(text: str, size: tuple[int, int]) -> Box:
    """The box of a column.

    Args:
        text: four numbers between commas.
        size: width and height of the picture, in pixels.

    Raises:
        ValueError: not four numbers, not inside the picture (by more than rounding), or without an area.
    """
    try:
        x0, y0, x1, y1 = (float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"the box {text!r}: expected four numbers x0,y0,x1,y1") from None
    width, height = size
    slack = 1e-3  # of a pixel: numbers that were rounded when they were written
    if not (-slack <= x0 and x1 <= width + slack and -slack <= y0 and y1 <= height + slack):
        raise ValueError(f"the box {text} reaches out of the picture of {width} x {height} pixels")
    if not (x0 < x1 and y0 < y1):
        raise ValueError(f"the box {text} has no area: expected x0 < x1 and y0 < y1")
    return max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height))


class BoxFrame(NamedTuple):
    """How boxes of a picture become bins: its sides are stretched to `side` pixels, of which `span` make all bins."""

    width: int
    height: int
    side: int  # --patch-image-size
    span: int  # --max-image-size, what the last bin stands for

    def to_units(self, box: Box) -> list[float]:
        """Coordinates in units of the last bin, 0 to side / span; in single precision, as released."""
        scale = np.array([self.side / self.width, self.side / self.height] * 2, np.float32)
        return (np.asarray(box, np.float32) * scale / np.float32(self.span)).tolist()

    def to_pixels(self, units: list[float]) -> list[float]:
        """The inverse of `to_units`."""
        scale = [self.width / self.side * self.span, self.height / self.side * self.span] * 2
        return [unit * factor for unit, factor in zip(units, scale)]
