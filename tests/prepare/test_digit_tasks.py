"""The files of the embedded tasks are what the tasks read; and their scores by kind."""

import json
import shutil
from pathlib import Path

import pytest
from sentencepiece import SentencePieceProcessor

from ofa_fairseq.data.answer_list import read_answers
from ofa_fairseq.data.boxes import parse_box
from ofa_fairseq.data.tsv import TsvFile
from ofa_fairseq.metrics.vqa_accuracy import parse_answer
from ofa_fairseq.prepare.__main__ import main
from ofa_fairseq.prepare.digits import read_scenes
from ofa_fairseq.prepare.digits.tasks_command import FILES
from ofa_fairseq.tasks.snli_ve import ANSWERS

WIDTHS = {"vqa": 6, "refcoco": 5, "snli_ve": 6}
PICTURE = {"vqa": 5, "refcoco": 4, "snli_ve": 2}


def task_of(name: str) -> str:
    return next(task for task in WIDTHS if name.startswith(task))


def read(path: Path) -> list[list[str]]:
    tsv = TsvFile(path)
    return [tsv[row] for row in range(len(tsv))]


@pytest.fixture(scope="module")
def data(digits_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks") / "digits"
    shutil.copytree(digits_dir, folder)
    main(["digit_tasks", "--digits", str(folder)])
    return folder


@pytest.mark.parametrize("name", FILES)
def test_rows_have_the_released_columns_and_the_pictures_of_their_scenes(data: Path, name: str) -> None:
    split, task = name.removesuffix(".tsv").split("_")[-1], task_of(name)
    captions = data / ("train_references.tsv" if split == "train" else f"{split}.tsv")
    pictures = {image_id: picture for _, image_id, _, _, picture in read(captions)}
    rows = read(data / name)
    assert {len(row) for row in rows} == {WIDTHS[task]}
    assert len({row[0] for row in rows}) == len(rows)
    for row in rows:
        kind, image_id, number = row[0].split("-")
        assert kind
        assert number.isdecimal()
        assert row[1] == image_id
        assert row[PICTURE[task]] == pictures[image_id]


@pytest.mark.parametrize("name", FILES)
def test_rows_of_a_picture_stand_together_in_blocks_of_one_size(data: Path, name: str) -> None:
    size = FILES[name].per_scene
    image_ids = [row[1] for row in read(data / name)]
    blocks = [image_ids[start : start + size] for start in range(0, len(image_ids), size)]
    assert all(len(block) == size and len(set(block)) == 1 for block in blocks)
    assert len({block[0] for block in blocks}) == len(blocks)


def test_what_training_begins_with_is_a_kind_that_teaches_to_look(data: Path) -> None:
    kinds = {
        name: {row[0].split("-")[0] for row in read(data / name)}
        for name in ("vqa_first_train.tsv", "vqa_train.tsv", "snli_ve_first_train.tsv")
    }
    assert (
        kinds["vqa_first_train.tsv"] == {"where", "describe_digit", "describe_place"} < kinds["vqa_train.tsv"]
    )
    assert kinds["snli_ve_first_train.tsv"] == {"claim"}


def test_all_answers_are_in_the_answer_file(data: Path) -> None:
    answers = read_answers(data / "ans2label.json")
    for name in ("vqa_train.tsv", "vqa_valid.tsv", "vqa_test.tsv"):
        for row in read(data / name):
            answer, confidence = parse_answer(row[3])
            assert answer in answers
            assert confidence == 1.0


def test_boxes_lie_in_the_picture_and_are_those_of_its_digits(data: Path) -> None:
    scenes = read_scenes(data / "scenes_test.jsonl")
    for name in ("refcoco_test.tsv", "refcoco_absent_test.tsv"):
        for row_id, image_id, _, box, _ in read(data / name):
            if row_id.startswith("absent"):
                assert box == ""
            else:
                assert parse_box(box, (64, 64)) in [digit.box for digit in scenes[image_id].digits]


def test_every_word_is_one_piece_of_the_vocabulary(data: Path) -> None:
    pieces = SentencePieceProcessor(model_file=str(data / "sentencepiece.model"))
    columns = {"vqa": (2, 3, 4), "refcoco": (2,), "snli_ve": (3, 4, 5)}
    texts = [row[column] for name in FILES for row in read(data / name) for column in columns[task_of(name)]]
    words = {word for text in texts for word in text.removeprefix("1.0|!+").replace("?", "").split()}
    words |= set(ANSWERS.values())
    assert len(words) > 60
    assert [word for word in words if len(pieces.encode(" " + word)) != 1] == []


def test_a_folder_is_made_once_and_anew_for_other_settings(data: Path, tmp_path: Path) -> None:
    again = tmp_path / "digits"
    shutil.copytree(data, again)
    target = again / "vqa_valid.tsv"
    target.write_text("mine")
    main(["digit_tasks", "--digits", str(again)])
    assert target.read_text() == "mine"
    main(["digit_tasks", "--digits", str(again), "--seed", "2"])
    assert target.read_bytes() != (data / "vqa_valid.tsv").read_bytes()
    main(["digit_tasks", "--digits", str(again)])
    assert [(again / name).read_bytes() for name in FILES] == [(data / name).read_bytes() for name in FILES]

    (again / "settings.json").write_text('{"seed": 5}\n')  # other scenes
    target.write_text("mine")
    main(["digit_tasks", "--digits", str(again)])
    assert target.read_text() != "mine"


def test_a_folder_without_scenes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="the command `digits`"):
        main(["digit_tasks", "--digits", str(tmp_path)])


def percents(printed: str) -> dict[str, dict[str, float]]:
    """The printed table: kind -> column -> number."""
    header, *lines = printed.strip().split("\n")
    names = [name for name in ("model", "blank pictures", "text alone", "majority") if name in header]
    table = {kind: numbers for kind, _, *numbers in map(str.split, lines)}
    return {kind: dict(zip(names, map(float, numbers), strict=True)) for kind, numbers in table.items()}


def score(
    capsys: pytest.CaptureFixture[str], data: Path, task: str, *args: str
) -> dict[str, dict[str, float]]:
    capsys.readouterr()
    main(["score_by_kind", "--task", task, "--data", str(data / f"{task}_test.tsv"), *args])
    return percents(capsys.readouterr().out)


def bins(box: str, num_bins: int) -> str:
    return "".join(f"<bin_{round(float(number) / 64 * (num_bins - 1))}>" for number in box.split(","))


def test_right_predictions_score_100_in_both_forms(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vqa, refcoco, snli_ve = (read(data / f"{task}_test.tsv") for task in WIDTHS)
    entries = {
        "vqa": [{"question_id": row[0], "answer": parse_answer(row[3])[0]} for row in vqa],
        "refcoco": [{"uniq_id": row[0], "box": [float(n) for n in row[3].split(",")]} for row in refcoco],
        "snli_ve": [{"uniq_id": row[0], "label": row[5]} for row in snli_ve],
    }
    printed = {
        "vqa": [(row[0], parse_answer(row[3])[0]) for row in vqa],
        "refcoco": [(row[0], bins(row[3], 128)) for row in refcoco],
        "snli_ve": [(row[0], ANSWERS[row[5]]) for row in snli_ve],
    }
    for task in WIDTHS:
        (tmp_path / "right.json").write_text(json.dumps(entries[task]))
        lines = [f"D-{row_id}\t-0.1\t {text}\nD-{row_id}\t-2.0\t second\n" for row_id, text in printed[task]]
        (tmp_path / "generate.txt").write_text("noise\n" + "".join(lines))
        for file in ("right.json", "generate.txt"):
            table = score(capsys, data, task, "--predictions", str(tmp_path / file))
            assert {numbers["model"] for numbers in table.values()} == {100.0}
            assert table["all"]["majority"] < 60


def test_the_score_of_a_kind_is_that_of_its_rows_and_a_missing_prediction_is_wrong(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = read(data / "vqa_test.tsv")
    right = [{"question_id": row[0], "answer": parse_answer(row[3])[0]} for row in rows if row[0] < "d"]
    wrong = [{"question_id": row[0], "answer": "purple"} for row in rows if row[0].startswith("where")]
    (tmp_path / "model.json").write_text(json.dumps(right + wrong))
    (tmp_path / "blank.json").write_text(json.dumps(wrong))
    table = score(
        capsys,
        data,
        "vqa",
        *("--predictions", str(tmp_path / "model.json"), "--blank", str(tmp_path / "blank.json")),
        *("--train", str(data / "vqa_train.tsv")),
    )
    assert {kind for kind, numbers in table.items() if numbers["model"] == 100} == {"colour", "count"}
    assert {kind for kind, numbers in table.items() if numbers["model"] == 0} == {
        "digit",
        "exists",
        "size",
        "where",
    }
    assert table["all"]["model"] == pytest.approx(100 * len(right) / len(rows), abs=0.06)
    assert {numbers["blank pictures"] for numbers in table.values()} == {0.0}


def test_guesses_are_the_best_constant_and_the_best_for_a_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def write(name: str, rows: list[tuple[str, str, str]]) -> None:
        lines = (f"{kind}-1-{n}\t1\t{text}\t1.0|!+{answer}\n" for n, (kind, text, answer) in enumerate(rows))
        (tmp_path / name).write_text("".join(lines))

    write(
        "vqa_test.tsv", [("a", "x", "1"), ("a", "x", "2"), ("a", "y", "2"), ("a", "z", "2"), ("b", "x", "3")]
    )
    write("train.tsv", [("a", "x", "1"), ("a", "y", "2"), ("a", "x", "1"), ("b", "w", "4")])
    table = score(capsys, tmp_path, "vqa", "--train", str(tmp_path / "train.tsv"))
    assert table == {
        "a": {
            "text alone": 50.0,
            "majority": 75.0,
        },  # right: x -> 1, y -> 2; not: x -> 2, z -> 1 as usual for a
        "b": {"text alone": 0.0, "majority": 100.0},
        "all": {"text alone": 40.0, "majority": 80.0},
    }


def test_phrases_of_absent_digits_are_left_out(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    main(["score_by_kind", "--task", "refcoco", "--data", str(data / "refcoco_absent_test.tsv")])
    assert percents(capsys.readouterr().out).keys() == {"present", "all"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"question_id": "colour-9-9", "answer": "red"}]', "expected predictions for ids like"),
        ('[{"question_id": "colour-9-9"}]', "expected JSON list of"),
        ("[", "expected JSON list of"),
        ("nothing here", "found no"),
    ],
)
def test_predictions_for_something_else_are_refused(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, message: str
) -> None:
    (tmp_path / "predictions").write_text(content)
    with pytest.raises(SystemExit, match=message):
        score(capsys, data, "vqa", "--predictions", str(tmp_path / "predictions"))
