"""Whole files or none: what is written appears under its final name only when it is complete."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO
from uuid import uuid4


@contextmanager
def atomic_write(path: Path, mode: str = "w") -> Iterator[IO]:
    """Opens a temporary file beside `path`; renames it to `path` on success, removes it on failure.

    `mode` is "w" (UTF-8 text, newlines as written) or "wb".
    """
    temporary = path.with_name(f".{path.name}.{uuid4().hex}.tmp")
    encoding, newline = (None, None) if "b" in mode else ("utf-8", "\n")
    try:
        with temporary.open(mode, encoding=encoding, newline=newline) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
