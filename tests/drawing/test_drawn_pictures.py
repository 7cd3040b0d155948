import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ofa_fairseq.data.images import ImageError
from ofa_fairseq.data.tsv import RowError
from ofa_fairseq.drawing.drawn_pictures import DrawnPicture, read_drawn_pictures, write_drawn_pictures

HEADER = "id\tcaption\trank\tscore\tpath\n"

columns = st.text(st.characters(codec="utf-8", exclude_characters="\t\n\r"))
scores = st.floats(allow_nan=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one picture of one colour in a folder of its own."""
    folder = tmp_path_factory.mktemp("drawn")
    (folder / "pictures").mkdir()
    Image.new("RGB", (4, 3), (10, 20, 30)).save(folder / "pictures" / "one.png")
    return folder


@given(st.lists(st.tuples(columns, columns, st.integers(0, 99), scores), min_size=1, max_size=5))
def test_what_was_written_is_read(folder: Path, rows: list[tuple[str, str, int, float]]) -> None:
    pictures = [DrawnPicture(*row, folder / "pictures" / "one.png") for row in rows]
    write_drawn_pictures(folder / "list.tsv", pictures)
    assert read_drawn_pictures(folder / "list.tsv") == pictures


def test_pictures_that_were_not_ranked_have_no_number_as_score(folder: Path, tmp_path: Path) -> None:
    write_drawn_pictures(
        tmp_path / "list.tsv", [DrawnPicture("1", "", 0, float("nan"), folder / "pictures" / "one.png")]
    )
    assert np.isnan(read_drawn_pictures(tmp_path / "list.tsv")[0].score)


def test_the_folder_can_be_moved(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)  # the list and the pictures may be named relative to where one is
    write_drawn_pictures("moved.tsv", [DrawnPicture("1", "a dog", 0, 0.5, Path("pictures/one.png"))])
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folder, tmp_path / "there")
    picture = read_drawn_pictures("there/moved.tsv")[0]
    assert picture.path == tmp_path / "there" / "pictures" / "one.png"
    assert np.array(picture.load()).tolist() == [[[10, 20, 30]] * 4] * 3


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("1\ta dog\tfirst\t0.5\tpictures/one.png", "expected a rank from 0 on, got 'first'"),
        ("1\ta dog\t-1\t0.5\tpictures/one.png", "expected a rank from 0 on, got '-1'"),
        ("1\ta dog\t0\tgood\tpictures/one.png", "expected a number as score, got 'good'"),
        ("1\ta dog\t0\t0.5\tpictures/two.png", "there is no picture file .*two.png"),
        ("1\ta dog\t0\t0.5\tpictures", "there is no picture file .*pictures"),
        ("1\ta dog\t0\t0.5", "has 4 columns, other rows have 5"),
    ],
)
def test_a_bad_row_is_named(folder: Path, line: str, reason: str) -> None:
    bad = folder / "bad.tsv"
    bad.write_text(HEADER + "1\ta dog\t0\t0.5\tpictures/one.png\n" + line + "\n")
    with pytest.raises(RowError, match=f"bad.tsv, row 3: {reason}"):
        read_drawn_pictures(bad)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("1\ta dog\t0\t0.5\tpictures/one.png\n", "other.tsv, row 1: expected the header id, caption, rank"),
        ("a line of text", "other.tsv, row 1: expected the header id, caption, rank"),
        (HEADER, "other.tsv: expected pictures below the header"),
    ],
)
def test_another_file_is_refused(folder: Path, text: str, reason: str) -> None:
    (folder / "other.tsv").write_text(text)
    with pytest.raises(ValueError, match=reason):
        read_drawn_pictures(folder / "other.tsv")


def test_a_column_that_would_break_the_list_leaves_the_old_one(folder: Path) -> None:
    good = DrawnPicture("1", "a dog", 0, 0.5, folder / "pictures" / "one.png")
    write_drawn_pictures(folder / "kept.tsv", [good])
    with pytest.raises(ValueError, match=r"can't hold a tab or a line break, got 'a\\tcat'"):
        write_drawn_pictures(folder / "kept.tsv", [good, good._replace(caption="a\tcat")])
    assert read_drawn_pictures(folder / "kept.tsv") == [good]


def test_a_broken_picture_is_found_when_it_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(ImageError, match="not an image in a known format"):
        DrawnPicture("1", "a dog", 0, 0.0, tmp_path / "broken.png").load()
