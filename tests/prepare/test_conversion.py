"""What all converters have in common, on a plan of a few rows."""

import argparse
import base64
import logging
from pathlib import Path
from typing import Any

import pytest
from conversion_helpers import read_lines, read_rows, shows, write_picture
from hypothesis import given
from hypothesis import strategies as st

from ofa_fairseq.data.images import decode_image
from ofa_fairseq.prepare import conversion, parts
from ofa_fairseq.prepare.annotation_files import coco_files, expecting, without_separator
from ofa_fairseq.prepare.conversion import convert
from ofa_fairseq.prepare.plan import Picture, Plan, Row


@pytest.fixture
def args(tmp_path: Path) -> argparse.Namespace:
    """Options of a conversion of a/1.jpg and b/2.jpg."""
    write_picture(tmp_path / "a" / "1.jpg", 40, 30)
    write_picture(tmp_path / "b" / "deep" / "2.jpg", 20, 50)
    parser = argparse.ArgumentParser()
    conversion.add_arguments(parser)
    folders = [str(tmp_path / "a"), str(tmp_path / "b")]
    return parser.parse_args(["--images", *folders, "--out", str(tmp_path / "new" / "out"), "--workers=1"])


@pytest.fixture
def plan() -> Plan:
    plan = Plan()
    plan.add(
        Picture("one", ("absent.jpg", "1.jpg"), (40, 30)),
        Row("x.tsv", ("r0", "one"), ("a\ttab\r\nhere\ud83d",)),
    )
    plan.add(Picture("two", ("deep/2.jpg",)), Row("x.tsv", ("r1", "two"), ("",)))
    plan.add(Picture("one", ("1.jpg",)), Row("y.tsv", ("r2", "one")))
    return plan


def test_each_row_has_its_picture_in_its_place(args: argparse.Namespace, plan: Plan, tmp_path: Path) -> None:
    assert convert("name", plan, args) == set()
    first, second = read_rows(args.out / "x.tsv")
    assert (first[:2], first[3:]) == (["r0", "one"], ["a tab here?"])
    assert shows(first[2], tmp_path / "a" / "1.jpg")
    assert (second[:2], second[3:]) == (["r1", "two"], [""])
    assert shows(second[2], tmp_path / "b" / "deep" / "2.jpg")
    assert read_rows(args.out / "y.tsv") == [["r2", "one", first[2]]]
    assert {path.name for path in args.out.glob("*.t*")} >= {"missing_images.txt", "left_out_rows.txt"}
    assert not [path for path in args.out.iterdir() if path.name.startswith(".")], "no parts are left"


def test_paths_are_relative_to_the_tsv(args: argparse.Namespace, plan: Plan, tmp_path: Path) -> None:
    args.paths = True
    convert("name", plan, args)
    value = read_rows(args.out / "x.tsv")[1][2]
    assert (args.out / value).resolve() == tmp_path / "b" / "deep" / "2.jpg"
    assert decode_image(value, args.out).size == (20, 50)


def test_unusable_pictures_and_rows_are_reported(
    args: argparse.Namespace, plan: Plan, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plan.add(Picture("small", ("deep/2.jpg",), (20, 51)), Row("x.tsv", ("r3", "small")))
    plan.add(Picture("cut", ("cut.jpg",)), Row("x.tsv", ("r4", "cut")))
    plan.add(Picture("gone", ("deep/gone.jpg", "gone.jpg")), Row("x.tsv", ("r5", "gone")))
    plan.leave_out("r6", "no text", "a\tdetail")
    plan.leave_out("r7", "no text")
    (tmp_path / "b" / "cut.jpg").write_bytes((tmp_path / "a" / "1.jpg").read_bytes()[:-100])
    with caplog.at_level(logging.INFO):
        assert convert("name", plan, args) == {"small", "cut", "gone"}
    size, cut, gone = read_lines(args.out / "missing_images.txt")
    assert (size[0], size[2]) == (
        "small",
        "another picture than annotated: 20 x 50 pixels, annotated as 20 x 51",
    )
    assert cut[:2] == ["cut", str(tmp_path / "b" / "cut.jpg")]
    assert "truncated" in cut[2]
    assert gone == ["gone", "deep/gone.jpg", f"no such file in {tmp_path / 'a'}, {tmp_path / 'b'}"]
    assert read_lines(args.out / "left_out_rows.txt") == [["r6", "no text", "a detail"], ["r7", "no text"]]
    assert [row[0] for row in read_rows(args.out / "x.tsv")] == ["r0", "r1"]
    assert "left out: 3 of 5 pictures and their 3 rows" in caplog.text
    assert "left out: 2 with no text" in caplog.text
    assert "x.tsv: 2 rows" in caplog.text


def test_what_is_complete_is_kept_until_something_changes(
    args: argparse.Namespace, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert("name", plan, args)
    with monkeypatch.context() as patch:
        patch.setattr(conversion, "make_parts", _fail)
        convert("name", plan, args)
        for change in (
            lambda: setattr(args, "paths", True),
            lambda: plan.leave_out("r6", "no text"),
            lambda: plan.add(Picture("one", ()), Row("y.tsv", ("r8",))),
            lambda: args.images.reverse(),
        ):
            change()
            with pytest.raises(AssertionError, match="made anew"):
                convert("name", plan, args)
        with pytest.raises(AssertionError, match="made anew"):
            convert("other name", plan, args)


def _fail(*_: Any) -> None:
    raise AssertionError("made anew")


def test_an_interruption_leaves_no_half_file_and_goes_on_without_the_pictures(
    args: argparse.Namespace, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows_of_parts = conversion.read_rows

    def interrupted(folder: Path) -> Any:
        yield next(rows_of_parts(folder))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(conversion, "read_rows", interrupted)
        with pytest.raises(KeyboardInterrupt):
            convert("name", plan, args)
    assert not list(args.out.glob("*.tsv"))
    (tmp_path / "a" / "1.jpg").unlink()
    assert convert("name", plan, args) == set()
    assert [row[0] for row in read_rows(args.out / "x.tsv")] == ["r0", "r1"]
    assert len(base64.urlsafe_b64decode(read_rows(args.out / "y.tsv")[0][2])) > 0


def test_only_what_lacked_a_picture_is_read_again(
    args: argparse.Namespace, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parts are of two pictures here; the third is missing."""
    monkeypatch.setattr(parts, "PART_SIZE", 2)
    for number, name in enumerate(("three", "four", "five"), start=3):
        plan.add(Picture(name, (f"{number}.jpg",)), Row("x.tsv", (f"r{number}", name), ("",)))
        write_picture(tmp_path / "a" / f"{number}.jpg", 10, 10)
    third = tmp_path / "a" / "3.jpg"
    kept = third.rename(tmp_path / "away.jpg")
    assert convert("name", plan, args) == {"three"}
    assert [row[0] for row in read_rows(args.out / "x.tsv")] == ["r0", "r1", "r4", "r5"]

    kept.rename(third)
    for name in ("1.jpg", "5.jpg"):  # of other parts
        (tmp_path / "a" / name).unlink()
    assert convert("name", plan, args) == set()
    assert [row[0] for row in read_rows(args.out / "x.tsv")] == ["r0", "r1", "r3", "r4", "r5"]
    assert read_lines(args.out / "missing_images.txt") == []
    assert not [path for path in args.out.iterdir() if path.name.startswith(".")], "no parts are left"


def test_nothing_to_write_is_an_error(args: argparse.Namespace, plan: Plan, tmp_path: Path) -> None:
    empty = Plan()
    empty.leave_out("r0", "no text")
    with pytest.raises(ValueError, match=r"no row can be used: see .*left_out_rows\.txt"):
        convert("name", empty, args)
    args.images = [tmp_path / "new"]
    with pytest.raises(ValueError, match=r"no picture can be used: see .*missing_images\.txt"):
        convert("name", plan, args)
    args.images.append(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"--images .*nowhere: expected a folder"):
        convert("name", plan, args)


@given(st.lists(st.text(alphabet=" &\t\n\u00a0ab", max_size=8), min_size=1, max_size=4))
def test_texts_without_separators_can_be_joined(texts: list[str]) -> None:
    clean = list(map(without_separator, texts))
    assert "&&".join(clean).split("&&") == clean
    assert all(text == " ".join(text.split()) for text in clean)


def test_pictures_of_coco_are_found_under_both_names() -> None:
    files = coco_files("COCO_val2014_000000000042.jpg")
    assert files[0] == "val2014/COCO_val2014_000000000042.jpg"
    assert "train2017/000000000042.jpg" in files
    assert coco_files("4705552913.jpg") == ("4705552913.jpg",)


def test_errors_name_the_file_and_what_was_expected(tmp_path: Path) -> None:
    message = r"x\.jsonl, line 7: expected a pair; got KeyError\('id'\)"
    with pytest.raises(ValueError, match=message), expecting("a pair", Path("x.jsonl"), 7):
        raise KeyError("id")
    with pytest.raises(FileNotFoundError), expecting("a pair", tmp_path):
        (tmp_path / "absent").read_text()
