"""Files, epochs and steps of all tasks."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fairseq import tasks
from omegaconf import open_dict
from task_builders import Run, caption_run, captioning, write_captions

from ofa_fairseq.optim import training_length

# Files and epochs


def files_run(tmp_path: Path, digits_dir: Path, sizes: dict[str, int], *flags: str) -> Run:
    files = [write_captions(tmp_path / name, [f"{name} {i}" for i in range(n)]) for name, n in sizes.items()]
    return caption_run(",".join(map(str, files)), digits_dir, *flags)


def test_training_files_take_turns_and_the_last_is_for_validation(tmp_path: Path, digits_dir: Path) -> None:
    task = files_run(tmp_path, digits_dir, {"a.tsv": 3, "b.tsv": 4, "valid.tsv": 2}).task
    assert task.has_sharded_data("train")
    assert not task.has_sharded_data("valid")

    def file_of(split: str, epoch: int) -> str:
        task.load_dataset(split, epoch=epoch)
        return task.dataset(split).rows.path.name

    assert [file_of("train", epoch) for epoch in range(1, 6)] == ["a.tsv", "b.tsv", "a.tsv", "b.tsv", "a.tsv"]
    assert [file_of(split, 3) for split in ("valid", "test")] == ["valid.tsv", "valid.tsv"]
    assert task.dataset("train").shuffle
    assert not task.dataset("valid").shuffle


def test_one_training_file_needs_no_reloading(digits_dir: Path) -> None:
    assert not caption_run("a.tsv,valid.tsv", digits_dir).task.has_sharded_data("train")


@pytest.mark.parametrize("data", ["train.tsv", ",", ""])
def test_too_few_files_are_an_error_that_says_what_is_expected(data: str, digits_dir: Path) -> None:
    with pytest.raises(ValueError, match=r"last one for validation \(train.tsv,valid.tsv\)"):
        caption_run(data, digits_dir).task.load_dataset("train")


def test_a_single_file_is_enough_for_everything_but_training(tmp_path: Path, digits_dir: Path) -> None:
    task = files_run(tmp_path, digits_dir, {"test.tsv": 2}).task
    task.load_dataset("test")
    assert len(task.dataset("test")) == 2


def test_a_missing_file_is_named(tmp_path: Path, digits_dir: Path) -> None:
    task = caption_run(str(tmp_path / "nothing.tsv"), digits_dir).task
    with pytest.raises(FileNotFoundError, match=r"nothing.tsv: no such TSV file"):
        task.load_dataset("valid")


@pytest.mark.parametrize(
    ("iterator", "expected"),
    [
        ({"max_sentences": 4}, (3, 2)),
        ({"max_sentences": 4, "num_shards": 2}, (2, 1)),
        ({"max_tokens": 100}, (2, 1)),
        ({"max_sentences": 4, "skip_remainder_batch": True}, (2, 1)),
    ],
)
def test_the_length_of_training_is_announced(
    iterator: dict[str, Any], expected: tuple[int, ...], tmp_path: Path, digits_dir: Path
) -> None:
    task = files_run(
        tmp_path,
        digits_dir,
        {"a.tsv": 10 if "max_tokens" not in iterator else 20, "b.tsv": 7, "valid.tsv": 2},
    ).task
    lengths = []
    for epoch in (1, 2):
        task.load_dataset("train", epoch=epoch)
        batches = task.get_batch_iterator(task.dataset("train"), epoch=epoch, **iterator)
        lengths.append(len(batches.next_epoch_itr()))
    assert tuple(lengths) == expected
    assert training_length.announced() == expected


def test_validation_announces_nothing(
    tmp_path: Path, digits_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = files_run(tmp_path, digits_dir, {"valid.tsv": 2}).task
    task.load_dataset("valid")
    monkeypatch.setattr(training_length, "announce", lambda _: pytest.fail("announced"))
    task.get_batch_iterator(task.dataset("valid"), max_sentences=1)


def test_lists_of_bad_rows_lie_beside_the_results(digits_dir: Path, tmp_path: Path) -> None:
    run = caption_run("a.tsv,b.tsv", digits_dir, "--save-dir", str(tmp_path))
    assert run.task.bad_rows.path == tmp_path / "bad_rows.tsv"
    run = caption_run("a.tsv,b.tsv", digits_dir, "--bad-rows", str(tmp_path / "mine.tsv"))
    assert run.task.bad_rows.path == tmp_path / "mine.tsv"
    with open_dict(run.cfg):
        run.cfg.common_eval.path = "checkpoint.pt"  # as fairseq-generate sets it
    for results, expected in ((None, Path("bad_rows.tsv")), (str(tmp_path), tmp_path / "bad_rows.tsv")):
        run.cfg.common_eval.results_path = results
        run.cfg.task.bad_rows = None
        assert tasks.setup_task(run.cfg.task).bad_rows.path == expected


# Steps


@pytest.fixture(scope="module")
def generation(digits_dir: Path) -> tuple[Run, Any, dict[str, Any]]:
    return captioning(digits_dir)


class RecordingCriterion:
    """Takes part in a step and keeps what it was given."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    def __call__(self, model: Any, sample: dict[str, Any], **more: Any) -> tuple[Any, int, dict[str, Any]]:
        self.calls.append({"training": model.training, **more})
        return model(**sample["net_input"])[0].sum(), 1, {}


def test_training_tells_the_criterion_the_update_and_counts_skipped_rows(generation: Any) -> None:
    run, model, batch = generation
    criterion = RecordingCriterion()
    backward: list[torch.Tensor] = []
    optimizer = SimpleNamespace(backward=backward.append)
    for ignore in (False, True):
        sample = {**batch, "skipped_rows": 3}
        loss, _, log = run.task.train_step(
            sample, model, criterion, optimizer, update_num=17, ignore_grad=ignore
        )
        assert log["skipped_rows"] == 3
        assert backward[-1] is loss
        assert (loss == 0) == ignore
    assert criterion.calls == [{"training": True, "update_num": 17}] * 2


def test_validation_runs_in_evaluation_mode_on_the_averaged_model_if_there_is_one(generation: Any) -> None:
    run, model, batch = generation
    criterion = RecordingCriterion()
    model.train()
    loss, _, _ = run.task.valid_step(batch, model, criterion)
    assert not loss.requires_grad
    averaged = run.model().train()
    other, _, _ = run.task.valid_step(batch, model, criterion, ema_model=averaged)
    assert criterion.calls == [{"training": False}] * 2
    assert loss != other


def test_sentencepiece_may_be_named_without_its_model(digits_dir: Path) -> None:
    task = caption_run("a.tsv,b.tsv", digits_dir, "--bpe", "sentencepiece").task
    assert task.decode(torch.tensor(task.vocabulary.encode("a red one"))).strip() == "a red one"
