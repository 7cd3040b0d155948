"""The reader of drawn pictures: right about handwriting that it has not seen, and no digits where there are none."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter
from scipy import ndimage

from ofa_fairseq.prepare.digits import Scene
from ofa_fairseq.prepare.digits.drawing import PLAIN_BACKGROUND, draw, draw_plain
from ofa_fairseq.prepare.digits.drawing_reader import DrawingReader
from ofa_fairseq.prepare.digits.drawings_command import captioned_scenes
from ofa_fairseq.prepare.digits.scenes import COLOURS, QUADRANTS


def scenes_of(name: str, count: int) -> list[Scene]:
    return [scene for scene, _ in captioned_scenes(name, count, seed=1, handwriting_seed=1)]


@pytest.fixture(scope="module")
def reader() -> DrawingReader:
    return DrawingReader.train(scenes_of("train", 5000))


def as_drawn(image: Image.Image) -> Image.Image:
    return image


def blurred(image: Image.Image) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(0.8))


def coarse(image: Image.Image) -> Image.Image:
    """Through a quarter of the pixels, as a decoder with few codes draws."""
    return image.resize((32, 32), Image.Resampling.BOX).resize((64, 64), Image.Resampling.BICUBIC)


def patchy(image: Image.Image) -> Image.Image:
    """Strokes with faint gaps."""
    pixels = np.asarray(image).astype(float) - PLAIN_BACKGROUND
    spots = ndimage.gaussian_filter(np.random.default_rng(1).normal(size=(64, 64)), 1)
    pixels *= np.where(spots > np.quantile(spots, 0.92), 0.5, 1)[..., None]
    return blurred(Image.fromarray((pixels + PLAIN_BACKGROUND).round().clip(0, 255).astype(np.uint8)))


@pytest.mark.parametrize(
    ("degrade", "least"), [(as_drawn, 0.97), (blurred, 0.95), (coarse, 0.95), (patchy, 0.93)]
)
def test_unknown_handwriting_is_read(
    reader: DrawingReader, degrade: Callable[[Image.Image], Image.Image], least: float
) -> None:
    digit, colour, size, quadrant, alone = [], [], [], [], []
    for scene in scenes_of("test", 300):
        (truth,), found = scene.digits, reader.read(degrade(draw_plain(scene)))
        alone.append(len(found) == 1)
        if not alone[-1]:
            digit.append(False)
            continue
        digit.append(found[0].digit == truth.digit)
        colour.append(found[0].colour == truth.colour)
        size.append(found[0].size == truth.size)
        quadrant.append(found[0].quadrant == truth.quadrant)
    assert np.mean(digit) >= least
    assert np.mean(alone) >= 0.98
    assert min(np.mean(colour), np.mean(size), np.mean(quadrant)) >= 0.98


def test_several_digits_are_read_in_reading_order_with_their_boxes(reader: DrawingReader) -> None:
    right, apart = [], []
    for scene in scenes_of("two", 100):
        found = reader.read(draw_plain(scene))
        assert len(found) == 2
        assert [(f.colour, f.quadrant, f.row, f.column) for f in found] == [
            (d.colour, d.quadrant, d.row, d.column) for d in scene.digits
        ]
        apart += [np.abs(np.subtract(f.box, d.box)).max() for f, d in zip(found, scene.digits)]
        right.append([f.digit for f in found] == [d.digit for d in scene.digits])
    assert np.mean(right) >= 0.95
    assert np.mean(np.array(apart) <= 2) >= 0.98  # faint ends of strokes may be cut off
    assert max(apart) <= 4


def test_varied_noisy_backgrounds_are_no_digits(reader: DrawingReader) -> None:
    scenes = scenes_of("test", 100)
    assert not any(reader.read(draw(replace(scene, digits=()))) for scene in scenes)
    found = [[(f.digit, f.colour) for f in reader.read(draw(scene))] for scene in scenes]
    truth = [[(d.digit, d.colour) for d in scene.digits] for scene in scenes]
    assert np.mean([f == t for f, t in zip(found, truth)]) >= 0.93


def noise() -> Iterator[Image.Image]:
    rng = np.random.default_rng(1)
    while True:
        yield Image.fromarray(rng.integers(0, 256, (64, 64, 3)).astype(np.uint8))


def blank() -> Iterator[Image.Image]:
    while True:
        yield Image.new("RGB", (64, 64), PLAIN_BACKGROUND)


def smears() -> Iterator[Image.Image]:
    """Soft blots of one colour, of a digit's size."""
    rng = np.random.default_rng(1)
    while True:
        image = next(blank())
        x, y = (int(number) for number in rng.integers(2, 8, 2))
        for _ in range(4):
            dx, dy, side = (int(number) for number in rng.integers(4, 16, 3))
            ImageDraw.Draw(image).ellipse(
                (x + dx, y + dy, x + dx + side, y + dy + side // 2), fill=COLOURS["red"]
            )
        yield blurred(image)


def scribbles() -> Iterator[Image.Image]:
    rng = np.random.default_rng(1)
    while True:
        image = next(blank())
        points = [(int(x), int(y)) for x, y in rng.integers(4, 28, (5, 2))]
        ImageDraw.Draw(image).line(points, fill=COLOURS["green"], width=3)
        yield image


def halves() -> Iterator[Image.Image]:
    """Digits without their lower half."""
    for scene in scenes_of("test", 1000):
        image, (x0, y0, x1, y1) = draw_plain(scene), scene.digits[0].box
        image.paste(PLAIN_BACKGROUND, (x0, (y0 + y1) // 2, x1, y1))
        yield image


@pytest.mark.parametrize(
    ("garbage", "most"), [(noise, 0), (blank, 0), (smears, 0.1), (scribbles, 0.15), (halves, 0.05)]
)
def test_what_is_no_digit_is_not_taken_for_one(
    reader: DrawingReader, garbage: Callable[[], Iterator[Image.Image]], most: float
) -> None:
    pictures = garbage()
    read = [reader.read(next(pictures)) for _ in range(100)]
    assert np.mean([any(shape.digit is not None for shape in shapes) for shapes in read]) <= most


def test_a_shape_that_is_no_digit_is_still_told(reader: DrawingReader) -> None:
    scene = next(scene for scene in scenes_of("test", 50) if scene.digits[0].quadrant == "top left")
    image = draw_plain(scene)
    ImageDraw.Draw(image).rectangle((27, 40, 37, 56), fill=COLOURS["blue"])
    digit, block = reader.read(image)
    assert (digit.digit, digit.quadrant) == (scene.digits[0].digit, "top left")
    assert (block.digit, block.colour, block.quadrant, block.box) == (None, "blue", None, (27, 40, 38, 57))


def test_specks_are_nothing(reader: DrawingReader) -> None:
    image = next(blank())
    ImageDraw.Draw(image).rectangle((10, 10, 12, 12), fill=COLOURS["white"])
    assert reader.read(image) == []


@pytest.mark.parametrize("quadrant", QUADRANTS)
def test_places_are_those_of_the_quadrants(reader: DrawingReader, quadrant: str) -> None:
    row, column = divmod(QUADRANTS.index(quadrant), 2)
    image = next(blank())
    x, y = 32 * column + 8, 32 * row + 6
    ImageDraw.Draw(image).rectangle((x, y, x + 12, y + 20), fill=COLOURS["pink"])
    (shape,) = reader.read(image)
    assert (shape.quadrant, shape.row, shape.column) == (quadrant, row, column)


def test_unusable_input_is_refused_in_words(reader: DrawingReader) -> None:
    with pytest.raises(ValueError, match="64x64 pixels, got 64x32"):
        reader.read(Image.new("RGB", (64, 32)))
    with pytest.raises(ValueError, match="at least two handwriting samples of each digit, got"):
        DrawingReader.train(scenes_of("train", 3))
    every = [scene for scene in scenes_of("train", 500) if len(scene.digits) == 1]
    large = [scene for scene in every if scene.digits[0].size == "large"]
    with pytest.raises(ValueError, match="none is small"):
        DrawingReader.train(large)


def test_training_scenes_need_no_order(reader: DrawingReader) -> None:
    scenes = scenes_of("train", 600)
    pictures = [draw_plain(scene) for scene in scenes_of("test", 40)]
    first, second = DrawingReader.train(scenes), DrawingReader.train(scenes[::-1])
    digits = [[f.digit for f in first.read(picture)] for picture in pictures]
    assert digits == [[f.digit for f in second.read(picture)] for picture in pictures]
