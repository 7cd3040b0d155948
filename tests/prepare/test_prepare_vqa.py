"""The VQA conversion, on small files in the public formats of VQA v2 and Visual Genome."""

import json
import logging
import pickle
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from conversion_helpers import prepare, read_lines, read_rows, shows, write_picture

from ofa_fairseq.data.answer_list import read_answers
from ofa_fairseq.prepare import conversion
from ofa_fairseq.prepare.plan import Picture
from ofa_fairseq.prepare.vqa import hold_out
from ofa_fairseq.prepare.vqa_annotations import Annotation, Question, read_questions

# question-id -> picture, question, what ten people answered
TRAIN: dict[int, tuple[int, str, list[str]]] = {
    9000: (9, "What is the\tcat on?", ["Sofa."] * 4 + ["couch"] * 3 + ["a bed"] * 2 + ["the"]),
    9001: (9, "How many cats?", ["one"] * 5 + ["1"] * 5),
    9002: (9, "What else?", ["rare"] * 10),
    9003: (9, " ? ", ["sofa"] * 10),
    25000: (25, "Salt & pepper?", ["salt && pepper"] * 9 + ["sofa"]),
    77000: (77, "Where is it?", ["sofa"] * 10),
}
VAL: dict[int, tuple[int, str, list[str]]] = {
    30000: (30, "Is it a sofa?", ["couch"] * 6 + ["Bed"] + ["salt && pepper"] * 3),
    30001: (30, "Is it a bed?", ["bed"] * 10),
    42000: (42, "Is it one?", ["1"] * 10),
    42001: (42, "No answers?", ["the"] * 10),
}
TEST: dict[int, tuple[int, str]] = {61000: (61, "Where?"), 61001: (61, "")}


def questions_file(folder: Path, subset: str, questions: dict[int, Any], **extra: Any) -> Path:
    entries = [
        {"image_id": image_id, "question": text, "question_id": question_id}
        for question_id, (image_id, text, *_) in questions.items()
    ]
    path = folder / f"v2_OpenEnded_mscoco_{subset}_questions.json"
    path.write_text(json.dumps({"info": {}, "task_type": "Open-Ended", "questions": entries, **extra}))
    return path


def annotations_file(folder: Path, subset: str, questions: dict[int, Any]) -> Path:
    entries = [
        {
            "question_type": "what",
            "multiple_choice_answer": max(answers, key=answers.count),
            "answers": [
                {"answer": answer, "answer_confidence": "maybe", "answer_id": number}
                for number, answer in enumerate(answers, start=1)
            ],
            "image_id": image_id,
            "answer_type": "other",
            "question_id": question_id,
        }
        for question_id, (image_id, _, answers) in questions.items()
    ]
    path = folder / f"v2_mscoco_{subset}_annotations.json"
    path.write_text(json.dumps({"info": {}, "annotations": entries, "data_subtype": subset}))
    return path


@pytest.fixture
def genome(tmp_path: Path) -> list[Path]:
    """Three pictures: one of Visual Genome alone, one that COCO's training split has, one that validates."""
    images = [
        {"image_id": 1, "url": "https://x/VG_100K_2/1.jpg", "width": 8, "height": 8, "coco_id": None},
        {"image_id": 2, "url": "https://x/VG_100K/2.jpg", "width": 8, "height": 8, "coco_id": 9},
        {"image_id": 3, "url": "https://x/VG_100K/3.jpg", "width": 8, "height": 8, "coco_id": 30},
    ]
    pairs = [
        (1, "Where is the dog?", "On a sofa."),
        (1, "What is it?", "The couch."),
        (2, "What?", "Bed"),
        (3, "?!", "bed"),
    ]
    answers = [
        {
            "id": image_id,
            "qas": [
                {
                    "qa_id": 10 * image_id + number,
                    "image_id": image_id,
                    "question": question,
                    "answer": answer,
                }
                for number, (picture, question, answer) in enumerate(pairs)
                if picture == image_id
            ],
        }
        for image_id in (1, 2, 3)
    ]
    paths = [tmp_path / "question_answers.json", tmp_path / "image_data.json"]
    for path, content in zip(paths, (answers, images)):
        path.write_text(json.dumps(content))
    return paths


@pytest.fixture
def files(tmp_path: Path) -> dict[str, list[Path]]:
    """Options that name questions and annotations of three splits."""
    return {
        "questions": [
            questions_file(tmp_path, "train2014", TRAIN, data_subtype="train2014"),
            questions_file(tmp_path, "val2014", VAL),
            questions_file(tmp_path, "test-dev2015", TEST, data_subtype="test-dev2015"),
        ],
        "annotations": [
            annotations_file(tmp_path, "train2014", TRAIN),
            annotations_file(tmp_path, "val2014", VAL),
        ],
    }


@pytest.fixture
def images(tmp_path: Path) -> Path:
    root = tmp_path / "images"
    for name in (
        "train2014/COCO_train2014_{:012}.jpg",
        "val2017/{:012}.jpg",
        "test2015/COCO_test2015_{:012}.jpg",
    ):
        for image_id in {"train2014": (9, 25), "val2017": (30, 42), "test2015": (61,)}[name.split("/")[0]]:
            write_picture(root / name.format(image_id), image_id, image_id)
    write_picture(root / "VG_100K_2" / "1.jpg", 8, 8)
    return root


@pytest.fixture
def convert(tmp_path: Path, images: Path) -> Callable[..., Path]:
    def run(out: str = "out", min_frequency: int = 1, **options: Any) -> Path:
        prepare("vqa", images=images, out=tmp_path / out, min_frequency=min_frequency, **options)
        return tmp_path / out

    return run


def official_score(answer: str, annotations: list[str]) -> float:
    """The definition: the mean over the subsets of nine people."""
    subsets = list(combinations(annotations, len(annotations) - 1))
    return sum(min(subset.count(answer) / 3, 1) for subset in subsets) / len(subsets)


def test_rows_of_the_three_splits(convert: Callable[..., Path], files: dict[str, Any], images: Path) -> None:
    out = convert(**files, answers=_write_list(images.parent, ["sofa", "couch", "1", "salt and pepper"]))
    train = read_rows(out / "vqa_train.tsv")
    assert [row[:5] for row in train] == [
        ["9000", "9", "What is the cat on?", "1.0|!+sofa", ""],
        ["9000", "9", "What is the cat on?", "0.9|!+couch", ""],
        ["9001", "9", "How many cats?", "1.0|!+1", ""],
        ["25000", "25", "Salt & pepper?", "1.0|!+salt and pepper", ""],
        ["25000", "25", "Salt & pepper?", "0.3|!+sofa", ""],
    ]
    assert shows(train[0][5], images / "train2014" / "COCO_train2014_000000000009.jpg")
    val = read_rows(out / "vqa_val.tsv")
    assert [row[:5] for row in val] == [
        ["30000", "30", "Is it a sofa?", "1.0|!+couch&&0.9|!+salt and pepper&&0.3|!+bed", ""],
        ["30001", "30", "Is it a bed?", "1.0|!+bed", ""],
        ["42000", "42", "Is it one?", "1.0|!+1", ""],
    ]
    assert shows(val[0][5], images / "val2017" / "000000000030.jpg")
    test = read_rows(out / "vqa_test.tsv")
    assert [row[:5] for row in test] == [["61000", "61", "Where?", "", ""]]
    assert shows(test[0][5], images / "test2015" / "COCO_test2015_000000000061.jpg")
    assert read_lines(out / "left_out_rows.txt") == [
        ["9002", "no answer in the answer list", "What else? / rare"],
        ["9003", "an empty question", "? / sofa"],
        ["42001", "no answer", "No answers?"],
        ["61001", "an empty question"],
    ]
    assert [line[0] for line in read_lines(out / "missing_images.txt")] == ["77"]


def test_soft_scores_are_the_official_average(convert: Callable[..., Path], files: dict[str, Any]) -> None:
    rows = read_rows(convert(**files) / "vqa_train.tsv")
    for question_id, answers in (
        (9000, ["sofa"] * 4 + ["couch"] * 3 + ["bed"] * 2 + [""]),
        (9001, ["1"] * 10),
    ):
        scores = dict(row[3].split("|!+")[::-1] for row in rows if row[0] == str(question_id))
        expected = {answer: official_score(answer, answers) for answer in set(answers) - {""}}
        assert {answer: float(score) for answer, score in scores.items()} == pytest.approx(expected)


def test_the_answer_list(convert: Callable[..., Path], files: dict[str, Any], tmp_path: Path) -> None:
    """Majorities: sofa 3 (9000, 9003, 77000), 1 twice, bed, couch, rare, salt and pepper once; "the" is empty."""
    path = convert(**files) / "trainval_ans2label.json"
    expected = ["sofa", "1", "bed", "couch", "rare", "salt and pepper"]
    assert json.loads(path.read_text()) == {answer: index for index, answer in enumerate(expected)}
    assert read_answers(path) == expected, "as training reads it"
    assert read_answers(convert(**files, min_frequency=2, out="two") / path.name) == ["sofa", "1"]
    given = _write_list(tmp_path, ["couch", "1"])
    assert read_answers(convert(**files, answers=given, out="given") / path.name) == ["couch", "1"]
    with pytest.raises(
        SystemExit, match="no answer is the most frequent one of 9 questions: see --min-frequency"
    ):
        convert(**files, min_frequency=9, out="none")


def _write_list(folder: Path, answers: list[str]) -> Path:
    path = folder / "answers.pkl"
    path.write_bytes(pickle.dumps({answer: index for index, answer in enumerate(answers)}))
    return path


def test_training_on_validation_pictures(convert: Callable[..., Path], files: dict[str, Any]) -> None:
    out = convert(**files, train_on_val=1)
    held_out = {row[1] for row in read_rows(out / "vqa_val.tsv")}
    assert len(held_out) == 1, "questions of one picture"
    trained = {row[1] for row in read_rows(out / "vqa_train.tsv")}
    assert trained == {"9", "25", "30", "42"} - held_out


def test_whole_pictures_are_held_out_whatever_the_order() -> None:
    questions = [
        Question(f"{image}-{number}", "val", Picture(str(image), ()), image, "?", Annotation((), ""))
        for image in range(200)
        for number in range(1 + image % 5)
    ]
    training = [question._replace(split="train", picture=Picture("t", ())) for question in questions]
    for count in (0, 1, 50, 599):
        held_out = hold_out([*questions, *training], count)
        assert held_out == hold_out(questions[::-1], count)
        size = sum(question.picture.image_id in held_out for question in questions)
        assert count <= size < count + 5
    assert hold_out(questions, 50) < hold_out(questions, 599)
    assert len(hold_out(questions, 10_000)) == 200


def test_visual_genome_adds_training_questions(
    convert: Callable[..., Path], files: dict[str, Any], genome: list[Path], images: Path
) -> None:
    out = convert(**files, visual_genome=genome)
    added = [row for row in read_rows(out / "vqa_train.tsv") if row[0].startswith("vg")]
    assert [row[:5] for row in added] == [
        ["vg11", "vg1", "What is it?", "1.0|!+couch", ""],
        ["vg22", "vg2", "What?", "1.0|!+bed", ""],
    ]
    assert shows(added[0][5], images / "VG_100K_2" / "1.jpg")
    assert shows(added[1][5], images / "train2014" / "COCO_train2014_000000000009.jpg")
    reasons = {line[0]: line[1] for line in read_lines(out / "left_out_rows.txt")}
    assert reasons["vg10"] == "no answer in the answer list"
    assert reasons["vg33"] == "a picture that validates or tests"


def test_counts_are_logged(
    convert: Callable[..., Path], files: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        convert(**files)
    for line in (
        "train: 6 questions",
        "answer list: 6 answers",
        "vqa_val.tsv: 3 rows",
        "left out: 2 with an empty question",
        "left out: 1 with no answer, see",
        "left out: 1 of 6 pictures and their 1 rows",
    ):
        assert line in caplog.text


def test_unannotated_test_questions_alone(convert: Callable[..., Path], files: dict[str, Any]) -> None:
    out = convert(questions=files["questions"][2])
    assert [path.name for path in out.glob("*.tsv")] == ["vqa_test.tsv"]
    assert not (out / "trainval_ans2label.json").exists()


def test_an_interrupted_run_goes_on(
    convert: Callable[..., Path], files: dict[str, Any], images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = convert(**files, out="expected")

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(conversion, "_assemble", interrupt)
        with pytest.raises(KeyboardInterrupt):
            convert(**files)
    for path in images.rglob("*.jpg"):
        path.unlink()
    out = convert(**files)
    for path in expected.glob("*"):
        assert (out / path.name).read_bytes() == path.read_bytes()


def test_wrong_files_are_named(
    convert: Callable[..., Path], files: dict[str, Any], genome: list[Path], tmp_path: Path
) -> None:
    train, val, _ = files["questions"]
    with pytest.raises(
        SystemExit, match=r"val2014_questions\.json: expected the annotations of these questions"
    ):
        convert(questions=[train, val], annotations=files["annotations"][0])
    with pytest.raises(SystemExit, match=r"train2014_questions\.json: question 9000 was read before"):
        convert(questions=[train, train], annotations=files["annotations"])
    with pytest.raises(
        SystemExit, match=r"annotations\.json: expected VQA annotations .*question 9000 a second time"
    ):
        convert(questions=train, annotations=[files["annotations"][0]] * 2)
    with pytest.raises(SystemExit, match=r"annotations\.json: expected VQA questions"):
        convert(questions=files["annotations"])
    with pytest.raises(SystemExit, match=r"questions\.json: expected VQA annotations"):
        convert(questions=train, annotations=train)
    with pytest.raises(SystemExit, match=r"image_data\.json: expected Visual Genome's question_answers"):
        convert(**files, visual_genome=[genome[1], genome[1]])
    with pytest.raises(SystemExit, match=r"question_answers\.json: expected Visual Genome's image_data"):
        convert(**files, visual_genome=[genome[0], genome[0]])
    path = tmp_path / "some.json"
    for content in ("[]", '{"questions"', '{"questions": [{"question_id": 1}]}', '{"questions": []}'):
        path.write_text(content)
        with pytest.raises(
            SystemExit, match=r"some\.json: expected VQA questions .*the file's name tells the split"
        ):
            convert(questions=path)
    assert not (tmp_path / "out").exists()


def test_annotations_without_the_most_frequent_answer(tmp_path: Path) -> None:
    questions = questions_file(tmp_path, "train2014", {9000: TRAIN[9000]})
    annotations = annotations_file(tmp_path, "train2014", TRAIN)
    content = json.loads(annotations.read_text())
    for entry in content["annotations"]:
        del entry["multiple_choice_answer"]
    annotations.write_text(json.dumps(content))
    (question,) = read_questions([questions], [annotations])
    assert question.annotation is not None
    assert question.annotation.majority == "Sofa."


@pytest.mark.parametrize(
    ("option", "entries", "key"),
    [("questions", "questions", "question"), ("annotations", "annotations", "answers")],
)
def test_a_broken_entry_is_named(
    convert: Callable[..., Path], files: dict[str, Any], option: str, entries: str, key: str
) -> None:
    path = files[option][0]
    content = json.loads(path.read_text())
    del content[entries][1][key]
    path.write_text(json.dumps(content))
    with pytest.raises(SystemExit, match=rf"{path.name}: expected VQA .*entry 2: KeyError\('{key}'\)"):
        convert(**files)
