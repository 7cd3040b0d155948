"""The COCO conversion, on small annotation files in the public formats."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conversion_helpers import prepare, read_lines, read_rows, shows, write_picture
from PIL import Image
from pycocotools.coco import COCO

from ofa_fairseq.data.images import decode_image
from ofa_fairseq.prepare import conversion

# split, cocoid, captions as annotated
KARPATHY = [
    ("train", 9, ["A boy\tfeeds two goats.", "Two  goats eat\nfrom a child's hand. "]),
    ("restval", 25, ["Salt && Pepper", "Tea&&&&milk"]),
    ("val", 30, ["A Zebra"]),
    ("test", 42, ["A GIRAFFE Eating", "  ", "The giraffe"]),
    ("test", 61, ["A truncated picture"]),
    ("test", 73, ["A missing picture"]),
    ("train", 77, ["No picture but text"]),
    ("val", 80, [" \n"]),
]
CLEAN = {
    9: ["a boy feeds two goats.", "two goats eat from a child's hand."],
    25: ["salt and pepper", "tea and milk"],
    30: ["a zebra"],
    42: ["a giraffe eating", "the giraffe"],
}


def folder_of(split: str) -> str:
    return "train2014" if split == "train" else "val2014"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    root = tmp_path / "images"
    for split, cocoid, _ in KARPATHY:
        path = root / folder_of(split) / f"{cocoid:012}.jpg"
        write_picture(path, cocoid, cocoid)
        if cocoid == 61:
            path.write_bytes(path.read_bytes()[:-300])
        elif cocoid == 77:
            path.write_bytes(b"a text")
        elif cocoid == 73:
            path.unlink()
    return root


@pytest.fixture
def karpathy(tmp_path: Path) -> Path:
    entries = [
        {
            "filepath": folder_of(split),
            "filename": f"{cocoid:012}.jpg",
            "imgid": index,
            "split": split,
            "sentences": [{"raw": text, "tokens": [], "sentid": 0, "imgid": index} for text in texts],
            "cocoid": cocoid,
        }
        for index, (split, cocoid, texts) in enumerate(KARPATHY)
    ]
    path = tmp_path / "dataset_coco.json"
    path.write_text(json.dumps({"images": entries, "dataset": "coco"}))
    return path


@pytest.fixture
def official(tmp_path: Path) -> list[Path]:
    paths = []
    for part in ("train", "val"):
        entries = [(cocoid, texts) for split, cocoid, texts in KARPATHY if folder_of(split) == f"{part}2014"]
        annotations = [{"image_id": cocoid, "caption": text} for cocoid, texts in entries for text in texts]
        content = {
            "info": {},
            "images": [{"id": cocoid, "file_name": f"{cocoid:012}.jpg"} for cocoid, _ in entries],
            "annotations": [{"id": index, **annotation} for index, annotation in enumerate(annotations)],
        }
        paths.append(tmp_path / f"captions_{part}2014.json")
        paths[-1].write_text(json.dumps(content))
    return paths


@pytest.fixture
def convert(tmp_path: Path, images: Path) -> Callable[..., Path]:
    def run(out: str = "out", **options: Any) -> Path:
        prepare("coco", images=images, out=tmp_path / out, **options)
        return tmp_path / out

    return run


@pytest.mark.parametrize("source", ["karpathy", "official"])
def test_files_of_the_karpathy_splits(
    convert: Callable[..., Path], images: Path, karpathy: Path, official: list[Path], source: str
) -> None:
    official_files = {"annotations": official, "split_file": karpathy}
    out = convert(**({"annotations": karpathy} if source == "karpathy" else official_files))
    expected = {
        "caption_stage1_train.tsv": [(i, text) for i in (9, 25) for text in CLEAN[i]],
        "caption_stage2_train.tsv": [(i, "&&".join(CLEAN[i])) for i in (9, 25)],
        "caption_val.tsv": [(30, "a zebra")],
        "caption_test.tsv": [(42, "a giraffe eating&&the giraffe")],
    }
    for name, pairs in expected.items():
        rows = read_rows(out / name)
        numbers = [int(row[0]) for row in rows]
        assert numbers == sorted(set(numbers))
        for row, (cocoid, text) in zip(rows, pairs, strict=True):
            assert row[1:4] == [str(cocoid), text, ""]
            (file,) = images.glob(f"*/{cocoid:012}.jpg")
            assert shows(row[4], file)
    assert not list(out.glob(".*")), "no parts are left"


def test_what_is_unusable_is_listed_with_the_reason(convert: Callable[..., Path], karpathy: Path) -> None:
    out = convert(annotations=karpathy)
    assert read_lines(out / "left_out_rows.txt") == [["80", "no caption", "val2014/000000000080.jpg"]]
    reasons = {image_id: reason for image_id, _, reason in read_lines(out / "missing_images.txt")}
    assert set(reasons) == {"61", "73", "77"}
    assert "truncated" in reasons["61"]
    assert "no such file" in reasons["73"]
    assert "not an image" in reasons["77"]


def test_references_for_the_official_evaluation(convert: Callable[..., Path], karpathy: Path) -> None:
    tools = COCO(str(convert(annotations=karpathy) / "test_caption_coco_format.json"))
    assert tools.getImgIds() == [42], "pictures that can't be captioned are not evaluated"
    assert [entry["caption"] for entry in tools.imgToAnns[42]] == ["A GIRAFFE Eating", "  ", "The giraffe"]
    tools.loadRes([{"image_id": 42, "caption": "a giraffe"}])


def test_paths_instead_of_pictures(convert: Callable[..., Path], images: Path, karpathy: Path) -> None:
    out = convert(annotations=karpathy, paths=True)
    for row in read_rows(out / "caption_stage1_train.tsv"):
        (file,) = images.glob(f"*/{int(row[1]):012}.jpg")
        assert (out / row[4]).resolve() == file
        assert decode_image(row[4], out) == Image.open(file).convert("RGB")


def test_official_files_alone_have_no_test_split(convert: Callable[..., Path], official: list[Path]) -> None:
    out = convert(annotations=official)
    assert [row[1] for row in read_rows(out / "caption_stage2_train.tsv")] == ["9"]
    assert [row[1] for row in read_rows(out / "caption_val.tsv")] == ["25", "30", "42"]
    assert not (out / "caption_test.tsv").exists()


def test_an_interrupted_run_goes_on_without_reading_pictures_again(
    convert: Callable[..., Path], images: Path, karpathy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = convert(annotations=karpathy, out="expected")

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(conversion, "_assemble", interrupt)
        with pytest.raises(KeyboardInterrupt):
            convert(annotations=karpathy)
    aside = images.rename(images.with_name("aside"))
    images.mkdir()
    out = convert(annotations=karpathy)
    for path in expected.glob("*"):
        assert (out / path.name).read_bytes() == path.read_bytes()

    # Pictures were missing, so the same command tries again, now in vain; and once more when they are there.
    with pytest.raises(SystemExit, match="no picture can be used"):
        convert(annotations=karpathy)
    images.rmdir()
    shutil.move(aside, images)
    for cocoid in (61, 73, 77):
        for folder in ("train2014", "val2014"):
            write_picture(images / folder / f"{cocoid:012}.jpg", 32, 32)
    out = convert(annotations=karpathy)
    assert (out / "missing_images.txt").read_text() == ""
    assert [row[1] for row in read_rows(out / "caption_test.tsv")] == ["42", "61", "73"]

    (out / "caption_val.tsv").write_text("mine")
    convert(annotations=karpathy)
    assert (out / "caption_val.tsv").read_text() == "mine", "a complete conversion is left alone"


def test_bad_annotations_are_named(convert: Callable[..., Path], karpathy: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="expected --annotations"):
        convert()
    with pytest.raises(
        SystemExit, match="25 is in the annotation files twice|9 is in the annotation files twice"
    ):
        convert(annotations=[karpathy, karpathy])
    for name, content in (
        ("questions.json", '{"questions": []}'),
        ("list.json", "[1]"),
        ("cut.json", '{"images'),
    ):
        (tmp_path / name).write_text(content)
        with pytest.raises(SystemExit, match=f"{name}: expected COCO captions"):
            convert(annotations=tmp_path / name)
