"""Pictures of scenes: bright handwriting blended onto dark backgrounds, varied and slightly noisy or plain."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .handwriting import glyph
from .scenes import COLOURS, PICTURE_SIDE, PlacedDigit, Scene

TEXTURE_SIDE = 6  # control points of the smooth background along each side
PLAIN_BACKGROUND = (30, 30, 30)
PLAIN_BACKGROUND = (30, 30, 30)


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
        _blend(canvas, digit, np.asarray(COLOURS[digit.colour]) + rng.normal(0, 6, 3))
    return _to_image(canvas + noise)


def draw_plain(scene: Scene) -> Image.Image:
    """The digits of a scene in the exact colours of their names on one dark grey, 64x64 RGB.

    Nothing is in the picture that a caption can't tell, but the handwriting and a few pixels of place: what has to
    draw such pictures itself spends nothing on backgrounds and noise.
    """
    canvas = np.full((PICTURE_SIDE, PICTURE_SIDE, 3), PLAIN_BACKGROUND, np.float32)
    for digit in scene.digits:
        _blend(canvas, digit, np.asarray(COLOURS[digit.colour]))
    return _to_image(canvas)


def _blend(canvas: NDArray[np.float32], digit: PlacedDigit, shade: NDArray) -> None:
    """Writes a digit onto the canvas [64, 64, 3], in place."""
    x0, y0, x1, y1 = digit.box
    opacity = glyph(digit.sample, digit.size)[..., None]
    canvas[y0:y1, x0:x1] += opacity * (shade - canvas[y0:y1, x0:x1])


def _to_image(canvas: NDArray) -> Image.Image:
    return Image.fromarray(np.clip(canvas.round(), 0, 255).astype(np.uint8))
