"""Rows that can't be used: skipped, counted in the log, and listed in a file."""

from __future__ import annotations

import fcntl
import logging
import os
from pathlib import Path

from .tsv import FileStamp, RowError

logger = logging.getLogger(__name__)

# The log names this many of a run; the file names all.
NAMED_IN_LOG = 5


class BadRows:
    """Collects a run's unusable rows, each once, over its epochs, data-loading processes and ranks.

    The first row that a run adds replaces the list of an earlier run (a resumed run is a new one); a run that
    skips nothing leaves it. Earlier is what was there when the object was made, and its copies in forked or
    spawned workers remember that. So all ranks have to make theirs before one of them adds a row, as they do
    under fairseq, which builds the model in between; and runs at the same time need a list each.

    Args:
        path: the list: file, row (from 1) and reason, separated by tabs. Made when the first row is added.
        strict: raise the row's error instead (`--strict-data`).
    """

    def __init__(self, path: Path, strict: bool = False) -> None:
        self.path, self.strict = path, strict
        self._earlier = FileStamp.of(path.stat()) if path.exists() else None
        self._listed: dict[str, None] = {}  # in the order of the file
        self._read_to = 0

    def add(self, error: RowError) -> None:
        """List a row, or raise its error."""
        if self.strict:
            raise error
        line = "\t".join([str(error.path), str(error.row), " ".join(error.reason.split())])
        if line in self._listed or not self._append(line):
            return
        if len(self._listed) == 1:
            logger.warning(
                "rows that can't be used are skipped; all are listed in %s, the first %d also here",
                self.path,
                NAMED_IN_LOG,
            )
        if len(self._listed) <= NAMED_IN_LOG:
            logger.warning("skipped %s", error)

    def _append(self, line: str) -> bool:
        """Write a line at the end of the list, unless another process of this run did."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # until it is closed
            if FileStamp.of(os.fstat(file.fileno())) == self._earlier:
                file.truncate(0)
            self._earlier = None
            file.seek(self._read_to)
            appended = file.read()
            self._read_to += len(appended)
            self._listed |= dict.fromkeys(appended.decode(errors="replace").splitlines())
            if line in self._listed:
                return False
            self._listed[line] = None
            file.write(f"{line}\n".encode())
            return True

    def summary(self) -> str:
        """Where the list is and how it begins."""
        first = "; ".join(list(self._listed)[:2]).replace("\t", ", ")
        return f"{len(self._listed)} are listed in {self.path}, the first: {first}" if self._listed else ""
