"""Random access to the rows of a TSV file that is far larger than memory.

The byte offset of every row is found once and kept in a small index file that all processes map into memory.
"""

import codecs
import hashlib
import logging
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cached_property
from io import FileIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from ..files import atomic_write

logger = logging.getLogger(__name__)

# An index file is little-endian int64: magic, size and mtime_ns of the TSV, then the row starts and the end.
_MAGIC = int.from_bytes(b"OFATSV01", "little")
_HEADER = 3
_BLOCK_BYTES = 1 << 20
_PROGRESS_BAR_FROM_BYTES = 1 << 28
_ROWS_TO_COUNT_COLUMNS = 5
_INDEX_SUFFIX = ".ofa_index"  # `.index` is what the original OFA calls its own, which may lie there too
# One read returns at most 2 GiB on Linux, and a longer "row" means that the file is no TSV.
_MAX_ROW_BYTES = 1 << 30


class RowError(ValueError):
    """A row that can't be used: the TSV file, its line number (from 1) and the reason in words."""

    def __init__(self, path: Path, row: int, reason: str) -> None:
        super().__init__(path, row, reason)  # all three, so that the error survives pickling
        self.path, self.row, self.reason = path, row, reason

    def __str__(self) -> str:
        return f"{self.path}, row {self.row}: {self.reason}"


class TsvFile:
    """Rows of a header-less TSV file without quoting, each a list of strings.

    A row ends at ``\\n`` alone; one ``\\r`` before it is dropped, any other stays. A UTF-8 byte order mark at the
    start of the file is dropped too. Reads are positional, so threads and forked processes may share an
    instance; pickled it holds a path and a few numbers.

    Args:
        path: the file; its index is cached as ``<path>.ofa_index`` or, where that can't be written, under
            ``$XDG_CACHE_HOME``.
        selected_columns: which columns a row has, counted from 0 and in this order; None takes all.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a folder, an empty file, or a selected column that the first line lacks.
        OSError: the index can be written nowhere.
    """

    def __init__(self, path: str | Path, selected_columns: Sequence[int] | None = None) -> None:
        self.path = Path(os.path.abspath(path))
        self._stamp = _check_file(self.path)
        self._num_rows = len(self._offsets) - 1
        self.num_columns = self._usual_columns()
        self._columns = list(range(self.num_columns) if selected_columns is None else selected_columns)
        missing = [column for column in self._columns if not 0 <= column < self.num_columns]
        if missing:
            raise ValueError(
                f"{self.path}: selected column {missing[0]} does not exist (columns count from 0); "
                f"the first line has {self.num_columns} columns: {_preview(self._read(0))}"
            )

    def __len__(self) -> int:
        return self._num_rows

    def __getitem__(self, row: int) -> list[str]:
        """The selected columns of a row (from 0).

        Raises:
            IndexError: no such row.
            RowError: another number of columns than other rows, or a selected column that is not UTF-8.
            RuntimeError: the file was changed after it was opened, or its index is damaged.
        """
        if not 0 <= row < self._num_rows:
            raise IndexError(f"{self.path} has rows 0 to {self._num_rows - 1}, not {row}")
        columns = self._read(row).split(b"\t")
        if len(columns) != self.num_columns:
            raise self.row_error(row, f"has {len(columns)} columns, other rows have {self.num_columns}")
        try:
            return [columns[column].decode() for column in self._columns]
        except UnicodeDecodeError as error:
            raise self.row_error(row, f"is not UTF-8 ({error})") from error

    def row_error(self, row: int, reason: str) -> RowError:
        """The error for a row (from 0) that is unusable for any reason."""
        return RowError(self.path, int(row) + 1, reason)

    def _usual_columns(self) -> int:
        """What most of the first rows have: the very first may be the broken one."""
        counts = []
        for row in range(min(len(self), _ROWS_TO_COUNT_COLUMNS)):
            with suppress(RowError):  # far too long: reported when it is read
                counts.append(self._read(row).count(b"\t") + 1)
        return max(counts, key=counts.count, default=1)  # of equally frequent ones the first

    def _read(self, row: int) -> bytes:
        start, end = int(self._offsets[row]), int(self._offsets[row + 1])
        length = end - start
        if length > _MAX_ROW_BYTES:
            raise self.row_error(row, f"is {length} bytes long, {_MAX_ROW_BYTES} are allowed")
        line = os.pread(self._file.fileno(), max(length, 0), start)
        ended = line.endswith(b"\n") or end == self._stamp.size
        if length < 1 or len(line) != length or not ended or line.find(b"\n", 0, -1) >= 0:
            raise RuntimeError(
                f"{self.path}, row {row + 1}: the file is not the one that was indexed; "
                f"delete its index ({' or '.join(map(str, _index_places(self.path)))}) and start again"
            )
        line = line.removesuffix(b"\n").removesuffix(b"\r")
        return line if row else line.removeprefix(codecs.BOM_UTF8)

    # The two handles are opened when first needed, so anew in a process that unpickles the object.
    @cached_property
    def _offsets(self) -> np.ndarray:
        return _load_offsets(self.path, self._stamp)

    @cached_property
    def _file(self) -> FileIO:
        return _open_unchanged(self.path, self._stamp)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_offsets", "_file")}


def parse_columns(text: str | None) -> list[int] | None:
    """Column numbers of ``--selected-cols``: "0,4,2" -> [0, 4, 2]; None (all columns) stays None.

    Raises:
        ValueError: anything but non-negative whole numbers between commas.
    """
    if text is None:
        return None
    if not re.fullmatch(r"\s*[0-9]+\s*(,\s*[0-9]+\s*)*", text):
        raise ValueError(f"--selected-cols: expected column numbers such as 0,4,2 (from 0), got {text!r}")
    return [int(column) for column in text.split(",")]


class FileStamp(NamedTuple):
    """What tells one state of a file from another."""

    size: int
    mtime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> "FileStamp":
        return cls(status.st_size, status.st_mtime_ns)


def _check_file(path: Path) -> FileStamp:
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such TSV file")
    if not path.is_file():
        raise ValueError(f"{path}: expected a TSV file, this is a folder or a device")
    stamp = FileStamp.of(path.stat())
    if stamp.size == 0:
        raise ValueError(f"{path}: expected a TSV file with at least one row, this file is empty")
    return stamp


def _open_unchanged(path: Path, stamp: FileStamp) -> FileIO:
    file = open(path, "rb", buffering=0)  # noqa: SIM115 - lives as long as its TsvFile
    if FileStamp.of(os.fstat(file.fileno())) != stamp:
        file.close()
        raise RuntimeError(f"{path} has changed since it was opened; start again")
    return file


def _preview(line: bytes) -> str:
    """The columns of a line in short; of a base64 picture only the beginning is shown."""
    columns = [column[:80].decode(errors="replace") for column in line.split(b"\t")[:12]]
    return ", ".join(repr(column if len(column) <= 20 else column[:20] + "…") for column in columns)


def _load_offsets(path: Path, stamp: FileStamp) -> np.ndarray:
    """Row starts and the end of the last row [rows + 1], from the cached index or a new one."""
    places = _index_places(path)
    for place in places:
        offsets = _read_index(place, stamp)
        if offsets is not None:
            return offsets
    failures = []
    for place in places:
        try:
            _write_index(place, path, stamp)
        except OSError as error:
            failures.append(f"{place}: {error.strerror}")
            continue
        offsets = _read_index(place, stamp)
        if offsets is not None:
            logger.info("indexed %d rows of %s in %s", len(offsets) - 1, path, place)
            return offsets
        failures.append(f"{place}: changed by another process")
    raise OSError(
        f"{path}: its row index can't be kept ({'; '.join(failures)}); name a writable XDG_CACHE_HOME"
    )


def _index_places(path: Path) -> list[Path]:
    """Where the index may lie: beside the file, or in the user's cache when that folder is read-only."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    name = hashlib.sha256(os.fsencode(path)).hexdigest()
    return [
        path.with_name(path.name + _INDEX_SUFFIX),
        cache / "ofa_fairseq" / "tsv_index" / (name + _INDEX_SUFFIX),
    ]


def _read_index(place: Path, stamp: FileStamp) -> np.ndarray | None:
    """Memory-mapped offsets, or None if there is no whole index for this state of the TSV file."""
    try:
        values = np.memmap(place, dtype="<i8", mode="r").view(np.ndarray)
    except (OSError, ValueError):  # absent or unreadable; empty or cut within a number
        return None
    header, offsets = values[:_HEADER].tolist(), values[_HEADER:]
    # Only the last offset equals the size, so an index that was cut short is recognised by its end.
    if header != [_MAGIC, *stamp] or len(offsets) < 2 or offsets[0] != 0 or offsets[-1] != stamp.size:
        return None
    return offsets


def _write_index(place: Path, path: Path, stamp: FileStamp) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(place, "wb") as file:  # several processes may build it at once
        file.write(np.array([_MAGIC, *stamp, 0], dtype="<i8").tobytes())
        for ends in _row_ends(path, stamp):
            file.write(ends.astype("<i8").tobytes())


def _row_ends(path: Path, stamp: FileStamp) -> Iterator[np.ndarray]:
    """The offset behind each row, an array for each block of the file."""
    block = bytearray(_BLOCK_BYTES)
    values = np.frombuffer(block, dtype=np.uint8)
    done, last_end = 0, 0
    bar = tqdm(
        total=stamp.size,
        desc=f"indexing {path.name}",
        unit="B",
        unit_scale=True,
        disable=stamp.size < _PROGRESS_BAR_FROM_BYTES,
    )
    with _open_unchanged(path, stamp) as file, bar:
        while count := file.readinto(block):
            ends = np.flatnonzero(values[:count] == ord("\n")) + (done + 1)
            if len(ends):
                last_end = int(ends[-1])
                yield ends
            done += count
            bar.update(count)
    if done != stamp.size:
        raise RuntimeError(f"{path} changed while it was being indexed; start again when it is complete")
    if last_end != done:  # the last row lacks its newline
        yield np.array([done])
