"""The RefCOCO conversion, on small files in the public formats: pickles of Python 2 and COCO's JSON."""

import json
import os
import pickle
import pickletools
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conversion_helpers import prepare, read_lines, read_rows, shows, write_picture
from hypothesis import given
from hypothesis import strategies as st

from ofa_fairseq.data.boxes import parse_box
from ofa_fairseq.prepare import conversion
from ofa_fairseq.prepare.refcoco import TOLERANCE, corners

NAME = "COCO_train2014_{:012}.jpg".format
SIZE = (64, 48)
# object -> picture and box as x, y, width, height
OBJECTS: dict[int, tuple[int, list[float]]] = {
    1: (9, [10.1, 5.2, 20.2, 30.1]),
    2: (9, [-0.6, 0, 64.9, 48.75]),
    3: (25, [10, 10, 0, 5]),
    4: (25, [40, 10, 26, 5]),
    5: (30, [1, 1, 2, 2]),
    6: (42, [1, 1, 2, 2]),
    7: (25, [60.5, 47, 3.5, 1]),
}


def ref(number: int, split: str, *texts: str) -> dict[str, Any]:
    sentences = [
        {"tokens": text.split(), "raw": text.upper(), "sent_id": 100 * number + index, "sent": text}
        for index, text in enumerate(texts)
    ]
    return {
        "sent_ids": [sentence["sent_id"] for sentence in sentences],
        "file_name": NAME(OBJECTS[number][0]).replace(".jpg", f"_{number}.jpg"),
        "ann_id": number,
        "ref_id": 10 + number,
        "image_id": OBJECTS[number][0],
        "split": split,
        "sentences": sentences,
        "category_id": 1,
    }


REFS = [
    ref(1, "train", "the left  giraffe", "caf\xe9 giraffe"),
    ref(2, "testA", "everything"),
    ref(3, "train", "a line"),
    ref(4, "val", "far out"),
    ref(5, "val", "cut"),
    ref(6, "val", "absent"),
    ref(7, "val", " ", "lower right"),
]


def python2(content: Any, protocol: int) -> bytes:
    """Pickled with its texts as Python 2's byte strings."""
    data = pickle.dumps(content, protocol)
    operations = list(pickletools.genops(data))
    ends = [position for _, _, position in operations[1:]] + [len(data)]
    result = b""
    for (code, value, start), end in zip(operations, ends):
        if code.name == "UNICODE":  # of protocol 0, in ASCII
            result += f"S{value!a}\n".encode()
        elif code.name == "BINUNICODE":
            text = str(value).encode("latin-1")
            result += b"T" + struct.pack("<i", len(text)) + text
        else:
            result += data[start:end]  # type: ignore[misc]
    return result


@pytest.fixture
def instances(tmp_path: Path) -> Path:
    content = {
        "images": [
            {"id": image_id, "file_name": NAME(image_id), "width": SIZE[0], "height": SIZE[1]}
            for image_id in (9, 25, 30, 42)
        ],
        "annotations": [
            {"id": number, "image_id": image_id, "bbox": box, "area": 1.0, "category_id": 1}
            for number, (image_id, box) in OBJECTS.items()
        ],
        "categories": [],
    }
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def convert(tmp_path: Path, instances: Path) -> Callable[..., Path]:
    write_picture(tmp_path / "old" / "train2014" / NAME(9), *SIZE)
    write_picture(tmp_path / "new" / "val2017" / f"{25:012}.jpg", *SIZE)
    write_picture(tmp_path / "new" / "train2017" / f"{30:012}.jpg", 10, 10)

    def run(refs: bytes, name: str = "refcoco", out: str = "out") -> Path:
        path = tmp_path / "refs(unc).p"
        path.write_bytes(refs)
        folders = [tmp_path / "old", tmp_path / "new"]
        prepare("refcoco", refs=path, instances=instances, name=name, images=folders, out=tmp_path / out)
        return tmp_path / out

    return run


@pytest.mark.parametrize(
    "content",
    [python2(REFS, 0), python2(REFS, 2), pickle.dumps(REFS, 2), pickle.dumps(REFS)],
    ids=["python 2, text", "python 2", "unicode", "python 3"],
)
def test_a_row_for_each_sentence(convert: Callable[..., Path], tmp_path: Path, content: bytes) -> None:
    out = convert(content)
    first, second = read_rows(out / "refcoco_train.tsv")
    assert first[:4] == ["11_0", "9", "the left giraffe", "10.1,5.2,30.3,35.3"]
    assert second[:4] == ["11_1", "9", "café giraffe", "10.1,5.2,30.3,35.3"]
    assert shows(first[4], tmp_path / "old" / "train2014" / NAME(9))
    assert read_rows(out / "refcoco_testA.tsv") == [
        ["12_0", "9", "everything", "0.0,0.0,64.0,48.0", first[4]]
    ]
    (lower,) = read_rows(out / "refcoco_val.tsv")
    assert lower[:4] == ["17_1", "25", "lower right", "60.5,47.0,64.0,48.0"]
    assert shows(lower[4], tmp_path / "new" / "val2017" / f"{25:012}.jpg")
    assert not (out / "refcoco_testB.tsv").exists()


def test_unusable_boxes_words_and_pictures_are_listed(convert: Callable[..., Path]) -> None:
    out = convert(pickle.dumps(REFS))
    assert read_lines(out / "left_out_rows.txt") == [
        ["13_0", "the box has no area: expected x0 < x1 and y0 < y1", "(10.0, 10.0, 0.0, 5.0) in (64, 48)"],
        [
            "14_0",
            "the box reaches out of the picture of 64 x 48 pixels",
            "(40.0, 10.0, 26.0, 5.0) in (64, 48)",
        ],
        ["17_0", "no words", "val"],
    ]
    reasons = {image_id: reason for image_id, _, reason in read_lines(out / "missing_images.txt")}
    assert reasons.keys() == {"30", "42"}
    assert "10 x 10 pixels, annotated as 64 x 48" in reasons["30"]
    assert "no such file" in reasons["42"]


NUMBERS = st.floats(-80, 80) | st.floats()


@given(st.tuples(NUMBERS, NUMBERS, NUMBERS, NUMBERS))
def test_a_box_that_is_taken_is_one_that_training_takes(box: tuple[float, float, float, float]) -> None:
    try:
        edges = corners(box, SIZE)
    except ValueError:
        x, y, width, height = box
        surely_inside = 0 <= x <= x + width <= SIZE[0] and 0 <= y <= y + height <= SIZE[1]
        assert not (surely_inside and width > 1e-3 and height > 1e-3)
        return
    assert parse_box(",".join(map(str, edges)), SIZE) == edges
    moved = (edges[0] - box[0], edges[1] - box[1], edges[2] - box[0] - box[2], edges[3] - box[1] - box[3])
    assert max(map(abs, moved)) <= TOLERANCE + 1e-3


def test_names_of_the_data_sets(convert: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    out = convert(pickle.dumps(REFS[:1]), name="refcocoplus")
    convert(pickle.dumps(REFS[:2]), name="refcocog")
    assert {path.name for path in out.glob("*.tsv")} == {
        "refcocoplus_train.tsv",
        "refcocog_train.tsv",
        "refcocog_testA.tsv",
    }
    with pytest.raises(SystemExit):
        convert(pickle.dumps(REFS), name="refcoco+")
    assert "refcocoplus" in capsys.readouterr().err


class Calls:
    def __reduce__(self) -> tuple[Callable, tuple]:
        return os.system, ("touch owned",)


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_a_pickle_that_asks_for_a_function_is_refused(
    convert: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: int
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=r"refs\(unc\)\.p.*asks for '(posix|nt)\.system'"):
        convert(pickle.dumps([*REFS, Calls()], protocol))
    assert not (tmp_path / "owned").exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"no pickle",
        pickle.dumps(REFS)[:-20],
        pickle.dumps({"refs": REFS}),
        pickle.dumps([1]),
        pickle.dumps([{"ref_id": 1}]),
        pickle.dumps([REFS[0] | {"split": "../train"}]),
        pickle.dumps([REFS[0] | {"sentences": [{"sent": 5}]}]),
        pickle.dumps([REFS[0] | {"ann_id": [1]}]),
    ],
)
def test_another_file_than_refs_is_named(convert: Callable[..., Path], content: bytes) -> None:
    with pytest.raises(SystemExit, match=r"refs\(unc\)\.p: expected refs\(unc\)\.p.*; got"):
        convert(content)


def test_another_file_than_instances_is_named(convert: Callable[..., Path], instances: Path) -> None:
    with pytest.raises(SystemExit, match=r"instances\.json: has no object 8, which phrase 11_0 of .*refs"):
        convert(pickle.dumps([REFS[0] | {"ann_id": 8}]))
    whole = json.loads(instances.read_text())
    wrong: tuple[Any, ...] = (
        [],
        whole | {"images": []},
        whole | {"annotations": [{"id": 1, "image_id": 9, "bbox": [1, 2, 3]}]},
        {"questions": []},
    )
    for content in wrong:
        instances.write_text(json.dumps(content))
        with pytest.raises(SystemExit, match=r"instances\.json: expected instances\.json: images with"):
            convert(pickle.dumps(REFS))
    instances.write_text("{")
    with pytest.raises(SystemExit, match=r"instances\.json: expected instances\.json: images with"):
        convert(pickle.dumps(REFS))


def test_an_interrupted_run_goes_on(
    convert: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = convert(pickle.dumps(REFS[:3]), out="expected")

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(conversion, "_assemble", interrupt)
        with pytest.raises(KeyboardInterrupt):
            convert(pickle.dumps(REFS[:3]))
    out = tmp_path / "out"
    assert not list(out.glob("*.tsv"))
    assert convert(pickle.dumps(REFS[:3])) == out
    assert {path.name for path in out.glob("*.t*")} == {path.name for path in expected.glob("*.t*")}
    for path in expected.glob("*.t*"):
        assert (out / path.name).read_bytes() == path.read_bytes()
