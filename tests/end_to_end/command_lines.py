"""fairseq's command lines for tests: to run them, at a very small scale, and to read what they logged and saved."""

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from task_builders import TINY_FLAGS, TINY_TASK

import ofa_fairseq

PLUGIN = Path(ofa_fairseq.__file__).parent
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}

CROSS_ENTROPY = ("--criterion", "adjust_label_smoothed_cross_entropy", "--label-smoothing", "0.1")
CIDER = (
    *("--eval-cider", "--eval-args", '{"beam": 2, "max_len_b": 20}'),
    *("--best-checkpoint-metric", "cider", "--maximize-best-checkpoint-metric"),
)


def command(name: str) -> list[str]:
    """fairseq-train or fairseq-generate of the Python that runs the tests."""
    return [str(Path(sys.executable).with_name(name))]


def run(args: Sequence[Any], cwd: Path | None = None, fails: bool = False, python_path: Any = "") -> str:
    """What the command prints; it must succeed, unless it is to fail."""
    result = subprocess.run(
        list(map(str, args)),
        cwd=cwd,
        env={**ENVIRONMENT, "PYTHONPATH": str(python_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
    assert (result.returncode != 0) == fails, result.stdout[-5000:]
    return result.stdout


def train_args(
    digits: Path,
    save_dir: Path,
    *flags: Any,
    data: str = "train.tsv,valid.tsv",
    criterion: Sequence[Any] = CROSS_ENTROPY,
) -> list[Any]:
    """Arguments of fairseq-train; `data` lies in `digits`, later flags win."""
    files = ",".join(str(digits / name) for name in data.split(","))
    return [
        *(files, "--task", "caption", "--bpe-dir", digits, "--selected-cols", "0,4,2"),
        *(*TINY_TASK, *TINY_FLAGS, "--user-dir", PLUGIN, "--save-dir", save_dir),
        *("--encoder-embed-dim", "64", "--decoder-embed-dim", "64"),
        *criterion,
        *("--optimizer", "adam", "--lr", "1e-2", "--clip-norm", "1.0", "--batch-size", "8"),
        *("--lr-scheduler", "polynomial_decay", "--warmup-ratio", "0.1", "--max-epoch", "1"),
        *("--log-format", "simple", "--log-interval", "1", "--no-epoch-checkpoints"),
        *flags,
    ]


def train(*args: Any, python_path: Any = "", **more: Any) -> str:
    """What fairseq-train prints with `train_args(*args, **more)`."""
    return run([*command("fairseq-train"), *train_args(*args, **more)], python_path=python_path)


def train_in_two_processes(
    digits: Path,
    folder: Path,
    *flags: Any,
    program: Sequence[str] = (),
    python_path: Any = "",
    **more: Any,
) -> list[str]:
    """One fairseq-train (or `program`) for each of two ranks, which find each other through a file; their logs."""
    distributed = (
        *("--cpu", "--distributed-world-size", 2, "--distributed-no-spawn", "--distributed-backend", "gloo"),
        *("--distributed-init-method", f"file://{folder}/init", "--ddp-backend", "legacy_ddp"),
    )
    environment = {**ENVIRONMENT, "PYTHONPATH": str(python_path)}
    processes = []
    for rank in range(2):
        args = train_args(digits, folder / "run", *flags, *distributed, "--distributed-rank", rank, **more)
        line = list(map(str, [*(program or command("fairseq-train")), *args]))
        with (folder / f"{rank}.log").open("w") as log:
            processes.append(subprocess.Popen(line, env=environment, stdout=log, stderr=subprocess.STDOUT))
    codes = [process.wait(timeout=600) for process in processes]
    logs = [(folder / f"{rank}.log").read_text() for rank in range(2)]
    assert codes == [0, 0], "".join(log[-3000:] for log in logs)
    return logs


def logged(log: str, tag: str, key: str) -> list[float]:
    """The values of `key` in the log lines of `tag` (train_inner, train, valid)."""
    return [
        float(re.split(rf"\b{key}[ =]", line)[1].split(" ")[0].rstrip(","))
        for line in log.splitlines()
        if f"| {tag} |" in line and re.search(rf"[ ,|]{key}[ =]", line)
    ]


def weights(path: Path) -> dict[str, torch.Tensor]:
    """The model's weights in a checkpoint."""
    return torch.load(path, weights_only=False, map_location="cpu")["model"]


def assert_same_weights(a: Path, b: Path, tolerance: float) -> None:
    """Two checkpoints have the same weights, up to an absolute tolerance."""
    left, right = weights(a), weights(b)
    assert left.keys() == right.keys()
    for name, value in left.items():
        torch.testing.assert_close(value, right[name], rtol=0, atol=tolerance, msg=name)
