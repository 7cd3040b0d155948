"""What a task takes from a checkpoint, and what it changes in the run's configuration."""

import logging
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq import checkpoint_utils
from fairseq.data import data_utils
from omegaconf import OmegaConf, open_dict
from task_builders import caption_run, save_checkpoint

from ofa_fairseq.tasks.caption import CaptionConfig, CaptionTask
from ofa_fairseq.vocabulary import Vocabulary

SAVED = {
    "selected_cols": "0,4,2",
    "max_tgt_length": 7,
    "patch_image_size": 48,
    "data": "saved.tsv",
    "strict_data": True,
}


# Options from a checkpoint


def generating_task(**options: Any) -> CaptionTask:
    """A task as fairseq-generate makes it: nothing is known but the data and these options."""
    cfg = CaptionConfig(_name="caption", data="test.tsv", **options)
    return CaptionTask.setup_task(OmegaConf.structured(cfg))


def saved_config(digits_dir: Path, kind: str, **options: Any) -> Any:
    """The model's part of a checkpoint's configuration, in fairseq's new or old form."""
    run = caption_run("saved.tsv", digits_dir)
    options = {**SAVED, "bpe_dir": str(digits_dir), "code_dict_size": 16, "num_bins": 16, **options}
    if kind == "Namespace":
        model = {k: v for k, v in run.cfg.model.items() if not k.startswith("_") and "positions" not in k}
        return Namespace(**model, arch="ofa_nano", task="caption", **options)
    with open_dict(run.cfg):
        run.cfg.task.update(options)
    return run.cfg.model


@pytest.mark.parametrize("kind", ["DictConfig", "Namespace"])
def test_a_checkpoint_gives_what_the_command_line_left_out(kind: str, digits_dir: Path) -> None:
    task = generating_task(max_tgt_length=5)
    held_by_fairseq = task.target_dictionary
    task.build_model(saved_config(digits_dir, kind), from_checkpoint=True)
    assert (task.cfg.selected_cols, task.cfg.patch_image_size, task.cfg.bpe_dir) == (
        "0,4,2",
        48,
        str(digits_dir),
    )
    assert task.cfg.max_tgt_length == 5  # the command line's
    assert (task.cfg.data, task.cfg.strict_data) == ("test.tsv", False)  # of one run only
    assert task.transform.size == 48
    # fairseq-generate took the dictionary before it loaded the model.
    expected = Vocabulary.load(str(digits_dir), num_codes=16, num_bins=16)
    assert task.target_dictionary is held_by_fairseq is task.source_dictionary
    assert held_by_fairseq.symbols == expected.dictionary.symbols


def test_zero_shot_takes_nothing_from_the_checkpoint(digits_dir: Path) -> None:
    task = generating_task(zero_shot=True, bpe_dir=str(digits_dir), code_dict_size=16, num_bins=16)
    task.build_model(saved_config(digits_dir, "DictConfig"), from_checkpoint=True)
    assert (task.cfg.selected_cols, task.cfg.max_tgt_length, task.cfg.patch_image_size) == (None, 30, 480)


def test_building_a_model_for_training_adopts_nothing(digits_dir: Path) -> None:
    run = caption_run("a.tsv,b.tsv", digits_dir)
    run.task.build_model(saved_config(digits_dir, "DictConfig"))
    assert run.task.cfg.max_tgt_length == 30


@pytest.fixture(scope="module")
def checkpoint(digits_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "model.pt"
    save_checkpoint(
        path, caption_run("saved.tsv", digits_dir, "--selected-cols", "0,4,2", "--max-tgt-length", "7")
    )
    return path


@pytest.mark.parametrize("overrides", [{}, {"max_tgt_length": 9, "data": "other.tsv"}])
def test_model_overrides_act_on_what_is_adopted(
    overrides: dict[str, Any], checkpoint: Path, digits_dir: Path
) -> None:
    task = generating_task()
    [model], _ = checkpoint_utils.load_model_ensemble([str(checkpoint)], arg_overrides=overrides, task=task)
    assert task.cfg.max_tgt_length == overrides.get("max_tgt_length", 7)
    assert task.cfg.data == "test.tsv"
    saved = torch.load(checkpoint)["model"]
    assert all(torch.equal(saved[name], value) for name, value in model.state_dict().items())


def test_fairseq_makes_the_task_from_the_checkpoint_alone(checkpoint: Path) -> None:
    _, _, task = checkpoint_utils.load_model_ensemble_and_task([str(checkpoint)], {"data": "mine.tsv"})
    assert (task.cfg.data, task.cfg.max_tgt_length) == ("mine.tsv", 7)


def test_what_was_adopted_is_logged(
    checkpoint: Path, digits_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        checkpoint_utils.load_model_ensemble([str(checkpoint)], task=generating_task())
    assert "'max_tgt_length': 7" in caplog.text


# The run's configuration


def test_unused_valid_subsets_are_no_error(digits_dir: Path) -> None:
    cfg = caption_run("a.tsv,b.tsv", digits_dir).cfg
    data_utils.raise_if_valid_subsets_unintentionally_ignored(cfg)


def test_bf16_is_no_tpu(digits_dir: Path) -> None:
    cfg = caption_run("a.tsv,b.tsv", digits_dir, "--bf16").cfg
    assert cfg.common.bf16
    assert not cfg.common.tpu


def test_bf16_is_no_tpu_when_processes_are_launched() -> None:
    from task_builders import training_config

    assert not training_config("a.tsv,b.tsv", "--bf16").distributed_training.tpu
