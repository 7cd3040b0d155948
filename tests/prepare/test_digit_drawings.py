"""The data to learn drawing from: which scenes the files have, true captions, pairs kept for a test of their own."""

import json
import shutil
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from ofa_fairseq.data.images import decode_image
from ofa_fairseq.data.tsv import TsvFile
from ofa_fairseq.prepare.__main__ import main
from ofa_fairseq.prepare.digits import PlacedDigit, Scene, captions, read_scenes
from ofa_fairseq.prepare.digits.drawings_command import FILES, captioned_scenes, unseen_pairs
from ofa_fairseq.prepare.digits.handwriting import handwriting_splits
from ofa_fairseq.prepare.digits.reading import read_caption
from ofa_fairseq.prepare.digits.scenes import COLOURS, QUADRANTS

COUNTS = {"train": 60, "valid": 5, "test": 6, "unseen": 7, "two": 8}
NAMES = [f"drawings_{name}.tsv" for name in FILES] + [f"drawings_scenes_{name}.jsonl" for name in FILES]


def make(digits_dir: Path, folder: Path, *flags: str) -> Path:
    """A copy of the digits data with drawings in it."""
    if not folder.exists():
        shutil.copytree(digits_dir, folder)
    counts = (f"--{name}={count}" for name, count in COUNTS.items())
    main(["digit_drawings", "--digits", str(folder), *counts, *flags])
    return folder


@pytest.fixture(scope="module")
def data(digits_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(digits_dir, tmp_path_factory.mktemp("drawings") / "digits")


@pytest.fixture(scope="module")
def scenes() -> dict[str, list[tuple[Scene, str]]]:
    return {name: list(captioned_scenes(name, 3000, seed=1, handwriting_seed=1)) for name in FILES}


@pytest.mark.parametrize("name", FILES)
def test_rows_are_pictures_of_the_scenes_with_a_true_caption(data: Path, name: str) -> None:
    rows, truth = TsvFile(data / f"drawings_{name}.tsv"), read_scenes(data / f"drawings_scenes_{name}.jsonl")
    assert len(rows) == len(truth) == COUNTS[name]
    for number, scene in enumerate(truth.values()):
        uniq_id, image_id, picture, text = rows[number]
        assert (uniq_id, image_id) == (f"{name}-{number}", scene.image_id)
        assert read_caption(text, scene).score()["exact"] == 1
        pixels = np.asarray(decode_image(picture, data)).astype(int)
        assert pixels.shape == (64, 64, 3)
        background = pixels[31, 31]  # digits leave the inner border of their quadrant free
        ink = (pixels != background).any(axis=-1)
        for digit in scene.digits:
            x0, y0, x1, y1 = digit.box
            assert (pixels[y0:y1, x0:x1] == COLOURS[digit.colour]).all(axis=-1).any()
            ink[y0:y1, x0:x1] = False
        assert not ink.any(), "nothing but digits stands on the one colour of the background"


def test_numbers_of_digits_are_those_of_the_files(scenes: dict[str, list[tuple[Scene, str]]]) -> None:
    counts = {name: Counter(len(scene.digits) for scene, _ in made) for name, made in scenes.items()}
    for name in ("valid", "test", "unseen"):
        assert counts[name] == {1: 3000}
    assert counts["two"] == {2: 3000}
    assert set(counts["train"]) == {1, 2}
    assert counts["train"][1] / 3000 == pytest.approx(0.7, abs=0.03)  # 3.6 standard deviations


def digits_of(made: list[tuple[Scene, str]]) -> list[PlacedDigit]:
    return [digit for scene, _ in made for digit in scene.digits]


def test_some_pairs_of_digit_and_colour_occur_in_one_file_only(
    scenes: dict[str, list[tuple[Scene, str]]],
) -> None:
    pairs = unseen_pairs(1)
    digits, colours = zip(*pairs)
    assert len(set(digits)) == len(set(colours)) == 8
    every = {(digit, colour) for digit in range(10) for colour in COLOURS}
    for name, made in scenes.items():
        there = {(digit.digit, digit.colour) for digit in digits_of(made)}
        assert there == (pairs if name == "unseen" else every - pairs)
    for number in range(10):  # each digit and each colour is learned, though not together
        assert any(digit.digit == number for digit in digits_of(scenes["train"]))
    assert unseen_pairs(2) != pairs


def test_sizes_places_and_phrasings_are_equally_frequent(scenes: dict[str, list[tuple[Scene, str]]]) -> None:
    for name, made in scenes.items():
        digits = digits_of(made)
        for attribute, values in (("size", 2), ("quadrant", len(QUADRANTS))):
            shares = Counter(getattr(digit, attribute) for digit in digits)
            assert len(shares) == values, name
            assert all(
                count / len(digits) == pytest.approx(1 / values, abs=0.04) for count in shares.values()
            )
        phrasings = Counter(captions(scene).index(text) for scene, text in made)
        assert all(phrasings[number] / 3000 == pytest.approx(0.2, abs=0.04) for number in range(5)), name


def test_handwriting_of_training_is_not_that_of_the_tests(scenes: dict[str, list[tuple[Scene, str]]]) -> None:
    splits = {
        split: {sample for digit in samples for sample in digit}
        for split, samples in handwriting_splits(1).items()
    }
    for name, made in scenes.items():
        split = name if name in splits else "test"
        assert {digit.sample for digit in digits_of(made)} <= splits[split]


def test_a_scene_depends_on_the_seeds_the_file_and_its_number_only() -> None:
    for name in FILES:
        assert list(captioned_scenes(name, 3, 1, 1)) == list(islice(captioned_scenes(name, 9, 1, 1), 3))
    assert list(captioned_scenes("test", 3, 1, 1)) != list(captioned_scenes("test", 3, 2, 1))
    assert list(captioned_scenes("test", 3, 1, 1)) != list(captioned_scenes("test", 3, 1, 2))
    ids = [scene.image_id for name in FILES for scene, _ in captioned_scenes(name, 9, 1, 1)]
    assert len(set(ids)) == 9 * len(FILES)


def test_image_ids_are_not_those_of_the_other_files(data: Path) -> None:
    others = {
        key for split in ("train", "valid", "test") for key in read_scenes(data / f"scenes_{split}.jsonl")
    }
    assert not others & {key for name in FILES for key in read_scenes(data / f"drawings_scenes_{name}.jsonl")}


def test_a_folder_is_made_once_and_anew_for_other_settings(
    data: Path, digits_dir: Path, tmp_path: Path
) -> None:
    again = make(digits_dir, tmp_path / "digits")
    assert [(again / name).read_bytes() for name in NAMES] == [(data / name).read_bytes() for name in NAMES]
    target = again / "drawings_valid.tsv"
    target.write_text("mine")
    make(digits_dir, again)
    assert target.read_text() == "mine"
    make(digits_dir, again, "--seed", "2")
    assert target.read_bytes() not in (b"mine", (data / "drawings_valid.tsv").read_bytes())

    settings = json.loads((again / "settings.json").read_text()) | {"seed": 5}  # other handwriting
    (again / "settings.json").write_text(json.dumps(settings))
    target.write_text("mine")
    make(digits_dir, again, "--seed", "2")
    assert target.read_text() != "mine"


def test_unusable_input_is_refused_in_words(digits_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="the command `digits` has made"):
        main(["digit_drawings", "--digits", str(tmp_path)])
    with pytest.raises(SystemExit, match="at least one scene in each file"):
        main(["digit_drawings", "--digits", str(digits_dir), "--two", "0"])
