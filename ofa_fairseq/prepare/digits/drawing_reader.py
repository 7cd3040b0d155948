"""Reads pictures: which digits are in them, in which colour and size, and where. For pictures that a model has drawn.

The reader learns from drawn scenes alone, those of the training handwriting, never from pictures of a model. What
stands out from the background is cut into shapes. A classifier says which digit a shape is; the shape must also be
about as near to a training sample of that digit as other people's handwriting is, or it counts as no digit.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from scipy import ndimage
from scipy.spatial.distance import cdist
from sklearn.svm import SVC

from .drawing import PLAIN_BACKGROUND, draw_plain
from .scenes import COLOURS, PICTURE_SIDE, QUADRANT_SIDE, QUADRANTS, SIZES, PlacedDigit, Scene

Floats = NDArray[np.float64]
Box = tuple[int, int, int, int]

PALETTE = np.array(list(COLOURS.values()), float)
INK = 0.4  # of the contrast of a shape's strong pixels: what is fainter is its blurred outline
MIN_CONTRAST = 90.0  # RGB distance from the background; that of the least bright ink is more than twice this
MIN_STRENGTH = 0.7  # of ink in a mixture with the background that still counts as its colour
STRONG_QUANTILE = 0.8  # of a shape's pixels by contrast
MIN_PIXELS = 12  # smaller shapes are specks; no digit has fewer than twice as many
MAX_GAP = 2  # free pixels between parts of one broken digit
MAX_OVERHANG = 2  # pixels by which a digit may leave its quadrant
CROP_SIDE = 16  # pixels; digits are brought to this height or width before they are compared
SMOOTHING = 0.7  # Gaussian radius in pixels of a crop: hides how sharp a stroke was
BLURS = (0.0, 0.7, 1.2)  # Gaussian radius in pixels of the training pictures, since models draw less sharply
KEPT = 0.995  # share of unknown handwriting that is near enough to the training samples


@dataclass(frozen=True)
class FoundDigit:
    """A shape in a picture. `box` is x0, y0, x1, y1 in pixels, x1 and y1 exclusive."""

    digit: int | None  # None: the shape is no digit
    colour: str
    size: str
    quadrant: str | None  # None: it lies across quadrants
    box: Box

    @property
    def column(self) -> int:
        """0 left, 1 right: where the middle of the box is."""
        return int(self.box[0] + self.box[2] > PICTURE_SIDE)

    @property
    def row(self) -> int:
        """0 top, 1 bottom."""
        return int(self.box[1] + self.box[3] > PICTURE_SIDE)


@dataclass(frozen=True, eq=False)
class _Shape:
    """Contrast to the background [64, 64] in 0..1, 0 outside of the shape."""

    contrast: Floats
    colour: str
    box: Box

    @property
    def height(self) -> int:
        return self.box[3] - self.box[1]


class DrawingReader:
    """Use `train` to get one.

    Args:
        crops: training crops [n, features], from `_features`.
        digits: which digit each is [n].
        samples: number of the handwriting sample of each [n].
        heights: for each size, the smallest and the largest height of a digit in pixels.
    """

    def __init__(
        self,
        crops: Floats,
        digits: NDArray[np.int64],
        samples: NDArray[np.int64],
        heights: dict[str, tuple[int, int]],
    ) -> None:
        self._classifier = SVC(C=10, gamma="scale").fit(crops, digits)
        self._crops = {digit: crops[digits == digit] for digit in range(10)}
        distances = [
            _distances_to_others(self._crops[digit], samples[digits == digit]) for digit in range(10)
        ]
        self._max_distance = float(np.quantile(np.concatenate(distances), KEPT))
        self._heights = heights

    @classmethod
    def train(cls, scenes: Iterable[Scene]) -> "DrawingReader":
        """A reader that knows every handwriting sample of the scenes in each size that they show it in.

        Raises ValueError unless there are at least two samples of each digit, in both sizes.
        """
        known: dict[tuple[int, str], PlacedDigit] = {}
        for scene in scenes:
            known |= {(digit.sample, digit.size): digit for digit in scene.digits}
        digits = list(known.values())
        _check_variety(digits)
        shapes = [(digit, shape) for digit in digits for shape in _training_shapes(digit)]
        heights = {
            size: (min(numbers), max(numbers))
            for size in SIZES
            for numbers in [[shape.height for digit, shape in shapes if digit.size == size]]
        }
        return cls(
            np.array([_features(shape) for _, shape in shapes]),
            np.array([digit.digit for digit, _ in shapes]),
            np.array([digit.sample for digit, _ in shapes]),
            heights,
        )

    def read(self, image: Image.Image) -> list[FoundDigit]:
        """The shapes in a picture of 64x64 pixels, in reading order of their quadrants; specks are left out.

        Raises ValueError if the picture has another size.
        """
        if image.size != (PICTURE_SIDE, PICTURE_SIDE):
            width, height = image.size
            raise ValueError(
                f"expected a picture of {PICTURE_SIDE}x{PICTURE_SIDE} pixels, got {width}x{height}"
            )
        found = [
            FoundDigit(self._digit(shape), shape.colour, self._size(shape), _quadrant(shape.box), shape.box)
            for shape in _shapes(image)
        ]
        return sorted(found, key=lambda digit: (digit.row, digit.column))

    def _digit(self, shape: _Shape) -> int | None:
        smallest, largest = self._heights["small"][0], self._heights["large"][1]
        if not smallest - MAX_GAP <= shape.height <= largest + MAX_GAP:
            return None
        features = _features(shape)[None]
        digit = int(self._classifier.predict(features)[0])
        return digit if cdist(features, self._crops[digit]).min() <= self._max_distance else None

    def _size(self, shape: _Shape) -> str:
        between = (self._heights["small"][1] + self._heights["large"][0]) / 2
        return "large" if shape.height > between else "small"


def _check_variety(digits: list[PlacedDigit]) -> None:
    for number in range(10):
        samples = {digit.sample for digit in digits if digit.digit == number}
        if len(samples) < 2:
            raise ValueError(
                f"expected scenes with at least two handwriting samples of each digit, "
                f"got {len(samples)} of {number}"
            )
    missing = set(SIZES) - {digit.size for digit in digits}
    if missing:
        raise ValueError(f"expected scenes with large and small digits, none is {missing.pop()}")


def _training_shapes(digit: PlacedDigit) -> list[_Shape]:
    """The digit as it is found in a picture of its own, drawn sharply and blurred."""
    picture = draw_plain(Scene("", (digit,), background_seed=0))
    blurred = (picture.filter(ImageFilter.GaussianBlur(radius)) for radius in BLURS)
    found = [_shapes(image) for image in blurred]
    return [shapes[0] for shapes in found if len(shapes) == 1]  # else the digit fell apart


def _shapes(image: Image.Image) -> list[_Shape]:
    """What stands out from the background of a picture, without specks; parts of one colour that are close are one."""
    pixels = np.asarray(image.convert("RGB"), float)
    stands_out = pixels - np.median(pixels, axis=(0, 1))
    contrast = np.linalg.norm(stands_out, axis=-1)
    parts = [_cut_out(stands_out, contrast, mask) for mask in _components(contrast)]
    return [shape for shape in _joined(parts) if np.count_nonzero(shape.contrast) >= MIN_PIXELS]


def _components(contrast: Floats) -> list[NDArray[np.bool_]]:
    """Masks [64, 64] of the connected regions of ink, corners count as connected."""
    labels, count = ndimage.label(contrast >= MIN_CONTRAST, structure=np.ones((3, 3)))
    return [labels == number for number in range(1, count + 1)]


def _cut_out(stands_out: Floats, contrast: Floats, mask: NDArray[np.bool_]) -> _Shape:
    strong = mask & (contrast >= np.quantile(contrast[mask], STRONG_QUANTILE))
    ink = contrast * mask / contrast[strong].mean()
    ink = np.where(ink >= INK, np.minimum(ink, 1), 0)
    rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
    return _Shape(
        contrast=ink,
        colour=_colour(stands_out[strong].mean(axis=0)),
        box=(int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1),
    )


def _colour(difference: Floats) -> str:
    """The nearest colour, where those mixed with some of the background count as well: thin strokes are fainter."""
    full = PALETTE - PLAIN_BACKGROUND
    strength = np.clip(full @ difference / np.square(full).sum(axis=1), MIN_STRENGTH, 1)[:, None]
    return list(COLOURS)[int(np.linalg.norm(strength * full - difference, axis=1).argmin())]


def _joined(parts: list[_Shape]) -> list[_Shape]:
    """Parts of one colour with at most MAX_GAP free pixels between them become one."""
    shapes: list[_Shape] = []
    for part in parts:
        near = [shape for shape in shapes if shape.colour == part.colour and _are_near(shape, part)]
        shapes = [shape for shape in shapes if shape not in near]
        shapes.append(reduce(_union, near, part))
    return shapes


def _are_near(first: _Shape, second: _Shape) -> bool:
    reach = ndimage.binary_dilation(first.contrast > 0, np.ones((3, 3)), iterations=MAX_GAP + 1)
    return bool((reach & (second.contrast > 0)).any())


def _union(first: _Shape, second: _Shape) -> _Shape:
    (a0, b0, a1, b1), (x0, y0, x1, y1) = first.box, second.box
    box = min(a0, x0), min(b0, y0), max(a1, x1), max(b1, y1)
    return _Shape(np.maximum(first.contrast, second.contrast), first.colour, box)


def _features(shape: _Shape) -> Floats:
    """The shape in the middle of a square, as large as it fits there, flattened [CROP_SIDE ** 2]."""
    x0, y0, x1, y1 = shape.box
    scale = CROP_SIDE / max(x1 - x0, y1 - y0)
    width, height = (max(1, round(scale * extent)) for extent in (x1 - x0, y1 - y0))
    crop = Image.fromarray(shape.contrast[y0:y1, x0:x1].astype(np.float32))
    square = np.zeros((CROP_SIDE, CROP_SIDE))
    top, left = (CROP_SIDE - height) // 2, (CROP_SIDE - width) // 2
    square[top : top + height, left : left + width] = crop.resize((width, height), Image.Resampling.BILINEAR)
    return ndimage.gaussian_filter(square, SMOOTHING).ravel()


def _distances_to_others(crops: Floats, samples: NDArray[np.int64]) -> Floats:
    """How far each crop [n, features] is from the nearest one of another handwriting sample [n]."""
    distances = cdist(crops, crops)
    distances[samples[:, None] == samples] = np.inf
    return distances.min(axis=1)


def _quadrant(box: Box) -> str | None:
    """The one that a box lies in but for MAX_OVERHANG pixels, if there is one."""
    x0, y0, x1, y1 = box
    for number, quadrant in enumerate(QUADRANTS):
        left, top = QUADRANT_SIDE * (number % 2) - MAX_OVERHANG, QUADRANT_SIDE * (number // 2) - MAX_OVERHANG
        side = QUADRANT_SIDE + 2 * MAX_OVERHANG
        if left <= x0 and x1 <= left + side and top <= y0 and y1 <= top + side:
            return quadrant
    return None
