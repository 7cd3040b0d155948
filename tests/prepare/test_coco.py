"""The COCO conversion, on small annotation files in the public formats."""

import base64
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from pycocotools.coco import COCO

from ofa_fairseq.data.images import decode_image
from ofa_fairseq.data.tsv import TsvFile
from ofa_fairseq.prepare import coco
from ofa_fairseq.prepare.__main__ import main

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


def jpeg(size: int) -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((size, size), 60).save(buffer, format="JPEG")
    return buffer.getvalue()


def folder_of(split: str) -> str:
    return "train2014" if split == "train" else "val2014"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    root = tmp_path / "images"
    for split, cocoid, _ in KARPATHY:
        path = root / folder_of(split) / f"{cocoid:012}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {61: jpeg(64)[:-300], 77: b"a text"}.get(cocoid, jpeg(cocoid))
        if cocoid != 73:
            path.write_bytes(content)
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
    def run(*arguments: Any, out: str = "out") -> Path:
        main(
            [
                "coco",
                "--images",
                str(images),
                "--out",
                str(tmp_path / out),
                "--workers=2",
                *map(str, arguments),
            ]
        )
        return tmp_path / out

    return run


def rows(path: Path) -> list[list[str]]:
    tsv = TsvFile(path)
    return [tsv[row] for row in range(len(tsv))]


@pytest.mark.parametrize("source", ["karpathy", "official"])
def test_files_of_the_karpathy_splits(
    convert: Callable[..., Path], images: Path, karpathy: Path, official: list[Path], source: str
) -> None:
    if source == "karpathy":
        out = convert("--annotations", karpathy)
    else:
        out = convert("--annotations", *official, "--split-file", karpathy)
    expected = {
        "caption_stage1_train.tsv": [(i, text) for i in (9, 25) for text in CLEAN[i]],
        "caption_stage2_train.tsv": [(i, "&&".join(CLEAN[i])) for i in (9, 25)],
        "caption_val.tsv": [(30, "a zebra")],
        "caption_test.tsv": [(42, "a giraffe eating&&the giraffe")],
    }
    for name, pairs in expected.items():
        for number, (row, (cocoid, text)) in enumerate(zip(rows(out / name), pairs, strict=True)):
            assert row[:4] == [str(number), str(cocoid), text, ""]
            (file,) = images.glob(f"*/{cocoid:012}.jpg")
            assert base64.urlsafe_b64decode(row[4]) == file.read_bytes(), "the file's own bytes"
    assert not list(out.glob(".*")), "no parts are left"


def test_unusable_pictures_are_listed_with_the_reason(convert: Callable[..., Path], karpathy: Path) -> None:
    lines = (convert("--annotations", karpathy) / "missing_images.txt").read_text().splitlines()
    reasons = {line.split("\t")[0]: line.split("\t")[2] for line in lines}
    assert set(reasons) == {"61", "73", "77", "80"}
    assert "truncated" in reasons["61"]
    assert "no such file" in reasons["73"]
    assert "not an image" in reasons["77"]
    assert reasons["80"] == "no caption"


def test_references_for_the_official_evaluation(convert: Callable[..., Path], karpathy: Path) -> None:
    tools = COCO(str(convert("--annotations", karpathy) / "test_caption_coco_format.json"))
    assert tools.getImgIds() == [42], "pictures that can't be captioned are not evaluated"
    assert [entry["caption"] for entry in tools.imgToAnns[42]] == ["A GIRAFFE Eating", "  ", "The giraffe"]
    tools.loadRes([{"image_id": 42, "caption": "a giraffe"}])


def test_paths_instead_of_pictures(convert: Callable[..., Path], images: Path, karpathy: Path) -> None:
    out = convert("--annotations", karpathy, "--paths")
    for row in rows(out / "caption_stage1_train.tsv"):
        (file,) = images.glob(f"*/{int(row[1]):012}.jpg")
        assert (out / row[4]).resolve() == file
        assert decode_image(row[4], out) == Image.open(file).convert("RGB")


def test_official_files_alone_have_no_test_split(convert: Callable[..., Path], official: list[Path]) -> None:
    out = convert("--annotations", *official)
    assert [row[1] for row in rows(out / "caption_stage2_train.tsv")] == ["9"]
    assert [row[1] for row in rows(out / "caption_val.tsv")] == ["25", "30", "42"]
    assert not (out / "caption_test.tsv").exists()


def test_an_interrupted_run_goes_on_without_reading_pictures_again(
    convert: Callable[..., Path], images: Path, karpathy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = convert("--annotations", karpathy, out="expected")

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(coco, "_assemble", interrupt)
        with pytest.raises(KeyboardInterrupt):
            convert("--annotations", karpathy)
    aside = images.rename(images.with_name("aside"))
    images.mkdir()
    out = convert("--annotations", karpathy)
    for path in expected.glob("*"):
        assert (out / path.name).read_bytes() == path.read_bytes()

    # Pictures were missing, so the same command tries again, now in vain; and once more when they are there.
    with pytest.raises(SystemExit, match="no picture can be used"):
        convert("--annotations", karpathy)
    images.rmdir()
    shutil.move(aside, images)
    for cocoid in (61, 73, 77):
        (images / "val2014" / f"{cocoid:012}.jpg").write_bytes(jpeg(32))
        (images / "train2014" / f"{cocoid:012}.jpg").write_bytes(jpeg(32))
    whole = json.loads(karpathy.read_text())
    whole["images"].pop()
    karpathy.write_text(json.dumps(whole))
    out = convert("--annotations", karpathy)
    assert (out / "missing_images.txt").read_text() == ""
    assert [row[1] for row in rows(out / "caption_test.tsv")] == ["42", "61", "73"]

    (out / "caption_val.tsv").write_text("mine")
    convert("--annotations", karpathy)
    assert (out / "caption_val.tsv").read_text() == "mine", "a complete conversion is left alone"


def test_bad_annotations_are_named(convert: Callable[..., Path], karpathy: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="expected --annotations"):
        convert()
    with pytest.raises(
        SystemExit, match="25 is in the annotation files twice|9 is in the annotation files twice"
    ):
        convert("--annotations", karpathy, karpathy)
    for name, content in (
        ("questions.json", '{"questions": []}'),
        ("list.json", "[1]"),
        ("cut.json", '{"images'),
    ):
        (tmp_path / name).write_text(content)
        with pytest.raises(SystemExit, match=f"{name}: expected COCO captions"):
            convert("--annotations", tmp_path / name)
