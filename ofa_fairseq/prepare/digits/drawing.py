"""Pictures of scenes: bright handwriting blended onto dark, varied, slightly noisy backgrounds."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .handwriting import glyph
from .scenes import COLOURS, PICTURE_SIDE, Scene

TEXTURE_SIDE = 6  # control points of the smooth background along each side


def _background(rng: np.random.Generator) -> NDArray[np.float32]:
    """A random tint with a linear gradient and a smooth texture [64, 64, 3], about 0 to 100 of 255."""
    y, x = np.mgrid[-1 : 1 : TEXTURE_SIDE * 1j, -1 : 1 : TEXTURE_SIDE * 1j]
    angle = rng.uniform(0, 2 * np.pi)
    gradient = (np.cos(angle) * x + np.sin(angle) * y)[..., None] * rng.uniform(0, 20, 3)
    texture = rng.normal(0, 6, (TEXTURE_SIDE, TEXTURE_SIDE, 3))
    points = np.clip(rng.uniform(15, 65, 3) + gradient + texture, 0, 255).astype(np.uint8)
    smooth = Image.fromarray(points).resize((PICTURE_SIDE, PICTURE_SIDE), Image.Resampling.BICUBIC)
    return np.asarray(smooth).astype(np.float32)


def draw(scene: Scene) -> Image.Image:
    """The picture of a scene, 64x64 RGB. The background depends on `background_seed` alone.

    To draw a scene on another background, change the seed with `dataclasses.replace`.
    """
    rng = np.random.default_rng(scene.background_seed)
    # All of the background comes first, so that it does not depend on the digits.
    canvas = _background(rng)
    noise = rng.normal(0, rng.uniform(1, 6), (PICTURE_SIDE, PICTURE_SIDE, 1))
    for digit in scene.digits:
        x0, y0, x1, y1 = digit.box
        opacity = glyph(digit.sample, digit.size)[..., None]
        shade = np.asarray(COLOURS[digit.colour]) + rng.normal(0, 6, 3)
        canvas[y0:y1, x0:x1] += opacity * (shade - canvas[y0:y1, x0:x1])
    return Image.fromarray(np.clip((canvas + noise).round(), 0, 255).astype(np.uint8))
