"""Runs of the scripts, and of fairseq's option parser, for tests."""

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from fairseq import options
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from omegaconf import DictConfig

import ofa_fairseq  # noqa: F401  (registers tasks and models)

ROOT = Path(__file__).parents[2]
STUBS = Path(__file__).parent / "stub_commands.sh"
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


def stub_checkout_in(folder: Path) -> Path:
    """A copy of the scripts beside stubs of the commands that they start, in `bin/`."""
    root = folder / "checkout"
    shutil.copytree(ROOT / "run_scripts", root / "run_scripts")
    shutil.copy(ROOT / "setup.py", root)
    (folder / "bin").mkdir()
    for name in ("python3.11", "fairseq-train", "fairseq-generate"):
        shutil.copy(STUBS, folder / "bin" / name)
        (folder / "bin" / name).chmod(0o755)
    return root


def run_stubbed(root: Path, name: str, *args: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run run_scripts/NAME of such a copy."""
    path = {"PATH": f"{root.parent}/bin:/usr/bin:/bin", "STUB_LOG": f"{root.parent}/calls"}
    return script_in(root, name, *args, **(path | variables))


def stub_calls(root: Path, words: int = 2) -> list[str]:
    """First words of each call of a stub so far, which are then forgotten."""
    log = root.parent / "calls"
    lines = log.read_text().splitlines() if log.exists() else []
    log.unlink(missing_ok=True)
    return [" ".join(line.split()[:words]) for line in lines]


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
