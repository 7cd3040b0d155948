"""Rows that can't be used: skipped, counted in the log, and listed in a file."""

from __future__ import annotations

import fcntl
import logging
from pathlib import Path

from .tsv import RowError

logger = logging.getLogger(__name__)

# The log names this many; the file names all.
NAMED_IN_LOG = 5


class BadRows:
    """Collects unusable rows, each once, over epochs and over data-loading processes.

    Args:
        path: the list: file, row (from 1) and reason, separated by tabs. Made when the first row is added.
        strict: raise the row's error instead (`--strict-data`).
    """

    def __init__(self, path: Path, strict: bool = False) -> None:
        self.path, self.strict = path, strict
        self._listed: dict[str, None] = {}  # in the order of the file

    def add(self, error: RowError) -> None:
        """List a row, or raise its error."""
        if self.strict:
            raise error
        line = "\t".join([str(error.path), str(error.row), " ".join(error.reason.split())])
        if line in self._listed:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a+", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # workers and ranks share the file
            file.seek(0)
            self._listed = dict.fromkeys(file.read().splitlines())
            if line not in self._listed:
                self._listed[line] = None
                file.write(line + "\n")
                if len(self._listed) <= NAMED_IN_LOG:
                    logger.warning("skipped %s", error)
                elif len(self._listed) == NAMED_IN_LOG + 1:
                    logger.warning("more rows are skipped; all are listed in %s", self.path)

    def summary(self) -> str:
        """Where the list is and how it begins."""
        first = "; ".join(list(self._listed)[:2]).replace("\t", ", ")
        return f"{len(self._listed)} are listed in {self.path}, the first: {first}" if self._listed else ""
