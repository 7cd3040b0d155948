"""The embedded digits data: what is drawn is what the truth says, and the files are what the tasks read."""

import json
import string
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sentencepiece import SentencePieceProcessor
from sklearn.datasets import load_digits
from sklearn.svm import SVC

from ofa_fairseq.data.images import decode_image
from ofa_fairseq.data.tsv import TsvFile
from ofa_fairseq.prepare.__main__ import main
from ofa_fairseq.prepare.digits import Scene, captions, draw, random_scenes, read_scenes
from ofa_fairseq.prepare.digits.handwriting import handwriting_splits
from ofa_fairseq.prepare.digits.scenes import COLOURS, QUADRANTS, random_scene
from ofa_fairseq.prepare.digits.vocabulary_texts import vocabulary_texts

COUNTS = {"train": 40, "valid": 10, "test": 12}
FILES = {"train.tsv": "train", "train_references.tsv": "train", "valid.tsv": "valid", "test.tsv": "test"}

scenes = st.integers(0, 2**32 - 1).map(
    lambda seed: random_scene(np.random.default_rng(seed), "7", handwriting_splits(1)["train"])
)


def make(out: Path, seed: int = 1) -> Path:
    main(["digits", "--out", str(out), "--seed", str(seed), *(f"--{k}={v}" for k, v in COUNTS.items())])
    return out


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("digits"))


def test_handwriting_is_split_by_sample_and_evenly_over_digits() -> None:
    splits = handwriting_splits(1)
    samples = [sample for split in splits.values() for digit in split for sample in digit]
    assert sorted(samples) == list(range(1797))
    for split in splits.values():
        for digit, numbers in enumerate(split):
            assert (load_digits().target[numbers] == digit).all()
    assert all(len(digit) == 20 for split in ("valid", "test") for digit in splits[split])
    assert [list(digit) for digit in handwriting_splits(2)["test"]] != [list(d) for d in splits["test"]]


@given(scenes)
@settings(max_examples=50, deadline=None)
def test_boxes_are_tight_around_what_is_drawn_and_no_two_digits_touch(scene: Scene) -> None:
    background = np.asarray(draw(replace(scene, digits=()))).astype(int)
    changed = np.abs(np.asarray(draw(scene)).astype(int) - background).max(axis=-1) > 3
    inked = np.zeros_like(changed)
    for digit in scene.digits:
        x0, y0, x1, y1 = digit.box
        row, column = divmod(QUADRANTS.index(digit.quadrant), 2)
        assert 32 * column < x0 < x1 < 32 * column + 32, "a free column on each side in the quadrant"
        assert 32 * row < y0 < y1 < 32 * row + 32, "a free row on each side in the quadrant"
        ys, xs = np.nonzero(changed[32 * row : 32 * row + 32, 32 * column : 32 * column + 32])
        assert (xs.min(), ys.min()) == (x0 - 32 * column, y0 - 32 * row)
        assert (xs.max() + 1, ys.max() + 1) == (x1 - 32 * column, y1 - 32 * row)
        inked[y0:y1, x0:x1] = True
    assert not (changed & ~inked).any(), "nothing but digits is drawn on the background"


@given(scenes)
@settings(max_examples=50, deadline=None)
def test_a_scene_survives_json(scene: Scene) -> None:
    assert Scene.from_json(scene.to_json()) == scene


def _digits_in(data: Path, split: str) -> list[tuple[Image.Image, dict]]:
    """Each digit of a split as it can be cut out of the written pictures, with its truth as it is written."""
    pictures = dict(TsvFile(data / f"{split}.tsv", [1, 4])[row] for row in range(COUNTS[split]))
    lines = (data / f"scenes_{split}.jsonl").read_text().splitlines()
    return [
        (decode_image(pictures[scene["image_id"]], data).crop(digit["box"]), digit)
        for scene in map(json.loads, lines)
        for digit in scene["digits"]
    ]


def test_colours_and_sizes_can_be_told_apart_in_the_written_pictures(data: Path) -> None:
    """The brightest pixels of a digit are nearest to the colour of its name; large is much larger than small."""
    palette = np.array(list(COLOURS.values()))
    heights: dict[str, list[int]] = {"large": [], "small": []}
    for crop, digit in _digits_in(data, "train"):
        pixels = np.asarray(crop).reshape(-1, 3).astype(int)
        ink = pixels[np.argsort(pixels.max(axis=1))[-15:]].mean(axis=0)
        assert list(COLOURS)[np.square(palette - ink).sum(axis=1).argmin()] == digit["colour"]
        heights[digit["size"]].append(crop.height)
    assert min(heights["large"]) > 1.4 * max(heights["small"])


def test_digits_can_be_read_by_a_classifier_that_saw_other_handwriting() -> None:
    def features(split: str, count: int) -> tuple[np.ndarray, list[int]]:
        crops, labels = [], []
        for scene in random_scenes(split, count, seed=1):
            for digit in scene.digits:
                crop = np.asarray(draw(scene).crop(digit.box).resize((12, 16))).max(axis=-1) / 255
                crops.append([*crop.ravel(), (digit.box[2] - digit.box[0]) / (digit.box[3] - digit.box[1])])
                labels.append(digit.digit)
        return np.array(crops), labels

    reader = SVC(C=5).fit(*features("train", 800))
    assert reader.score(*features("test", 200)) > 0.95


def test_scenes_do_not_depend_on_how_many_are_made() -> None:
    assert list(random_scenes("test", 3, 1)) == list(random_scenes("test", 5, 1))[:3]
    counts = [len(scene.digits) for scene in random_scenes("valid", 400, 1)]
    assert min(counts.count(number) for number in (1, 2, 3, 4)) > 70


@given(scenes)
@settings(max_examples=100, deadline=None)
def test_five_different_short_captions_that_the_released_pipeline_leaves_alone(scene: Scene) -> None:
    texts = captions(scene)
    assert len(set(texts)) == 5
    for text in texts:
        assert len(text.split(" ")) <= 30, "longer training captions are cut"
        assert text == " ".join(text.lower().split())
        assert not set(text) & set(string.punctuation)


@pytest.mark.parametrize("name", FILES)
def test_files_have_the_released_columns(data: Path, name: str) -> None:
    split = FILES[name]
    truth = read_scenes(data / f"scenes_{split}.jsonl")
    tsv = TsvFile(data / name)
    assert len(tsv) == len(truth) == COUNTS[split]
    for row, scene in enumerate(truth.values()):
        uniq_id, image_id, texts, labels, image = tsv[row]
        assert (uniq_id, image_id) == (str(row), scene.image_id)
        assert labels.split("&&") == [f"{digit.size} {digit.colour} {digit.word}" for digit in scene.digits]
        assert decode_image(image, data).size == (64, 64)
        if name == "train.tsv":
            assert texts in captions(scene)
        else:
            assert texts.split("&&") == captions(scene)


def test_training_captions_use_all_phrasings(data: Path) -> None:
    truth = list(read_scenes(data / "scenes_train.jsonl").values())
    chosen = {
        captions(scene).index(TsvFile(data / "train.tsv", [2])[row][0]) for row, scene in enumerate(truth)
    }
    assert chosen == {0, 1, 2, 3, 4}


def test_image_ids_are_unique_over_the_splits(data: Path) -> None:
    ids = [image_id for split in COUNTS for image_id in read_scenes(data / f"scenes_{split}.jsonl")]
    assert len(set(ids)) == sum(COUNTS.values())


def test_every_word_of_captions_and_prompts_is_one_piece(data: Path) -> None:
    pieces = SentencePieceProcessor(model_file=str(data / "sentencepiece.model"))
    texts = list(vocabulary_texts(random_scenes("train", 200, 1)))
    words = {word.strip('"?:.') for text in texts for word in text.split()} - {"", "text1", "text2"}
    assert len(words) > 100
    assert [word for word in words if len(pieces.encode(" " + word)) != 1] == []


def test_the_same_settings_give_the_same_files_and_a_finished_folder_is_left_alone(
    data: Path, tmp_path: Path
) -> None:
    again = make(tmp_path / "again")
    names = sorted(path.name for path in data.iterdir() if path.suffix != ".ofa_index")
    assert {*FILES, "contact_sheet.png", "settings.json", "dict.txt", "sentencepiece.model"} < set(names)
    assert [(again / name).read_bytes() for name in names] == [(data / name).read_bytes() for name in names]

    (again / "valid.tsv").write_text("mine")
    make(again)
    assert (again / "valid.tsv").read_text() == "mine"
    (again / "settings.json").unlink()  # as an interrupted run leaves it
    make(again)
    assert (again / "valid.tsv").read_bytes() == (data / "valid.tsv").read_bytes()
    make(again, seed=2)
    assert (again / "valid.tsv").read_bytes() != (data / "valid.tsv").read_bytes()


def test_an_empty_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="at least one scene"):
        main(["digits", "--out", str(tmp_path), "--valid", "0"])
