"""What is where: a scene of one to four handwritten digits, at most one in each quadrant of the picture."""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from .handwriting import SPLITS, Handwriting, glyph, handwriting_splits

PICTURE_SIDE = 64
QUADRANT_SIDE = PICTURE_SIDE // 2
MAX_JITTER = 5  # pixels off the quadrant's centre, less where the digit would leave its quadrant

DIGIT_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SIZES = ("large", "small")
QUADRANTS = ("top left", "top right", "bottom left", "bottom right")  # in reading order
COLOURS = {
    "red": (235, 40, 40),
    "orange": (255, 140, 20),
    "yellow": (250, 235, 60),
    "green": (40, 205, 60),
    "cyan": (50, 225, 235),
    "blue": (60, 100, 255),
    "pink": (255, 100, 210),
    "white": (250, 250, 250),
}


@dataclass(frozen=True)
class PlacedDigit:
    """One digit of a scene. `box` is x0, y0, x1, y1 in pixels, tight around the ink, x1 and y1 exclusive."""

    digit: int
    colour: str
    size: str
    quadrant: str
    box: tuple[int, int, int, int]
    sample: int  # number of the handwriting sample in scikit-learn's digits

    @property
    def word(self) -> str:
        return DIGIT_WORDS[self.digit]

    @property
    def name(self) -> str:
        """The digit with its size and colour: "large red seven"."""
        return f"{self.size} {self.colour} {self.word}"

    @property
    def column(self) -> int:
        """0 left, 1 right."""
        return QUADRANTS.index(self.quadrant) % 2

    @property
    def row(self) -> int:
        """0 top, 1 bottom."""
        return QUADRANTS.index(self.quadrant) // 2


@dataclass(frozen=True)
class Scene:
    """The full truth of one picture: its digits in reading order, and the seed that draws its background."""

    image_id: str
    digits: tuple[PlacedDigit, ...]
    background_seed: int

    def to_json(self) -> str:
        record = asdict(self)
        for placed, digit in zip(record["digits"], self.digits):
            placed["word"] = digit.word
        return json.dumps(record)

    @classmethod
    def from_json(cls, line: str) -> "Scene":
        record = json.loads(line)
        digits = []
        for placed in record["digits"]:
            del placed["word"]
            digits.append(PlacedDigit(**placed | {"box": tuple(placed["box"])}))
        return cls(record["image_id"], tuple(digits), record["background_seed"])


def read_scenes(path: Path) -> dict[str, Scene]:
    """The scenes of a `scenes_*.jsonl` file by image-id."""
    with path.open(encoding="utf-8") as lines:
        return {scene.image_id: scene for scene in map(Scene.from_json, lines)}


def _place_digit(
    rng: np.random.Generator, quadrant: int, handwriting: Handwriting, max_jitter: int
) -> PlacedDigit:
    digit = int(rng.integers(10))
    sample = int(rng.choice(handwriting[digit]))
    size = SIZES[rng.integers(len(SIZES))]
    height, width = glyph(sample, size).shape
    corner = []
    for start, extent in ((quadrant % 2, width), (quadrant // 2, height)):
        room = (QUADRANT_SIDE - extent) // 2 - 1  # a free pixel at each border: no digit touches another
        jitter = int(rng.integers(-min(room, max_jitter), min(room, max_jitter) + 1))
        corner.append(start * QUADRANT_SIDE + (QUADRANT_SIDE - extent) // 2 + jitter)
    x, y = corner
    return PlacedDigit(
        digit=digit,
        colour=str(rng.choice(list(COLOURS))),
        size=size,
        quadrant=QUADRANTS[quadrant],
        box=(x, y, x + width, y + height),
        sample=sample,
    )


def random_scene(
    rng: np.random.Generator,
    image_id: str,
    handwriting: Handwriting,
    count: int | None = None,
    allowed: Callable[[PlacedDigit], bool] = lambda digit: True,
    max_jitter: int = MAX_JITTER,
) -> Scene:
    """A scene in the given handwriting.

    Args:
        rng: makes all choices.
        image_id: name of the scene.
        handwriting: the samples to choose from.
        count: number of digits, 1 to 4; None for a random one, each equally often.
        allowed: digits that are not are drawn anew.
        max_jitter: pixels that a digit may be off its quadrant's centre.
    """
    order = rng.permutation(len(QUADRANTS))
    quadrants = sorted(order[: rng.integers(1, 5) if count is None else count])
    digits = []
    for quadrant in quadrants:
        digit = _place_digit(rng, int(quadrant), handwriting, max_jitter)
        while not allowed(digit):
            digit = _place_digit(rng, int(quadrant), handwriting, max_jitter)
        digits.append(digit)
    return Scene(image_id, tuple(digits), background_seed=int(rng.integers(2**31)))


def random_scenes(split: str, count: int, seed: int) -> Iterator[Scene]:
    """`count` scenes of a split. Scene i depends on (seed, split, i) only; no image-id is in two splits."""
    handwriting = handwriting_splits(seed)[split]
    number = SPLITS.index(split)
    for index in range(count):
        image_id = str((number + 1) * 1_000_000 + index)
        yield random_scene(np.random.default_rng((seed, number, index)), image_id, handwriting)
