"""Real handwriting: scikit-learn's 1,797 scanned digits of 8x8 pixels (E. Alpaydin, C. Kaynak, UCI 1998)."""

from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits

SPLITS = ("train", "valid", "test")
HELD_OUT = 20  # samples of each digit in valid and in test; all others (about 140 of each) are for training

Handwriting = list[NDArray[np.int64]]  # for each digit 0 to 9 the numbers of its samples

# Pixels per scanned pixel. The ink of a large digit then spans about 28 pixels of its 32-pixel quadrant.
MAGNIFICATION = {"large": 3.4, "small": 2.0}


@cache
def _scans() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Ink in 0..1 [1797, 10, 10] with an empty frame of one pixel, and the digit of each sample [1797]."""
    digits = load_digits()
    ink = np.pad(digits.images / 16, ((0, 0), (1, 1), (1, 1)))
    return ink.astype(np.float32), digits.target.astype(np.int64)


def handwriting_splits(seed: int) -> dict[str, Handwriting]:
    """The handwriting of each split; no sample is in two of them."""
    rng = np.random.default_rng(seed)
    splits: dict[str, Handwriting] = {split: [] for split in SPLITS}
    for digit in range(10):
        samples = rng.permutation(np.flatnonzero(_scans()[1] == digit))
        for split, part in zip(("test", "valid", "train"), np.split(samples, [HELD_OUT, 2 * HELD_OUT])):
            splits[split].append(part)
    return splits


@cache
def glyph(sample: int, size: str) -> NDArray[np.float32]:
    """Opacity in 0..1 [height, width] of a written digit, smoothly enlarged and cut tight around its ink."""
    scan = Image.fromarray(_scans()[0][sample])
    side = round(scan.width * MAGNIFICATION[size])
    enlarged = np.asarray(scan.resize((side, side), Image.Resampling.BICUBIC))
    # Steeper edges than the scan's own blur: strokes are solid and their outline is still antialiased.
    opacity = np.clip((enlarged - 0.3) / 0.4, 0, 1).astype(np.float32)
    ink = opacity > 0.1  # fainter pixels can't be seen
    rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
    return opacity[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
