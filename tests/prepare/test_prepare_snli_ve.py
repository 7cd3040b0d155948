"""The SNLI-VE conversion, on small files in the public format."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conversion_helpers import prepare, read_lines, read_rows, shows, write_picture


def pair(number: int, image: str, hypothesis: str, label: str, **changes: Any) -> dict[str, Any]:
    premise = "A brown dog\truns over a lawn ."
    return {
        "annotator_labels": [label] * 5,
        "captionID": f"{image}.jpg#2",
        "Flickr30K_ID": image,
        "gold_label": label,
        "pairID": f"{image}.jpg#2r{number}e",
        "sentence1": premise,
        "sentence1_parse": "(ROOT)",
        "sentence2": hypothesis,
        **changes,
    }


PAIRS = {
    "train": [
        pair(0, "77", "A dog is  outside .", "entailment"),
        pair(1, "78", "A cat sleeps.", "contradiction"),
        pair(2, "77", "Nobody agrees.", "-"),
        pair(3, "77", " \t", "neutral"),
        pair(4, "77", "Is it so?", "neutral", sentence1=""),
        pair(5, "79", "There is no such picture.", "neutral"),
    ],
    "dev": [pair(6, "78", "The dog has an owner.", "neutral")],
}


@pytest.fixture
def convert(tmp_path: Path) -> Callable[..., Path]:
    write_picture(tmp_path / "images" / "77.jpg", 20, 30)
    write_picture(tmp_path / "images" / "flickr30k-images" / "78.jpg", 30, 20)

    def run(files: list[Path]) -> Path:
        prepare("snli_ve", annotations=files, images=tmp_path / "images", out=tmp_path / "out")
        return tmp_path / "out"

    return run


def write_pairs(folder: Path, split: str, pairs: list[dict[str, Any]]) -> Path:
    path = folder / f"snli_ve_{split}.jsonl"
    path.write_text("".join(json.dumps(entry) + "\n" for entry in pairs) + "\n", encoding="utf-8")
    return path


def test_rows_of_each_split(convert: Callable[..., Path], tmp_path: Path) -> None:
    out = convert([write_pairs(tmp_path, split, pairs) for split, pairs in PAIRS.items()])
    premise = "A brown dog runs over a lawn ."
    dog, cat = read_rows(out / "snli_ve_train.tsv")
    assert dog[:2] + dog[3:] == ["77.jpg#2r0e", "77", "A dog is outside .", premise, "entailment"]
    assert cat[:2] + cat[3:] == ["78.jpg#2r1e", "78", "A cat sleeps.", premise, "contradiction"]
    assert shows(dog[2], tmp_path / "images" / "77.jpg")
    (owner,) = read_rows(out / "snli_ve_dev.tsv")
    assert owner == ["78.jpg#2r6e", "78", cat[2], "The dog has an owner.", premise, "neutral"]
    assert not (out / "snli_ve_test.tsv").exists()
    assert [line[0] for line in read_lines(out / "missing_images.txt")] == ["79"]
    assert read_lines(out / "left_out_rows.txt") == [
        ["77.jpg#2r2e", "no gold label", "train"],
        ["77.jpg#2r3e", "no hypothesis", "train"],
        ["77.jpg#2r4e", "no premise", "train"],
    ]


def test_the_other_published_spelling_of_the_picture_id(convert: Callable[..., Path], tmp_path: Path) -> None:
    entry = pair(0, "77", "A dog is outside.", "entailment")
    entry["Flikr30kID"] = entry.pop("Flickr30K_ID") + ".jpg"
    assert read_rows(convert([write_pairs(tmp_path, "test", [entry])]) / "snli_ve_test.tsv")[0][1] == "77"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"pairID": "a"}', "KeyError"),
        (b'{"pairID": ', "JSONDecodeError"),
        (b"[1, 2]", "TypeError"),
        (b'{"pairID": "\xff"}', "UnicodeDecodeError"),
        (json.dumps(pair(0, "77", "A dog.", "entails")).encode(), "gold_label 'entails'"),
        (json.dumps(pair(0, "77", "A dog.", "neutral", sentence2=None)).encode(), "AttributeError"),
    ],
)
def test_a_bad_line_is_named(convert: Callable[..., Path], tmp_path: Path, line: bytes, reason: str) -> None:
    path = write_pairs(tmp_path, "dev", PAIRS["dev"])
    path.write_bytes(path.read_bytes() + line + b"\n")  # after an empty line
    with pytest.raises(SystemExit, match=rf"snli_ve_dev\.jsonl, line 3: expected an SNLI-VE pair .*{reason}"):
        convert([path])
    assert not (tmp_path / "out").exists()


def test_file_names_tell_the_splits(convert: Callable[..., Path], tmp_path: Path) -> None:
    path = write_pairs(tmp_path, "dev", PAIRS["dev"])
    with pytest.raises(SystemExit, match="both of the dev split"):
        convert([path, path])
    with pytest.raises(SystemExit, match="pairs.jsonl: expected a file name that tells the split"):
        convert([path.rename(tmp_path / "pairs.jsonl")])
