"""Runs of the scripts, and of fairseq's option parser, for tests."""

import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from fairseq import options
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from omegaconf import DictConfig

import ofa_fairseq  # noqa: F401  (registers tasks and models)

ROOT = Path(__file__).parents[2]
PLUGIN = str(ROOT / "ofa_fairseq")
SET_BY_MACHINES = (
    "OFA_",
    "SLURM_",
    "CUDA_",
    "NPROC",
    "NNODES",
    "NODE_RANK",
    "MASTER_",
    "VIRTUAL_ENV",
    "CONDA_",
)


def script(name: str, *args: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run run_scripts/NAME with only these variables set of those that scripts read; standard error goes to stdout."""
    return script_in(ROOT, name, *args, **variables)


def script_in(root: Path, name: str, *args: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """`script` in another checkout."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(SET_BY_MACHINES)}
    command = ["bash", str(root / "run_scripts" / name), *args]
    return subprocess.run(
        command,
        env=environment | {"GPUS": "0"} | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def dry_run(name: str, *args: str, **variables: str) -> str:
    """What the script would do."""
    done = script(name, *args, DRY_RUN="1", OFA_PYTHON=sys.executable, **variables)
    assert done.returncode == 0, done.stdout
    return done.stdout


def flags_of(program: str, shown: str) -> list[str]:
    """The arguments of the one command `program` among those that a script has shown."""
    commands = [shlex.split(line[1:]) for line in shown.splitlines() if line.startswith("+ ")]
    (command,) = [words[words.index(program) + 1 :] for words in commands if program in words]
    return command


def parse(parser_name: str, flags: Sequence[str]) -> DictConfig:
    """The configuration that fairseq makes of a command line; `parser_name` is `training` or `generation`."""
    parser = getattr(options, f"get_{parser_name}_parser")()
    return convert_namespace_to_omegaconf(options.parse_args_and_arch(parser, list(flags)))
