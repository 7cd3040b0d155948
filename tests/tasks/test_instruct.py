"""Tasks of one line: the same ids as the registered tasks, every kind of slot, answers, metrics, and mistakes."""

import json
import pickle
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq import scoring, tasks
from omegaconf import open_dict
from task_builders import (
    Run,
    bad_rows,
    batch_of,
    picture,
    rows_run,
    task_run,
    training_config,
)

from ofa_fairseq.generation.answer_space import AnswerTrie, TokenRange
from ofa_fairseq.instruction import RELEASED, InstructionError

PAD, EOS = 1, 2
COLOUR = "[image:photo] what colour is the [text:thing]? -> [text:colour]"
COLUMNS = "id,photo,thing,colour"


def flags_of(instruction: str = COLOUR, columns: str = COLUMNS, *more: str) -> tuple[str, ...]:
    return ("--instruction", instruction, "--columns", columns, *more)


def row(thing: str = "ball", colour: str = "red") -> list[str]:
    return ["7", picture(), thing, colour]


def run_of(
    folder: Path,
    bpe_dir: Path,
    rows: list[list[str]],
    *more: str,
    instruction: str = COLOUR,
    columns: str = COLUMNS,
    split: str = "train",
) -> Run:
    flags = flags_of(instruction, columns, *more)
    return rows_run("instruct", folder, rows, bpe_dir, *flags, split=split)


def texts_of(run: Run, split: str = "train", row: int = 0) -> tuple[str, str]:
    """Source and target of a row, decoded."""
    example = run.task.dataset(split)[row]
    return run.task.decode(example.source), run.task.decode(example.target)


# The registered tasks as one line

SAME: dict[str, dict[str, Any]] = {
    "caption": {
        "columns": "id,picture,caption",
        "rows": [["0", picture(), "a red one"], ["1", picture((0, 90, 0)), "two dogs on a lawn"]],
    },
    "refcoco": {
        "columns": "id,picture,phrase,region",
        "rows": [
            ["0", picture(), "the RED car - on/left.", "10.5,2.0,20.25,30"],
            ["1", picture(size=(30, 90)), "...man", "0,0,30,90"],
        ],
        "more": ("--normalize-text", "--max-image-size", "512"),
    },
    "snli_ve": {
        "columns": "id,picture,hypothesis,caption,relation",
        "rows": [
            ["0", picture(), "Two dogs play.", "dogs", "entailment"],
            ["1", picture((0, 90, 0)), "a <person> sleeps", "a bed", "neutral"],
            ["2", picture(), "nobody", "", "contradiction"],
        ],
        "more": ("--normalize-text", "--prompt-type", "prev_output"),
        "answers": ["no", "yes", "maybe"],
    },
    "snli_ve_caption": {
        "task": "snli_ve",
        "flags": ("--add-caption", "--prompt-type", "src"),
        "columns": "id,picture,hypothesis,caption,relation",
        "rows": [
            ["0", picture(), "Two dogs play.", "two dogs on/off grass", "entailment"],
            ["1", picture((0, 90, 0)), "a cat sleeps", "a bed", "neutral"],
        ],
        "more": ("--normalize-text", "--prompt-type", "src"),
        "answers": ["no", "yes", "maybe"],
    },
    "vqa": {
        "flags": ("--prompt-type", "none"),
        "columns": "id,picture,question,answer",
        "rows": [
            ["0", picture(), "What is on the T-shirt?", "0.6|!+red&&1.0|!+a red ball"],
            ["1", picture((0, 90, 0)), "is it red?", "0.3|!+blue&&0.3|!+red"],
        ],
        "more": ("--normalize-text",),
        "answers": ["red", "a red ball", "blue"],
    },
}
WORDS = {"entailment": "yes", "neutral": "maybe", "contradiction": "no"}


@pytest.mark.parametrize("name", SAME)
def test_one_line_gives_the_ids_of_the_registered_task(
    name: str, tmp_path: Path, sentencepiece_dir: Path
) -> None:
    case = SAME[name]
    answers: tuple[str, ...] = ()
    if "answers" in case:
        answers = ("--ans2label-dict", json.dumps(case["answers"]))
    registered = rows_run(
        case.get("task", name), tmp_path, case["rows"], sentencepiece_dir, *answers, *case.get("flags", ())
    )
    expected = batch_of(registered.task.dataset("train"))
    # What a label means is the registered task's own; with one line the answer itself stands in the column.
    rows = [[WORDS.get(column, column) for column in columns] for columns in case["rows"]]
    run = run_of(
        tmp_path,
        sentencepiece_dir,
        rows,
        *answers,
        *case.get("more", ()),
        instruction=RELEASED[name],
        columns=case["columns"],
    )
    found = batch_of(run.task.dataset("train"))
    for key in ("target", "prefix_tokens", "conf"):
        assert (key in found) == (key in expected)
        assert key not in found or torch.equal(found[key], expected[key])
    assert found["net_input"].keys() == expected["net_input"].keys()
    for key, value in expected["net_input"].items():
        assert torch.equal(found["net_input"][key], value)
    assert found["id"].tolist() == expected["id"].tolist()
    supervised = expected["target"].ne(PAD)
    assert ("answer_space" in found) == ("answer_space" in expected) == bool(answers)
    if answers:
        assert torch.equal(
            found["answer_space"].target_masks(found["target"], supervised),
            expected["answer_space"].target_masks(expected["target"], supervised),
        )


def test_the_grounding_line_is_scored_and_restricted_as_the_registered_task(
    tmp_path: Path, sentencepiece_dir: Path
) -> None:
    case = SAME["refcoco"]
    registered = rows_run("refcoco", tmp_path, case["rows"], sentencepiece_dir, "--eval-acc", split="valid")
    expected = batch_of(registered.task.dataset("valid"))["references"]
    run = run_of(
        tmp_path,
        sentencepiece_dir,
        case["rows"],
        *case["more"],
        *("--metric", "box_accuracy"),
        instruction=RELEASED["refcoco"],
        columns=case["columns"],
        split="valid",
    )
    assert batch_of(run.task.dataset("valid"))["references"] == expected
    space, other = run.task.answer_space(), registered.task.answer_space()
    assert isinstance(space, TokenRange)
    assert vars(space) == vars(other)


# Slots


@pytest.mark.parametrize(
    ("instruction", "values", "source", "target"),
    [
        (COLOUR, {"thing": "ball", "colour": "red"}, " what colour is the ball?", " red"),
        (
            "[image:photo] what is at [box:place]? -> [label:name]",
            {"place": "0,0,20,30", "name": "a car"},
            " what is at<bin_0><bin_0><bin_8><bin_15>?",
            " a car",
        ),
        (
            "[image:photo] where is the [text:name]? -> it is at [box:place] for sure",
            {"place": "0,0,20,30", "name": "car"},
            " where is the car?",
            " it is at<bin_0><bin_0><bin_8><bin_15> for sure",
        ),
        (
            " what shows [codes:drawing] ? ->[text:name]",
            {"drawing": " 3 0  15 ", "name": "a car"},
            " what shows<code_3><code_0><code_15> ?",
            "a car",
        ),
        (
            "[image:photo] the [label:kind] [text:name] -> [box:place] [codes:drawing] [label:kind]",
            {"kind": "old", "name": "car", "place": "0,0,40,15", "drawing": "1 2"},
            " the old car",
            "<bin_0><bin_0><bin_15><bin_8><code_1><code_2> old",
        ),
    ],
)
def test_every_kind_of_slot_on_either_side(
    instruction: str,
    values: dict[str, str],
    source: str,
    target: str,
    tmp_path: Path,
    sentencepiece_dir: Path,
) -> None:
    columns = {"id": "7", "photo": picture(), **values}
    run = run_of(
        tmp_path,
        sentencepiece_dir,
        [list(columns.values())],
        instruction=instruction,
        columns=",".join(columns),
    )
    assert texts_of(run) == (source, target)
    example = run.task.dataset("train")[0]
    assert example.target[-1] == EOS
    assert (example.image is None) == ("[image" not in instruction)
    assert example.code_target == ("[codes" in instruction.split("->")[1])


def test_columns_may_stand_in_any_order_and_be_unused(tmp_path: Path, sentencepiece_dir: Path) -> None:
    run = run_of(
        tmp_path,
        sentencepiece_dir,
        [["red", "nothing", picture(), "7", "ball"]],
        columns="colour, unused, photo, id, thing",
    )
    assert texts_of(run) == (" what colour is the ball?", " red")
    assert run.task.dataset("train")[0].id == "7"


def test_selected_columns_are_named(tmp_path: Path, sentencepiece_dir: Path) -> None:
    rows = [["x", "red", picture(), "7", "ball"]]
    run = run_of(tmp_path, sentencepiece_dir, rows, "--selected-cols", "3,2,4,1")
    assert texts_of(run) == (" what colour is the ball?", " red")


def test_two_pictures_and_a_box_of_the_first(tmp_path: Path, sentencepiece_dir: Path) -> None:
    first, second = picture(size=(40, 30)), picture((0, 200, 0), size=(10, 80))
    rows = [["0", first, second, "0,0,40,30", "yes"], ["1", second, first, "0,0,10,80", "no"]]
    run = run_of(
        tmp_path,
        sentencepiece_dir,
        rows,
        instruction="[image:one] is [box:place] in [image:two] ? -> [label:answer]",
        columns="id,one,two,place,answer",
    )
    batch = batch_of(run.task.dataset("train"))
    inputs = batch["net_input"]
    assert texts_of(run)[0] == texts_of(run, row=1)[0] == " is<bin_0><bin_0><bin_15><bin_15> in ?"
    assert torch.equal(inputs["patch_images"][0], inputs["patch_images_2"][1])
    assert torch.equal(inputs["patch_images"][1], inputs["patch_images_2"][0])
    assert not torch.equal(inputs["patch_images"], inputs["patch_images_2"])
    assert torch.isfinite(run.model()(**inputs)[0]).all()


def test_no_picture_at_all(tmp_path: Path, sentencepiece_dir: Path) -> None:
    run = run_of(
        tmp_path,
        sentencepiece_dir,
        [["0", "a long story", "a story"]],
        instruction=' what is the summary of article " [text:article] "? ->[text:summary]',
        columns="id,article,summary",
    )
    assert "patch_images" not in batch_of(run.task.dataset("train"))["net_input"]
    assert texts_of(run) == (' what is the summary of article " a long story "?', "a story")


def test_source_texts_stay_as_they_are_unless_told(tmp_path: Path, sentencepiece_dir: Path) -> None:
    rows = [row(" Big/RED  T-Shirt one two", "Dark-Red")]
    assert texts_of(run_of(tmp_path, sentencepiece_dir, rows)) == (
        " what colour is the  Big/RED  T-Shirt one two?",
        " Dark-Red",
    )
    run = run_of(tmp_path, sentencepiece_dir, rows, "--normalize-text", "--max-src-length", "4")
    assert texts_of(run) == (" what colour is the big red t shirt?", " Dark-Red")


@pytest.mark.parametrize(
    ("target", "value", "cut"),
    [
        ("[text:a]", "one very long answer", True),
        ("[codes:a]", "1 2 3 4 5", False),
        ("[box:a]", "0,0,9,9", False),
    ],
)
def test_only_free_text_is_cut(
    target: str, value: str, cut: bool, tmp_path: Path, sentencepiece_dir: Path
) -> None:
    rows, line = [["0", picture(), value]], f"[image:p] what? -> {target}"
    run = run_of(
        tmp_path, sentencepiece_dir, rows, "--max-tgt-length", "2", instruction=line, columns="id,p,a"
    )
    target_length = len(run.task.dataset("train")[0].target)
    assert (target_length == 2 + 1) if cut else (target_length > 2 + 1)


def test_spans_of_boxes(tmp_path: Path, sentencepiece_dir: Path) -> None:
    """The last bin is the picture's end, unless `--max-image-size` says otherwise."""
    rows, line = [["0", picture(), "0,0,40,30"]], "[image:photo] where? -> [box:place]"
    for more, expected in (
        ((), "<bin_0><bin_0><bin_15><bin_15>"),
        (("--max-image-size", "64"), "<bin_0><bin_0><bin_8><bin_8>"),
    ):
        run = run_of(tmp_path, sentencepiece_dir, rows, *more, instruction=line, columns="id,photo,place")
        assert texts_of(run)[1] == expected


# Answers


@pytest.mark.parametrize("flag", ["--answers", "--ans2label-file"])
def test_a_closed_set(flag: str, tmp_path: Path, sentencepiece_dir: Path) -> None:
    (tmp_path / "colours.txt").write_text("red\ndark blue\n")
    file = (flag, str(tmp_path / "colours.txt"))
    rows = [row(), row(colour="1.0|!+green&&0.3|!+dark blue"), row(colour="green")]
    run = run_of(tmp_path, sentencepiece_dir, rows, *file)
    dataset = run.task.dataset("train")
    assert [texts_of(run, row=i)[1] for i in (0, 1)] == [" red", " dark blue"]
    assert dataset[1].weight == 0.3
    assert dataset[2] is None
    assert bad_rows(tmp_path) == ["no answer of 'green' is in the answer list"]
    assert isinstance(run.task.answer_space(), AnswerTrie)

    valid = run_of(tmp_path, sentencepiece_dir, rows, *file, split="valid").task.dataset("valid")
    batch = batch_of(valid)
    assert batch["references"] == [["red"], ["green", "dark blue"], ["green"]]
    assert batch["target"].ne(PAD).any(dim=1).tolist() == [True, True, False]


@pytest.mark.parametrize(
    "line",
    [
        "[image:photo] what [text:thing]? -> [box:colour]",
        "[image:photo] what? -> [text:thing] [text:colour]",
        "[image:photo] what? -> yes",
    ],
)
def test_a_closed_set_needs_a_single_answer(line: str, tmp_path: Path, sentencepiece_dir: Path) -> None:
    (tmp_path / "colours.txt").write_text("red\n")
    flags = flags_of(line, COLUMNS, "--answers", str(tmp_path / "colours.txt"))
    with pytest.raises(ValueError, match="--answers: expected a target with one slot, text or label"):
        task_run("instruct", "a,b", sentencepiece_dir, *flags)


@pytest.mark.parametrize(
    ("line", "kind", "length"),
    [
        ("[image:photo] where? -> [box:place]", "bin_range", 4),
        (" draw [text:photo] -> [codes:place]", "code_range", None),
    ],
)
def test_boxes_and_codes_stay_among_their_tokens(
    line: str, kind: str, length: int | None, sentencepiece_dir: Path
) -> None:
    task = task_run("instruct", "a,b", sentencepiece_dir, *flags_of(line, "id,photo,place")).task
    space, (start, end) = task.answer_space() if task.vocabulary else None, getattr(task.vocabulary, kind)
    assert isinstance(space, TokenRange)
    assert (space.start, space.end, space.length) == (start, end, length)


@pytest.mark.parametrize("target", ["[text:place]", "at [box:place]", "[box:place] [label:photo]"])
def test_other_targets_are_free(target: str, sentencepiece_dir: Path) -> None:
    flags = flags_of(f" where is [label:photo] ? -> {target}", "id,photo,place")
    task = task_run("instruct", "a,b", sentencepiece_dir, *flags).task
    assert task.answer_space() is None


# References and metrics


def score(run: Run, outputs: list[str]) -> float:
    """The mean score of a validation batch."""
    run.task.generate_texts = lambda *_: outputs
    log = run.task.validate(batch_of(run.task.dataset("valid")), torch.nn.Identity())
    assert log["_score_cnt"] == len(outputs)
    return log["_score_sum"] / log["_score_cnt"]


@pytest.mark.parametrize(
    ("metric", "columns", "outputs", "expected"),
    [
        ("accuracy", ["red&&crimson", "blue"], [" crimson", "green "], 0.5),
        ("accuracy", ["0.3|!+red", "0.6|!+blue&&1.0|!+navy"], ["red", "blue"], 1.0),
        ("vqa", ["0.3|!+red", "0.6|!+blue&&1.0|!+navy"], ["red", "blue"], 0.45),
        ("vqa", ["red", "blue"], ["red", "green"], 0.5),
        ("rouge_l", ["a red ball&&red", "blue"], ["a red ball", "green"], 0.5),
        ("math:hypot", ["red", "blue"], ["red", "blue"], None),
        ("test_instruct:lengths", ["red", "blue&&navy"], ["red", "green"], 4.0),
    ],
)
def test_metrics(
    metric: str,
    columns: list[str],
    outputs: list[str],
    expected: float | None,
    tmp_path: Path,
    sentencepiece_dir: Path,
) -> None:
    rows = [row(colour=column) for column in columns]
    run = run_of(tmp_path, sentencepiece_dir, rows, "--metric", metric, split="valid")
    if expected is None:
        with pytest.raises(TypeError):
            score(run, outputs)
    else:
        assert score(run, outputs) == pytest.approx(expected)


def lengths(outputs: list[str], references: list[list[str]]) -> list[int]:
    """A metric of one's own."""
    assert all(references)
    return [len(output) for output in outputs]


def test_cider_is_that_of_captions(tmp_path: Path, sentencepiece_dir: Path) -> None:
    rows = [
        ["0", picture(), "A red ball, on a table!&&a red ball lies on the table."],
        ["1", picture(), "two dogs run&&two brown dogs run on the grass"],
        ["2", picture(), "a man on a horse."],
    ]
    outputs = ["a red ball, on the table", "two dogs.", "a horse"]
    registered = rows_run("caption", tmp_path, rows, sentencepiece_dir, "--eval-cider", split="valid")
    expected = score(registered, outputs)
    run = run_of(
        tmp_path,
        sentencepiece_dir,
        rows,
        *("--metric", "cider"),
        instruction=RELEASED["caption"],
        columns="id,picture,caption",
        split="valid",
    )
    assert score(run, outputs) == pytest.approx(expected)
    assert expected > 1
    # Confidences are no words.
    rated = [[i, image, "0.6|!+" + text.replace("&&", "&&1.0|!+")] for i, image, text in rows]
    run = run_of(
        tmp_path,
        sentencepiece_dir,
        rated,
        *("--metric", "cider"),
        instruction=RELEASED["caption"],
        columns="id,picture,caption",
        split="valid",
    )
    assert score(run, outputs) == pytest.approx(expected)


@pytest.mark.parametrize(("metric", "expected"), [("box_accuracy", 0.5), ("box_iou", (1 + 7 / 15) / 2)])
def test_box_metrics(metric: str, expected: float, tmp_path: Path, sentencepiece_dir: Path) -> None:
    rows = [[str(i), picture(), "0,0,40,30"] for i in range(2)]
    run = run_of(
        tmp_path,
        sentencepiece_dir,
        rows,
        *("--metric", metric),
        instruction="[image:photo] where? -> [box:place]",
        columns="id,photo,place",
        split="valid",
    )
    outputs = ["<bin_0><bin_0><bin_15><bin_15>", "<bin_0><bin_0><bin_15><bin_7>"]
    assert score(run, outputs) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("line", "values", "reference"),
    [
        (
            " draw a [text:name] -> [codes:drawing]",
            {"name": "car", "drawing": "3 0 15"},
            "<code_3><code_0><code_15>",
        ),
        (
            "[image:photo] find the [text:name] -> it is at [box:place]",
            {"name": "car", "place": "0,0,20,30"},
            "it is at<bin_0><bin_0><bin_8><bin_15>",
        ),
        (
            " what? -> a [text:name] of [text:colour]",
            {"name": "car & van", "colour": "red"},
            "a car & van of red",
        ),
    ],
)
def test_what_outputs_of_several_parts_are_compared_with(
    line: str, values: dict[str, str], reference: str, tmp_path: Path, sentencepiece_dir: Path
) -> None:
    columns = {"id": "7", "photo": picture(), **values}
    run = run_of(
        tmp_path,
        sentencepiece_dir,
        [list(columns.values())],
        *("--metric", "accuracy"),
        instruction=line,
        columns=",".join(columns),
        split="valid",
    )
    assert run.task.dataset("valid")[0].references == [reference]
    # The reference is what decoding the target gives.
    assert score(run, [texts_of(run, "valid")[1]]) == 1.0


def test_without_a_metric_nothing_is_generated(
    tmp_path: Path, sentencepiece_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of(tmp_path, sentencepiece_dir, [row()], split="valid")
    monkeypatch.setattr(run.task, "generate_texts", lambda *_: pytest.fail("generated"))
    assert run.task.validate({}, torch.nn.Identity()) == {}


@pytest.mark.parametrize("metric", ["bleu", "nowhere:function", "math:nothing"])
def test_unknown_metrics_stop_before_training(metric: str, sentencepiece_dir: Path) -> None:
    with pytest.raises(ValueError, match=f"metric '{metric}'"):
        task_run("instruct", "a,b", sentencepiece_dir, *flags_of(COLOUR, COLUMNS, "--metric", metric))


# Mistakes


@pytest.mark.parametrize(
    ("line", "columns", "error", "message"),
    [
        ("", COLUMNS, ValueError, "task instruct needs --instruction and --columns"),
        (COLOUR, "", ValueError, "task instruct needs --instruction and --columns"),
        ("[image:photo] what? -> [colour:name]", COLUMNS, InstructionError, "unknown slot type 'colour'"),
        (
            "[image:photo] what? -> [text:name]",
            COLUMNS,
            InstructionError,
            "no column 'name': expected one of id, photo, thing, colour",
        ),
        ("[image:photo] what?", COLUMNS, InstructionError, "no arrow"),
        (
            COLOUR,
            "photo,thing,colour",
            ValueError,
            "--columns photo,thing,colour: expected different names, one of them id",
        ),
        (
            COLOUR,
            "id,photo,thing,colour,thing",
            ValueError,
            "--columns .*: expected different names, one of them id",
        ),
    ],
)
def test_mistakes_in_the_line_stop_before_training(
    line: str, columns: str, error: type[Exception], message: str, sentencepiece_dir: Path
) -> None:
    with pytest.raises(error, match=message):
        task_run("instruct", "a,b", sentencepiece_dir, *flags_of(line, columns))


def test_the_place_of_a_mistake_is_shown(sentencepiece_dir: Path) -> None:
    line = "[image:photo] what is the [text:thnig]? -> [text:colour]"
    with pytest.raises(InstructionError) as error:
        task_run("instruct", "a,b", sentencepiece_dir, *flags_of(line, COLUMNS))
    caret = str(error.value).splitlines()[-1]
    assert str(error.value).splitlines()[-2][caret.index("^") :].startswith("[text:thnig]")


def test_a_wrong_number_of_columns_is_explained(tmp_path: Path, sentencepiece_dir: Path) -> None:
    with pytest.raises(
        ValueError, match=r"has 3 columns.*task instruct needs 4 \(id, photo, thing, colour\)"
    ):
        run_of(tmp_path, sentencepiece_dir, [["7", picture(), "ball"]])


@pytest.mark.parametrize(
    ("line", "columns", "values", "reason"),
    [
        (COLOUR, COLUMNS, [picture(), "ball", " "], "the column colour is empty"),
        (COLOUR, COLUMNS, [picture(), "ball", "x|!+red"], "confidence 'x' is no number"),
        (
            "[image:p] is [box:b] ? -> [text:a]",
            "id,p,b,a",
            [picture(), "1,2,3", "x"],
            "expected four numbers",
        ),
        (
            "[image:p] where? -> [box:b]",
            "id,p,b",
            [picture(), "0,0,41,30"],
            "reaches out of the picture of 40 x 30",
        ),
        ("[image:p] where? -> [box:b]", "id,p,b", [picture(), "9,9,9,9"], "has no area"),
        (
            "[image:p] draw -> [codes:c]",
            "id,p,c",
            [picture(), "1 2 x"],
            "[codes:c]: expected image codes between spaces, got '1 2 x'",
        ),
        (
            "[image:p] draw -> [codes:c]",
            "id,p,c",
            [picture(), "1 16"],
            "16 is no image code: expected 0 to 15",
        ),
    ],
)
def test_values_that_do_not_fit_are_bad_rows(
    line: str, columns: str, values: list[str], reason: str, tmp_path: Path, sentencepiece_dir: Path
) -> None:
    good = {
        "p": picture(),
        "b": "0,0,20,20",
        "c": "1 2",
        "a": "yes",
        "photo": picture(),
        "thing": "x",
        "colour": "y",
    }
    rows = [["0", *(good[name] for name in columns.split(",")[1:])], ["1", *values]]
    for split in ("train", "valid"):
        run = run_of(tmp_path, sentencepiece_dir, rows, instruction=line, columns=columns, split=split)
        assert run.task.dataset(split)[0] is not None
        assert run.task.dataset(split)[1] is None
        (found,) = bad_rows(tmp_path)
        assert reason in found


def test_a_box_without_a_picture_is_explained(tmp_path: Path, sentencepiece_dir: Path) -> None:
    with pytest.raises(ValueError, match=r"\[box:b\] needs a picture that it is a box of"):
        run_of(
            tmp_path,
            sentencepiece_dir,
            [["0", "0,0,1,1", "x"]],
            instruction=" what is at [box:b] ? -> [text:a]",
            columns="id,b,a",
        )


def test_rows_to_be_answered_need_no_target(tmp_path: Path, sentencepiece_dir: Path) -> None:
    run = run_of(tmp_path, sentencepiece_dir, [row(), row(colour="")], split="test")
    batch = batch_of(run.task.dataset("test"))
    assert batch["references"] == [["red"], []]
    assert batch["target"].ne(PAD).any(dim=1).tolist() == [True, False]


# Checkpoints


def test_a_checkpoint_brings_instruction_columns_and_answers(tmp_path: Path, sentencepiece_dir: Path) -> None:
    (tmp_path / "colours.txt").write_text("red\ndark blue\n")
    saved = run_of(
        tmp_path, sentencepiece_dir, [row()], "--answers", str(tmp_path / "colours.txt"), "--metric", "vqa"
    )
    cfg = training_config(str(tmp_path / "rows.tsv"), "--bpe-dir", str(sentencepiece_dir), task="instruct")
    with open_dict(cfg):
        cfg.common_eval.path = "model.pt"  # as fairseq-generate sets it
    task = tasks.setup_task(cfg.task)
    model = task.build_model(saved.cfg.model, from_checkpoint=True)
    assert task.instruction.line == COLOUR
    assert task.columns == ("id", "photo", "thing", "colour")
    assert task.answers == ["red", "dark blue"]
    task.load_dataset("test")
    hypotheses = task.inference_step(
        task.build_generator([model], Namespace()), [model], batch_of(task.dataset("test"))
    )
    assert {task.decode(h["tokens"]).strip() for h in hypotheses[0]} == {"red", "dark blue"}


def test_a_checkpoint_of_another_task_brings_no_instruction(tmp_path: Path, sentencepiece_dir: Path) -> None:
    saved = rows_run("caption", tmp_path, [["0", picture(), "a dog"]], sentencepiece_dir)
    cfg = training_config(str(tmp_path / "rows.tsv"), "--bpe-dir", str(sentencepiece_dir), task="instruct")
    with open_dict(cfg):
        cfg.common_eval.path = "model.pt"
    task = tasks.setup_task(cfg.task)
    with pytest.raises(ValueError, match="task instruct needs --instruction and --columns"):
        task.build_model(saved.cfg.model, from_checkpoint=True)


def test_data_of_one_line_can_go_to_spawned_workers(tmp_path: Path, sentencepiece_dir: Path) -> None:
    dataset = run_of(tmp_path, sentencepiece_dir, [row()], "--metric", "accuracy").task.dataset("train")
    assert torch.equal(pickle.loads(pickle.dumps(dataset))[0].source, dataset[0].source)


# Text around the target's one slot


@pytest.mark.parametrize("metric", ["accuracy", "vqa"])
def test_an_answer_is_scored_with_the_text_around_it(
    metric: str, tmp_path: Path, sentencepiece_dir: Path
) -> None:
    instruction = "[image:photo] what colour is the [text:thing]? -> it is [text:colour]"
    answers = tmp_path / "answers.txt"
    answers.write_text("red\npink\n")
    flags = ("--metric", metric, "--answers", str(answers))
    rows = [row(colour="0.3|!+red&&1.0|!+pink"), row(colour="red")]
    run = run_of(tmp_path, sentencepiece_dir, rows, *flags, instruction=instruction, split="valid")
    dataset = run.task.dataset("valid")
    outputs = [run.task.clean_output(run.task.decode(dataset[i].target)) for i in range(2)]
    assert outputs == ["it is pink", "it is red"]
    references = [dataset[i].references for i in range(2)]
    found = run.task.validation_metric()(["it is red", "it is red"], references)
    assert found.tolist() == ([0.3, 1.0] if metric == "vqa" else [1.0, 1.0])
    assert run.task.validation_metric()(outputs, references).tolist() == [1.0, 1.0]
    assert run.task.validation_metric()(["red", "red"], references).tolist() == [0.0, 0.0]


@pytest.mark.parametrize(("scorer", "expected"), [("accuracy", 100.0), ("vqa", 30.0), ("rouge_l", 100.0)])
def test_generation_keeps_confidences_for_the_scorer_that_reads_them(
    scorer: str, expected: float, tmp_path: Path, sentencepiece_dir: Path
) -> None:
    run = run_of(
        tmp_path,
        sentencepiece_dir,
        [row(colour="0.3|!+red&&1.0|!+pink")],
        "--metric",
        "accuracy",
        split="test",
    )
    with open_dict(run.cfg):
        run.cfg.common_eval.path = "checkpoint.pt"
    task = tasks.setup_task(run.cfg.task)
    task.load_dataset("test")
    target = task.decode(task.dataset("test")[0].target)
    assert target == "0.3|!+red&&1.0|!+pink"
    counted = scoring.build_scorer(scorer, None)
    counted.add_string(target, "red")
    assert counted.score() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("target", "metric", "message"),
    [
        ("[text:colour]", "box_accuracy", "expected a target that is one box slot"),
        ("at [box:colour]", "box_iou", "expected a target that is one box slot"),
        ("[box:colour]", "accuracy", "the target is a box, expected box_accuracy or box_iou"),
    ],
)
def test_a_metric_that_does_not_fit_the_target_stops_before_training(
    target: str, metric: str, message: str, tmp_path: Path, sentencepiece_dir: Path
) -> None:
    instruction = f"[image:photo] what? -> {target}"
    with pytest.raises(ValueError, match=f"--metric {metric}: {message}"):
        run_of(tmp_path, sentencepiece_dir, [row()], "--metric", metric, instruction=instruction)
