"""The folder of drawings: every file is the one that the list names for its sample, whatever captions and ids are."""

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ofa_fairseq.drawing.drawing_folder import DrawingFolder
from ofa_fairseq.drawing.drawn_pictures import read_drawn_pictures

Row = tuple[str, str]  # id, caption


def shade(number: int) -> Image.Image:
    """A picture of its own for each number from 0 to 65,535."""
    return Image.new("RGB", (8, 8), (number % 256, number // 256, 7))


def add(folder: DrawingFolder, rows: list[Row], samples: int = 2, first: int = 0) -> None:
    """Each row's samples have pictures (see `shade`) and scores that are numbered on."""
    for row, (key, caption) in enumerate(rows):
        numbers = range(first + row * samples, first + (row + 1) * samples)
        folder.add(key, caption, [(shade(n), float(n)) for n in numbers])


def assert_lists(path: Path, rows: list[Row], samples: int = 2, first: int = 0) -> None:
    """The list has these rows' samples, in order, with files that show them."""
    drawn = read_drawn_pictures(path)
    assert [(d.id, d.caption, d.rank) for d in drawn] == [
        (key, caption, rank) for key, caption in rows for rank in range(samples)
    ]
    for number, picture in enumerate(drawn, start=first):
        assert picture.score == number
        assert np.array_equal(np.asarray(picture.load()), np.asarray(shade(number))), picture
        if picture.rank == 0:
            best = picture.path.parents[1] / "top1" / picture.path.name
            assert best.read_bytes() == picture.path.read_bytes()


def names(folder: Path) -> list[str]:
    """Those of the best samples, without what all have."""
    return sorted(path.name.removesuffix("_0.png") for path in (folder / "top1").iterdir())


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([("1", "a cat"), ("2", "a dog")], ["a cat", "a dog"]),
        ([("1", "black/white"), ("2", "/")], ["", "blackwhite"]),
        ([("1", "../../etc"), ("2", "..")], ["..", "....etc"]),
        ([("1", "a cat"), ("2", "a cat"), ("3/4", "a cat")], ["a cat", "a cat (2)", "a cat (34)"]),
        ([("1", "a cat"), ("1", "a cat"), ("1", "a cat")], ["a cat", "a cat (1)", "a cat (1) 2"]),
        ([("1", "a/cat"), ("2", "acat")], ["acat", "acat (2)"]),
        # macOS and Windows take these for one name.
        ([("1", "A cat"), ("2", "a cat")], ["A cat", "a cat (2)"]),
        # A caption that looks like another one with its id.
        ([("5", "a cat (2)"), ("1", "a cat"), ("2", "a cat")], ["a cat", "a cat (2)", "a cat (2) 2"]),
        ([("1", "ein großer Löwe"), ("2", "一只猫 🐈")], ["ein großer Löwe", "一只猫 🐈"]),
    ],
)
def test_names(rows: list[Row], expected: list[str], tmp_path: Path) -> None:
    add(DrawingFolder(tmp_path), rows)
    assert names(tmp_path) == expected
    assert len(list((tmp_path / "all_results").iterdir())) == 2 * len(rows)
    assert_lists(tmp_path / "pictures.tsv", rows)


@pytest.mark.parametrize("letter", ["x", "ö", "猫", "🐈"])
def test_long_captions_and_ids(letter: str, tmp_path: Path) -> None:
    """The longest name of a file on Linux has 255 bytes; captions that differ after that stay apart."""
    long = letter * 400
    rows = [("1", long), (long, long), (long, long + " too"), ("3", long + " three")]
    add(DrawingFolder(tmp_path), rows, samples=11)
    assert_lists(tmp_path / "pictures.tsv", rows, samples=11)
    files = os.listdir(tmp_path / "all_results")
    assert len(files) == 4 * 11
    assert max(len(os.fsencode(name)) for name in files) <= 255
    assert all(name.startswith(letter) for name in files)
    assert all("\ufffd" not in name and set(letter) <= set(name) for name in files)  # no half letters


# What a row of a TSV file can hold; the task puts one space for all white space between words.
words = st.lists(st.text(st.sampled_from("aAß()/12 .猫"), min_size=1, max_size=4), min_size=1, max_size=3)
captions = words.map(lambda parts: " ".join(" ".join(parts).split())).filter(bool)
some_rows = st.lists(
    st.tuples(st.text(st.sampled_from("12/() "), min_size=1, max_size=3), captions), max_size=8
)


@given(some_rows.filter(bool))
def test_no_row_loses_its_files(tmp_path_factory: pytest.TempPathFactory, rows: list[Row]) -> None:
    folder = tmp_path_factory.mktemp("drawings")
    add(DrawingFolder(folder), rows)
    assert_lists(folder / "pictures.tsv", rows)


def test_columns_of_the_list(tmp_path: Path) -> None:
    DrawingFolder(tmp_path).add("7", "a big dog", [(shade(1), 0.25), (shade(2), float("nan"))])
    assert (tmp_path / "pictures.tsv").read_text().splitlines() == [
        "id\tcaption\trank\tscore\tpath",
        "7\ta big dog\t0\t0.25\tall_results/a big dog_0.png",
        "7\ta big dog\t1\tnan\tall_results/a big dog_1.png",
    ]


def test_the_folder_can_be_moved(tmp_path: Path) -> None:
    rows = [("1", "a cat"), ("2", "a dog")]
    add(DrawingFolder(tmp_path / "here" / "deep"), rows)
    (tmp_path / "here").rename(tmp_path / "there")
    assert_lists(tmp_path / "there" / "deep" / "pictures.tsv", rows)


def test_processes_do_not_disturb_each_other(tmp_path: Path) -> None:
    """Two have captions in common, with other ids; rows come in turns."""
    rows = [
        [("1", "a cat"), ("2", "a dog")],
        [("3", "a cat"), ("4", "a dog")],
        [("5", "a cat"), ("6", "a cow")],
    ]
    folders = [DrawingFolder(tmp_path, rank) for rank in range(3)]
    for row in range(2):
        for rank, folder in enumerate(folders):
            add(folder, rows[rank][row : row + 1], first=100 * rank + 2 * row)
    assert_lists(tmp_path / "pictures.tsv", rows[0])
    assert_lists(tmp_path / "pictures.1.tsv", rows[1], first=100)
    assert_lists(tmp_path / "pictures.2.tsv", rows[2], first=200)
    assert names(tmp_path) == ["a cat", "a cat (3)", "a cat (5)", "a cow (6)", "a dog", "a dog (4)"]


def test_a_second_run_begins_its_list_anew(tmp_path: Path) -> None:
    first, second = [("1", "a cat"), ("2", "a dog"), ("3", "a dog")], [("3", "a dog"), ("1", "a cat")]
    add(DrawingFolder(tmp_path), first, samples=3)
    add(DrawingFolder(tmp_path), second, first=100)
    assert_lists(tmp_path / "pictures.tsv", second, first=100)


def test_what_an_interrupted_run_lists_is_there(tmp_path: Path) -> None:
    """A picture that can't be written leaves a list that can be read."""
    folder = DrawingFolder(tmp_path)
    add(folder, [("1", "a cat")])
    unwritable = Image.new("CMYK", (8, 8))  # no PNG can be
    with pytest.raises(OSError, match="CMYK"):
        folder.add("2", "a dog", [(shade(9), 1.0), (unwritable, 0.0)])
    assert_lists(tmp_path / "pictures.tsv", [("1", "a cat")])
