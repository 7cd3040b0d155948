"""Makes captioned pictures to learn drawing from: the data of `image_gen`, plain scenes of one or two digits.

Beside the files of the command `digits`, whose vocabulary has all words of the captions, with the columns that the
released tokenizer script takes (uniq-id, image-id, picture, text; one caption a row):

    drawings_train.tsv     seven of ten scenes have one digit, the others two
    drawings_valid.tsv     one digit
    drawings_test.tsv      one digit
    drawings_unseen.tsv    one digit of a colour that it never has in all other files
    drawings_two.tsv       two digits

The first id is FILE-NUMBER. drawings_scenes_*.jsonl tell what is where in each picture. Handwriting is split as that of
the other files: the last three take the test samples. Pictures are PNG, since JPEG would blur the colours.
"""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from ...data.images import encode_image
from ...files import atomic_write
from .captions import captions
from .drawing import draw_plain
from .folder import digits_settings, make_once
from .handwriting import handwriting_splits
from .scenes import COLOURS, PlacedDigit, Scene, random_scene

FORMAT = 2  # raised when the same settings give other files
SINGLE_SHARE = 0.7  # of the training scenes
UNSEEN_PAIRS = 8
FIRST_IMAGE_ID = 11_000_000  # those of the command `digits` are smaller

Pair = tuple[int, str]  # digit, colour


class DrawingsFile(NamedTuple):
    """Which scenes a file has."""

    split: str  # of the handwriting
    scenes: int
    digits: int | None  # in a scene; None: one or two
    unseen: bool = False


FILES = {
    "train": DrawingsFile("train", 40_000, None),
    "valid": DrawingsFile("valid", 400, 1),
    "test": DrawingsFile("test", 480, 1),
    "unseen": DrawingsFile("test", 160, 1, unseen=True),
    "two": DrawingsFile("test", 400, 2),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--digits", type=Path, required=True, help="folder that the command `digits` has made"
    )
    parser.add_argument("--seed", type=int, default=1, help="another seed gives other scenes (default 1)")
    for name, file in FILES.items():
        parser.add_argument(
            f"--{name}", type=int, default=file.scenes, help=f"scenes of that file (default {file.scenes})"
        )


def unseen_pairs(seed: int) -> frozenset[Pair]:
    """The pairs of digit and colour that only `drawings_unseen.tsv` has: eight digits, and as many colours."""
    rng = np.random.default_rng((seed, len(FILES)))
    digits, colours = rng.permutation(10)[:UNSEEN_PAIRS], rng.permutation(list(COLOURS))[:UNSEEN_PAIRS]
    return frozenset((int(digit), str(colour)) for digit, colour in zip(digits, colours))


def captioned_scenes(name: str, count: int, seed: int, handwriting_seed: int) -> Iterator[tuple[Scene, str]]:
    """`count` scenes of a file with a caption each. Scene i depends on the seeds, the file and i only."""
    file, number = FILES[name], list(FILES).index(name)
    handwriting = handwriting_splits(handwriting_seed)[file.split]
    allowed = _allowed(unseen_pairs(seed), file.unseen)
    for index in range(count):
        rng = np.random.default_rng((seed, number, index))
        digits = file.digits or (1 if rng.random() < SINGLE_SHARE else 2)
        image_id = str(FIRST_IMAGE_ID + number * 1_000_000 + index)
        # Each in the middle of its quadrant: the fewer codes a digit has, the sooner a model draws it.
        scene = random_scene(rng, image_id, handwriting, digits, allowed, max_jitter=0)
        yield scene, str(rng.choice(captions(scene)))


def _allowed(pairs: frozenset[Pair], unseen: bool) -> Callable[[PlacedDigit], bool]:
    return lambda digit: ((digit.digit, digit.colour) in pairs) == unseen


def _write(digits: Path, name: str, count: int, seed: int, handwriting_seed: int) -> None:
    scenes = captioned_scenes(name, count, seed, handwriting_seed)
    with (
        atomic_write(digits / f"drawings_scenes_{name}.jsonl") as truth,
        atomic_write(digits / f"drawings_{name}.tsv") as rows,
    ):
        for number, (scene, caption) in enumerate(
            tqdm(scenes, total=count, desc=f"drawings {name}", unit="scene")
        ):
            truth.write(scene.to_json() + "\n")
            columns = f"{name}-{number}", scene.image_id, encode_image(draw_plain(scene)), caption
            rows.write("\t".join(columns) + "\n")


def run(args: argparse.Namespace) -> None:
    """Raises ValueError if the folder has no vocabulary yet or a file would have no scene."""
    counts = {name: getattr(args, name) for name in FILES}
    if min(counts.values()) < 1:
        raise ValueError(f"expected at least one scene in each file, got {counts}")
    base = digits_settings(args.digits)

    def make() -> None:
        for name, count in counts.items():
            _write(args.digits, name, count, args.seed, base["seed"])

    settings = {"format": FORMAT, "seed": args.seed, **counts, "digits": base}
    make_once(args.digits / "drawings_settings.json", settings, make)
