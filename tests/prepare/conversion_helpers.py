"""What the tests of converters share: pictures, running a command, reading what it wrote."""

import base64
from pathlib import Path
from typing import Any

from PIL import Image

from ofa_fairseq.data.tsv import TsvFile
from ofa_fairseq.prepare.__main__ import main


def write_picture(path: Path, width: int, height: int) -> None:
    """A noisy JPEG, so that it is no other picture's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.effect_noise((width, height), 60).save(path, format="JPEG")


def prepare(command: str, **options: Any) -> None:
    """`python -m ofa_fairseq.prepare command` with two workers; an option may have several values, or True."""
    arguments = [command, "--workers=2"]
    for name, value in options.items():
        arguments.append(f"--{name.replace('_', '-')}")
        if value is not True:
            arguments += map(str, value if isinstance(value, list | tuple) else [value])
    main(arguments)


def read_rows(path: Path) -> list[list[str]]:
    tsv = TsvFile(path)
    return [tsv[row] for row in range(len(tsv))]


def read_lines(path: Path) -> list[list[str]]:
    """The columns of each line of missing_images.txt or left_out_rows.txt."""
    return [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()]


def shows(column: str, path: Path) -> bool:
    """Whether a picture column holds the bytes of the file."""
    return base64.urlsafe_b64decode(column) == path.read_bytes()
