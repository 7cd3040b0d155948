"""Hints beside the reasons for which rows can't be used."""

from pathlib import Path

import pytest
from task_builders import bad_rows, dataset_of, picture

from ofa_fairseq.tasks.row_hints import with_hint

HEADER = " (this looks like a header: files start with their first row, without one)"
SWAPPED = " (do question and answer stand in each other's columns?)"


@pytest.mark.parametrize(
    ("columns", "row", "hint"),
    [
        ("id picture question answer", ["id", "picture", "question", "answer"], HEADER),
        ("id picture phrase region", ["uniq-id", "image_base64", "Text", "Box"], HEADER),
        ("id review mood", ["nr", "Review", "feeling"], HEADER),
        ("id picture question answer", ["7", "picture", "question", "answer"], ""),
        ("id picture caption", ["cat", "broken", "sleeping"], ""),
        ("id picture caption", ["photo", "broken.jpg", "sleeping"], ""),
        ("id picture question answer", ["7", "x.jpg", "red", "What colour is it? "], SWAPPED),
        ("id picture question answer", ["7", "x.jpg", "1.0|!+red&&0.3|!+pink", "what colour?"], SWAPPED),
        ("id picture question answer", ["7", "x.jpg", "who said it?", "who?"], ""),
        ("id picture question answer", ["7", "x.jpg", "what colour", "red"], ""),
        ("id picture caption", ["7", "x.jpg", "what?"], ""),
    ],
)
def test_hints(columns: str, row: list[str], hint: str) -> None:
    assert with_hint("reason", dict(zip(columns.split(), row, strict=True))) == f"reason{hint}"


def test_a_header_is_a_bad_row_that_is_known_as_one(tmp_path: Path, sentencepiece_dir: Path) -> None:
    rows = [["id", "image", "question", "answer", "objects"], ["0", picture(), "what?", "red", ""]]
    dataset = dataset_of("vqa", tmp_path, rows, sentencepiece_dir)
    assert dataset[1] is not None
    (reason,) = bad_rows(tmp_path)
    assert reason.endswith(HEADER)


def test_swapped_columns_are_known_where_no_row_can_be_used(tmp_path: Path, sentencepiece_dir: Path) -> None:
    rows = [["0", picture(), "red", "what colour?", ""]]
    flags = ("--ans2label-dict", '["red", "blue"]')
    with pytest.raises(ValueError, match=r"no answer of 'what colour\?' is in the answer list \(do question"):
        dataset_of("vqa", tmp_path, rows, sentencepiece_dir, *flags)
