"""From an RGB picture to the square, normalised tensor that the visual stem takes.

Finetuning knows no augmentation: training and validation see the same pixels.
"""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .images import decode_image

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)


class SquareResize:
    """Resizes to ``size`` x ``size`` (bicubic with antialiasing, aspect ratio not kept) and normalises.

    Args:
        size: side of the result in pixels (``--patch-image-size``).
        imagenet_default_mean_and_std: normalise by ImageNet's channel statistics in place of 0.5 and 0.5.
    """

    def __init__(self, size: int, imagenet_default_mean_and_std: bool = False) -> None:
        if size < 1:
            raise ValueError(f"image size must be positive, got {size}")
        self.size = size
        mean, std = (IMAGENET_MEAN, IMAGENET_STD) if imagenet_default_mean_and_std else (HALF, HALF)
        # (x / 255 - mean) / std as one multiplication and one subtraction.
        self._scale = (1 / (255 * torch.tensor(std))).view(3, 1, 1)
        self._shift = (torch.tensor(mean) / torch.tensor(std)).view(3, 1, 1)

    def __call__(self, image: Image.Image) -> Tensor:
        """RGB picture of any size -> float32 tensor [3, size, size]."""
        resized = image.resize((self.size, self.size), Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.array(resized)).permute(2, 0, 1)  # [H, W, 3] -> [3, H, W]
        return (
            pixels.to(torch.float32, memory_format=torch.contiguous_format)
            .mul_(self._scale)
            .sub_(self._shift)
        )

    def picture(self, pixels: Tensor) -> Image.Image:
        """The picture that a result [3, size, size] shows."""
        values = ((pixels.float() + self._shift) / self._scale).round().clamp(0, 255)
        return Image.fromarray(values.to(torch.uint8).permute(1, 2, 0).numpy())


def scale_box(box: Sequence[float], width: int, height: int, size: int) -> Tensor:
    """A box x0, y0, x1, y1 in pixels of a width x height picture -> the same after ``SquareResize(size)``.

    Returns float32 [4]. Single precision on purpose: a box that ends at half the width lies exactly between
    two position bins, and the released checkpoints were trained with the side that float32 rounds it to.
    """
    ratios = torch.tensor([size / width, size / height] * 2, dtype=torch.float32)
    return torch.tensor(box, dtype=torch.float32) * ratios


class Picture(NamedTuple):
    """A picture as the model takes it."""

    pixels: Tensor  # [3, size, size], normalised
    size: tuple[int, int]  # width and height as stored


@lru_cache(maxsize=4)
def read_picture(value: str, root: Path, transform: SquareResize) -> Picture:
    """The picture of a column, see `decode_image`; one object for rows that follow one another."""
    image = decode_image(value, root)
    return Picture(transform(image), image.size)
