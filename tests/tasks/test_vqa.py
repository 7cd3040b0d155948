"""Question answering: rows, prompts, answers and their confidences, and the validation score."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq import metrics
from fairseq.criterions.cross_entropy import CrossEntropyCriterion
from task_builders import (
    EOS,
    PAD,
    assert_answers_like,
    bad_rows,
    batch_like,
    batch_of,
    dataset_of,
    each_reference_row,
    picture,
    rows_run,
    source_of,
    target_of,
    task_run,
    validated,
)

COLOURS = ("--ans2label-dict", json.dumps({"light blue": 0, "red": 1, "light green": 2}))


def row(question: str = "what colour?", answer: str = "red", objects: str = "") -> list[str]:
    return ["7", picture(), question, answer, objects]


def example(folder: Path, bpe_dir: Path, columns: list[str], *flags: str, split: str = "train") -> Any:
    return dataset_of("vqa", folder, [columns], bpe_dir, *flags, split=split)[0]


@each_reference_row("vqa_gen")
def test_rows_agree_with_the_original(case: dict[str, Any], gpt2_bpe_dir: Path, tmp_path: Path) -> None:
    batch = batch_like(case, tmp_path, gpt2_bpe_dir)
    assert_answers_like(case, batch)
    (references,) = batch["references"]
    assert dict(reversed(text.split("|!+")) for text in references) == {
        answer: str(confidence) for answer, confidence in case["ref_dict"].items()
    }


def test_the_released_name_is_the_same_task(tmp_path: Path, sentencepiece_dir: Path) -> None:
    rows = [row("what is it?", "0.6|!+red&&0.9|!+light blue", "a&&b"), row("and this", "red")]
    flags = ("--add-object", *COLOURS)
    batches = [batch_of(dataset_of(n, tmp_path, rows, sentencepiece_dir, *flags)) for n in ("vqa", "vqa_gen")]
    for key in ("target", "prefix_tokens", "conf"):
        assert torch.equal(batches[0][key], batches[1][key])
    for key, value in batches[0]["net_input"].items():
        assert torch.equal(value, batches[1]["net_input"][key])
    assert batches[0]["references"] == batches[1]["references"]


# Columns


@pytest.mark.parametrize("columns", ["0,5,2,3", "0,5,2,3,4", "0,5,2,3,4,1"])
def test_objects_and_captions_may_be_left_out(columns: str, tmp_path: Path, sentencepiece_dir: Path) -> None:
    released = ["7", "a caption", "what is it?", "red", "cat&&dog", picture()]
    found = example(tmp_path, sentencepiece_dir, released, "--selected-cols", columns)
    expected = example(tmp_path, sentencepiece_dir, row("what is it?"))
    assert found.id == "7"
    for name in ("source", "target", "image"):
        assert torch.equal(getattr(found, name), getattr(expected, name))


@pytest.mark.parametrize("columns", ["0,5,2", "0,5,2,3,4,1,0"])
def test_other_numbers_of_columns_are_explained(
    columns: str, tmp_path: Path, sentencepiece_dir: Path
) -> None:
    released = ["7", "a caption", "what is it?", "red", "cat&&dog", picture()]
    message = rf"--selected-cols {columns}\).*4 to 6 \(id, picture, question, answer, objects, caption\)"
    with pytest.raises(ValueError, match=message):
        dataset_of("vqa", tmp_path, [released], sentencepiece_dir, "--selected-cols", columns)


def test_objects_that_are_asked_for_must_be_there(tmp_path: Path, sentencepiece_dir: Path) -> None:
    flags = ("--selected-cols", "0,1,2,3", "--add-object")
    with pytest.raises(
        ValueError, match=r"task vqa needs 5 to 6 \(id, picture, question, answer, objects, caption\)"
    ):
        dataset_of("vqa", tmp_path, [row()], sentencepiece_dir, *flags)


# Prompts


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("what is the cat on?", " what is the cat on?"),
        ("What  COLOUR/size is the T-shirt", " what colour size is the t shirt?"),
        ("?, is it red ?", " is it red ?"),
        ("is it red. ", " is it red.?"),
    ],
)
def test_the_question_as_text(question: str, expected: str, tmp_path: Path, sentencepiece_dir: Path) -> None:
    assert source_of(dataset_of("vqa", tmp_path, [row(question)], sentencepiece_dir)) == expected


def test_the_question_may_be_kept_as_it_is(tmp_path: Path, sentencepiece_dir: Path) -> None:
    rows, flags = [row(" What T-shirt  is/was it ")], ("--keep-question",)
    text = source_of(dataset_of("vqa", tmp_path, rows, sentencepiece_dir, *flags))
    assert text == " What T-shirt  is/was it?"


def test_long_questions_are_cut_to_words(tmp_path: Path, sentencepiece_dir: Path) -> None:
    rows, flags = [row("one two three four?")], ("--max-src-length", "3")
    assert source_of(dataset_of("vqa", tmp_path, rows, sentencepiece_dir, *flags)) == " one two three?"


@pytest.mark.parametrize(
    ("objects", "expected"),
    [
        ("cat&&sofa&&blue sky", " is it? object: cat sofa blue sky"),
        ("&&".join(str(i) for i in range(40)), " is it? object: " + " ".join(str(i) for i in range(30))),
    ],
)
def test_the_objects_as_text(objects: str, expected: str, tmp_path: Path, sentencepiece_dir: Path) -> None:
    for flags, text in ((("--add-object",), expected), ((), " is it?")):
        dataset = dataset_of("vqa", tmp_path, [row("is it?", objects=objects)], sentencepiece_dir, *flags)
        assert source_of(dataset) == text


@pytest.mark.parametrize("kind", ["none", "src", "prev_output"])
def test_what_the_decoder_starts_with(kind: str, tmp_path: Path, sentencepiece_dir: Path) -> None:
    e = example(tmp_path, sentencepiece_dir, row("is it?", "light blue"), "--prompt-type", kind)
    source, answer = e.source.tolist(), e.target[e.target.ne(PAD)].tolist()
    start = {"none": source[:1], "src": source, "prev_output": source[:-1]}[kind]
    assert e.prev_output.tolist() == start + answer[:-1]
    assert e.target.tolist() == [PAD] * (len(start) - 1) + answer
    assert ([] if e.prompt is None else e.prompt.tolist()) == start[1:]
    assert answer[-1] == EOS


@pytest.mark.parametrize("kind", ["source", "SRC", ""])
def test_other_prompts_are_refused(kind: str, sentencepiece_dir: Path) -> None:
    with pytest.raises(ValueError, match=r"--prompt-type .*: expected one of none, src, prev_output"):
        task_run("vqa", "a.tsv,b.tsv", sentencepiece_dir, "--prompt-type", kind)


@pytest.mark.parametrize("question", ["", "  ", "?", " ? ?", "..."])
@pytest.mark.parametrize("split", ["train", "valid"])
def test_a_row_without_a_question_is_a_bad_row(
    question: str, split: str, tmp_path: Path, sentencepiece_dir: Path
) -> None:
    dataset = dataset_of("vqa", tmp_path, [row(), row(question)], sentencepiece_dir, split=split)
    assert dataset[0] is not None
    assert dataset[1] is None
    assert bad_rows(tmp_path) == ["the question is empty"]


# Answers


@pytest.mark.parametrize(
    ("column", "answer", "weight"),
    [
        ("red", "red", 1.0),
        ("a red one&&another", "a red one", 1.0),
        ("0.6|!+no&&1.0|!+yes", "yes", 1.0),
        ("0.6|!+no&&0.6|!+yes&&0.3|!+maybe", "no", 0.6),  # the first of equals
        ("0.3|!+Light-Blue", "Light-Blue", 0.3),  # never normalised
        ("&&0.3|!+ red && ", "red", 0.3),
    ],
)
def test_the_answer_of_highest_confidence_is_learnt(
    column: str, answer: str, weight: float, tmp_path: Path, sentencepiece_dir: Path
) -> None:
    dataset = dataset_of("vqa", tmp_path, [row(answer=column)], sentencepiece_dir)
    assert target_of(dataset) == " " + answer
    assert dataset[0].weight == weight


def test_free_answers_are_cut_to_tokens(tmp_path: Path, sentencepiece_dir: Path) -> None:
    long, flags = "one very long answer to a question", ("--max-tgt-length", "3")
    e = example(tmp_path, sentencepiece_dir, row(answer=long), *flags, "--prompt-type", "none")
    task = task_run("vqa", "a.tsv,b.tsv", sentencepiece_dir).task
    assert e.target.tolist() == [*task.vocabulary.encode(" " + long)[:3], EOS]
    answers = ("--ans2label-dict", json.dumps([long]))
    e = example(tmp_path, sentencepiece_dir, row(answer=long), *flags, *answers, "--prompt-type", "none")
    assert e.target.tolist() == [*task.vocabulary.encode(" " + long), EOS]


def test_with_a_list_the_best_answer_in_it_is_learnt(tmp_path: Path, sentencepiece_dir: Path) -> None:
    column = "1.0|!+navy&&0.3|!+red&&0.6|!+light blue"
    dataset = dataset_of("vqa", tmp_path, [row(answer=column)], sentencepiece_dir, *COLOURS)
    assert target_of(dataset) == " light blue"
    assert dataset[0].weight == 0.6
    assert list(dataset[0].references) == column.split("&&")  # all count when outputs are scored


def test_answers_outside_of_the_list_are_bad_in_training(tmp_path: Path, sentencepiece_dir: Path) -> None:
    rows = [row(), row(answer="1.0|!+navy"), row(answer="Red"), row(answer=" ")]
    dataset = dataset_of("vqa", tmp_path, rows, sentencepiece_dir, *COLOURS)
    assert [dataset[i] is None for i in range(4)] == [False, True, True, True]
    assert bad_rows(tmp_path) == [
        "no answer of '1.0|!+navy' is in the answer list",
        "no answer of 'Red' is in the answer list",
        "the answer is empty",
    ]


def test_answers_outside_of_the_list_are_scored_but_not_learnt_in_validation(
    tmp_path: Path, sentencepiece_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [row(answer="1.0|!+navy"), row(answer="red"), row(answer="")]
    flags = (*COLOURS, "--criterion", "adjust_label_smoothed_cross_entropy", "--label-smoothing", "0.1")
    run = rows_run("vqa", tmp_path, rows, sentencepiece_dir, *flags, split="valid")
    dataset = run.task.dataset("valid")
    batch, alone = batch_of(dataset), dataset.collater([dataset[0]])
    assert [list(references) for references in batch["references"]] == [["1.0|!+navy"], ["red"], []]
    assert batch["target"].ne(PAD).any(dim=1).tolist() == [False, True, False]
    assert bad_rows(tmp_path) == []

    criterion = run.task.build_criterion(run.cfg.criterion)
    model = run.model()
    loss, size, _ = run.task.valid_step(batch, model, criterion)
    assert torch.isfinite(loss)
    assert size == batch["ntokens"] > 0
    loss, size, log = run.task.valid_step(alone, model, criterion)
    assert (loss, size) == (0, 0)
    assert log["_score_cnt"] == 1

    assert validated(run.task, ["red", " red", "red"], monkeypatch) == {"_score_sum": 1.0, "_score_cnt": 2}


@pytest.mark.parametrize(
    ("column", "reason"),
    [
        ("often|!+red", "confidence 'often' is no number: 'often|!+red', expected like 0.6|!+cat"),
        ("|!+red", "confidence '' is no number: '|!+red', expected like 0.6|!+cat"),
        ("1.5|!+red", "confidence '1.5' is not from 0 to 1: '1.5|!+red'"),
        ("nan|!+red", "confidence 'nan' is not from 0 to 1: 'nan|!+red'"),
        ("1.0|!+", "the answer is empty: '1.0|!+'"),
    ],
)
@pytest.mark.parametrize("split", ["train", "valid"])
def test_confidences_that_do_not_parse_are_bad_rows(
    column: str, reason: str, split: str, tmp_path: Path, sentencepiece_dir: Path
) -> None:
    rows = [row(), row(answer=f"0.3|!+red&&{column}")]
    dataset = dataset_of("vqa", tmp_path, rows, sentencepiece_dir, split=split)
    assert dataset[1] is None
    assert bad_rows(tmp_path) == [reason]


def test_the_list_may_be_put_aside(tmp_path: Path, sentencepiece_dir: Path) -> None:
    dataset = dataset_of(
        "vqa", tmp_path, [row(answer="navy")], sentencepiece_dir, *COLOURS, "--unconstrained-training"
    )
    assert target_of(dataset) == " navy"
    assert dataset[0].answers is None


# Score


@pytest.mark.parametrize(
    ("columns", "outputs", "total"),
    [
        (["0.6|!+no&&0.3|!+yes", "1.0|!+red"], [" yes", "red "], 1.3),
        (["0.6|!+no", "0.9|!+red&&0.3|!+blue"], ["yes", "Red"], 0.0),
        (["yes", "red&&crimson"], ["yes", "crimson"], 2.0),  # without confidences: exact match
        (["yes", "red"], ["yes", "a red"], 1.0),
        (["", "0.6|!+red"], ["yes", "red"], 0.6),  # nobody knows: not scored
    ],
)
def test_the_validation_score_is_the_official_soft_accuracy(
    columns: list[str],
    outputs: list[str],
    total: float,
    tmp_path: Path,
    sentencepiece_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = [row(answer=column) for column in columns]
    task = rows_run("vqa", tmp_path, rows, sentencepiece_dir, split="valid").task
    log = validated(task, outputs, monkeypatch)
    scored = sum(bool(column) for column in columns)
    assert log == {"_score_sum": pytest.approx(total), "_score_cnt": scored}

    sums = {"loss": 1.0, "ntokens": 4, "nsentences": 2, "sample_size": 4}
    with metrics.aggregate(new_root=True) as aggregate:
        task.reduce_metrics([{**sums, **log}], CrossEntropyCriterion(task, False))
    assert aggregate.get_smoothed_values()["vqa_score"] == pytest.approx(total / scored, abs=1e-4)
