"""Entailment: rows, both prompts, labels, and the validation score."""

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
from task_builders import (
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
    validated,
)


def row(hypothesis: str = "a dog runs", caption: str = "two dogs", label: str = "entailment") -> list[str]:
    return ["5", picture(), hypothesis, caption, label]


@each_reference_row("snli_ve")
def test_rows_agree_with_the_original(case: dict[str, Any], gpt2_bpe_dir: Path, tmp_path: Path) -> None:
    batch = batch_like(case, tmp_path, gpt2_bpe_dir)
    assert_answers_like(case, batch)
    assert batch["references"] == [list(case["ref_dict"])]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ((), ' does the image describe " two dogs play, t shirt "?'),
        (
            ("--add-caption",),
            ' can image and text1 " a person on grass. " imply text2 " two dogs play, t shirt "?',
        ),
        (("--max-src-length", "2"), ' does the image describe " two dogs "?'),
        (
            ("--max-src-length", "2", "--add-caption"),
            ' can image and text1 " a person " imply text2 " two dogs "?',
        ),
        (("--keep-text",), ' does the image describe " ...Two dogs play,  T-shirt "?'),
        (
            ("--keep-text", "--add-caption"),
            ' can image and text1 " A <person> on/grass. " imply text2 " ...Two dogs play,  T-shirt "?',
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_the_question_as_text(
    flags: tuple[str, ...], expected: str, tmp_path: Path, sentencepiece_dir: Path
) -> None:
    rows = [row("...Two dogs play,  T-shirt ", " A <person> on/grass.")]
    assert source_of(dataset_of("snli_ve", tmp_path, rows, sentencepiece_dir, *flags)) == expected


def test_zero_shot_chooses_among_the_three_answers_too(tmp_path: Path, sentencepiece_dir: Path) -> None:
    run = rows_run("snli_ve", tmp_path, [row()], sentencepiece_dir, "--zero-shot", split="valid")
    generator = run.task.build_generator([run.model()], Namespace(beam=5))
    (hypotheses,) = run.task.inference_step(generator, [run.model()], batch_of(run.task.dataset("valid")))
    assert sorted(run.task.decode(h["tokens"]).strip() for h in hypotheses) == ["maybe", "no", "yes"]


@pytest.mark.parametrize(
    ("label", "answer"), [("contradiction", "no"), ("entailment", "yes"), (" neutral ", "maybe")]
)
def test_labels_are_answers(label: str, answer: str, tmp_path: Path, sentencepiece_dir: Path) -> None:
    dataset = dataset_of("snli_ve", tmp_path, [row(label=label)], sentencepiece_dir)
    assert target_of(dataset) == " " + answer
    assert list(dataset[0].references) == [answer]


@pytest.mark.parametrize("split", ["train", "valid"])
def test_other_labels_are_bad_rows(split: str, tmp_path: Path, sentencepiece_dir: Path) -> None:
    rows = [row(), row(label="yes"), row(label="Entailment")]
    dataset = dataset_of("snli_ve", tmp_path, rows, sentencepiece_dir, split=split)
    assert [dataset[i] is None for i in range(3)] == [False, True, True]
    expected = "expected one of contradiction, entailment, neutral"
    assert bad_rows(tmp_path) == [f"the label 'yes': {expected}", f"the label 'Entailment': {expected}"]


def test_a_label_is_needed_in_training_only(tmp_path: Path, sentencepiece_dir: Path) -> None:
    rows = [row(), row(label="")]
    assert dataset_of("snli_ve", tmp_path, rows, sentencepiece_dir)[1] is None
    assert bad_rows(tmp_path) == ["the label '': expected one of contradiction, entailment, neutral"]
    for split in ("valid", "test"):
        batch = batch_of(dataset_of("snli_ve", tmp_path, rows, sentencepiece_dir, split=split))
        assert batch["references"] == [["yes"], []]
        assert batch["target"].ne(PAD).any(dim=1).tolist() == [True, False]


def test_labels_whose_answer_the_list_lacks(tmp_path: Path, sentencepiece_dir: Path) -> None:
    """Two answers of three: learning the third would have an infinite loss."""
    rows, flags = [row(), row(label="neutral")], ("--ans2label-dict", json.dumps({"no": 0, "yes": 1}))
    assert dataset_of("snli_ve", tmp_path, rows, sentencepiece_dir, *flags)[1] is None
    assert bad_rows(tmp_path) == ["no answer of 'maybe' is in the answer list"]
    batch = batch_of(dataset_of("snli_ve", tmp_path, rows, sentencepiece_dir, *flags, split="valid"))
    assert batch["references"] == [["yes"], ["maybe"]]
    assert batch["target"].ne(PAD).any(dim=1).tolist() == [True, False]


@pytest.mark.parametrize("hypothesis", ["", "  ", "..."])
@pytest.mark.parametrize("split", ["train", "valid"])
def test_a_row_without_a_hypothesis_is_a_bad_row(
    hypothesis: str, split: str, tmp_path: Path, sentencepiece_dir: Path
) -> None:
    dataset = dataset_of("snli_ve", tmp_path, [row(), row(hypothesis)], sentencepiece_dir, split=split)
    assert dataset[1] is None
    assert bad_rows(tmp_path) == ["the hypothesis is empty"]


def test_the_validation_score_is_the_share_of_right_answers(
    tmp_path: Path, sentencepiece_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [row(), row(label="neutral"), row(label="contradiction"), row(label="")]
    task = rows_run("snli_ve", tmp_path, rows, sentencepiece_dir, split="valid").task
    assert validated(task, [" yes", "maybe", "yes", "no"], monkeypatch) == {
        "_score_sum": 2.0,
        "_score_cnt": 3,
    }
    assert task.score_name == "snli_score"
