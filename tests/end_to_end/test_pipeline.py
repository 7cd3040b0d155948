"""The real command lines at small scale: train, stop, resume, several processes, generate, score."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fairseq import checkpoint_utils

from ofa_fairseq.data.tsv import TsvFile

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
# Too small to learn anything, but every part is there.
SMALL = [
    *("--encoder-layers", "1", "--encoder-embed-dim", "32", "--encoder-ffn-embed-dim", "32"),
    *("--decoder-layers", "1", "--decoder-embed-dim", "32", "--decoder-ffn-embed-dim", "32"),
    *("--encoder-attention-heads", "2", "--decoder-attention-heads", "2"),
]


def run(*command: str, cwd: Path | None = None) -> str:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, env=environment, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


def train_flags(digits: Path, save_dir: Path, *flags: str, data: str | None = None) -> list[str]:
    return [
        data or f"{digits}/train.tsv,{digits}/valid.tsv",
        *("--user-dir", str(ROOT / "ofa_fairseq"), "--task", "caption", "--arch", "ofa_nano", *SMALL),
        *("--criterion", "adjust_label_smoothed_cross_entropy", "--label-smoothing", "0.1"),
        *("--selected-cols", "0,4,2", "--bpe-dir", str(digits), "--code-dict-size", "64", "--num-bins", "32"),
        *("--patch-image-size", "64", "--batch-size", "8", "--optimizer", "adam", "--clip-norm", "1.0"),
        *("--lr-scheduler", "polynomial_decay", "--lr", "1e-3", "--warmup-ratio", "0.1", "--max-epoch", "2"),
        *("--log-format", "simple", "--log-interval", "1", "--no-epoch-checkpoints", "--num-workers", "0"),
        *("--save-dir", str(save_dir), *flags),
    ]


def train(digits: Path, save_dir: Path, *flags: str, data: str | None = None) -> str:
    return run(str(BIN / "fairseq-train"), *train_flags(digits, save_dir, *flags, data=data))


def checkpoint(save_dir: Path) -> dict[str, Any]:
    return checkpoint_utils.load_checkpoint_to_cpu(str(save_dir / "checkpoint_last.pt"))


def losses(log: str) -> list[tuple[int, float]]:
    found = re.findall(r"train_inner.* loss=([\d.]+),.*num_updates=(\d+)", log)
    return [(int(updates), float(loss)) for loss, updates in found]


def assert_equal_parameters(one: dict[str, Any], other: dict[str, Any], tolerance: float) -> None:
    assert one["model"].keys() == other["model"].keys()
    for key, value in one["model"].items():
        torch.testing.assert_close(value, other["model"][key], atol=tolerance, rtol=tolerance, msg=key)


@pytest.fixture(scope="module")
def whole(digits_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """An uninterrupted run of two epochs of 8 updates, with CIDEr, pictures and bad rows in its training file."""
    folder = tmp_path_factory.mktemp("whole")
    rows = (digits_dir / "train.tsv").read_text().splitlines()
    broken = ["only\tthree\tcolumns", "7\t7\ta caption\tlabels\t!!!not-base64!!!"]
    data = folder / "train.tsv"
    data.write_text("\n".join(rows[:58] + broken) + "\n")
    log = train(
        digits_dir,
        folder / "run",
        *("--dropout", "0.1", "--drop-worst-ratio", "0.2", "--drop-worst-after", "4", "--eval-cider"),
        *("--eval-args", '{"beam": 2, "max_len_b": 8}', "--tensorboard-logdir", str(folder / "tensorboard")),
        *("--best-checkpoint-metric", "cider", "--maximize-best-checkpoint-metric"),
        data=f"{data},{digits_dir}/valid.tsv",
    )
    return folder, log


def test_the_best_checkpoint_is_that_of_the_best_cider(whole: tuple[Path, str]) -> None:
    folder, log = whole
    best = checkpoint_utils.load_checkpoint_to_cpu(str(folder / "run" / "checkpoint_best.pt"))
    scores = [float(score) for score in re.findall(r"\| valid \|.* cider ([\d.]+)", log)]
    assert len(scores) == 2
    assert best["extra_state"]["best"] == max(scores)


def test_generation_needs_only_data_task_and_checkpoint(
    whole: tuple[Path, str], digits_dir: Path, tmp_path: Path
) -> None:
    """From any folder; columns, vocabulary and picture size come from the checkpoint."""
    folder, _ = whole
    shown = run(
        str(BIN / "fairseq-generate"),
        *(str(digits_dir / "test.tsv"), "--user-dir", str(ROOT / "ofa_fairseq"), "--task", "caption"),
        *("--path", str(folder / "run" / "checkpoint_last.pt"), "--beam", "3", "--max-len-b", "8"),
        *("--scoring", "cider"),
        cwd=tmp_path,
    )
    ids = [row[0] for row in TsvFile(digits_dir / "test.tsv", [0])]
    for kind in "SHDP":
        assert sorted(re.findall(rf"^{kind}-(\d+)\t", shown, re.MULTILINE)) == sorted(ids)
    assert re.search(
        r"Generate test with beam=3: CIDEr = [\d.]+ \(BLEU-4 = [\d.]+, ROUGE-L = [\d.]+\)", shown
    )


def test_a_stopped_run_goes_on_as_if_nothing_had_happened(digits_dir: Path, tmp_path: Path) -> None:
    """Stopped in the middle of the first epoch; losses and parameters are those of an uninterrupted run."""
    flags = ("--dropout", "0.1", "--disable-validation")
    through = train(digits_dir, tmp_path / "through", *flags)
    first = train(digits_dir, tmp_path / "stopped", *flags, "--max-update", "5")
    second = train(digits_dir, tmp_path / "stopped", *flags)
    assert len(losses(through)) == 16
    assert losses(first) + losses(second) == losses(through)
    assert_equal_parameters(checkpoint(tmp_path / "through"), checkpoint(tmp_path / "stopped"), 1e-6)


@pytest.mark.parametrize("precision", ["--memory-efficient-bf16", "--amp"])
@pytest.mark.slow
def test_other_precisions_train(precision: str, digits_dir: Path, tmp_path: Path) -> None:
    log = train(digits_dir, tmp_path / "run", precision, "--disable-validation", "--max-update", "2")
    assert np.isfinite([loss for _, loss in losses(log)]).all()
    assert len(losses(log)) == 2
