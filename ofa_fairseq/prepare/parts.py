"""Long conversions, in parallel, that go on where they were interrupted: rows are made in part files."""

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

from ..files import atomic_write

Item = TypeVar("Item")

PART_SIZE = 256  # items; what an interruption can cost each worker


class UnusableError(Exception):
    """An item that gives no row; the message names it and the reason in one line."""


def make_parts(
    items: Sequence[Item], make_row: Callable[[Item], str], folder: Path, workers: int, description: str
) -> None:
    """Write `make_row(item)` for every item to part files in `folder`; parts that are there already are kept.

    `make_row` runs in `workers` processes, so it has to be picklable; it returns a row without its newline,
    or raises UnusableError. The same folder must only be used again with the same items and function.
    """
    folder.mkdir(parents=True, exist_ok=True)
    starts = [start for start in range(0, len(items), PART_SIZE) if not _rows_file(folder, start).exists()]
    todo = [(start, items[start : start + PART_SIZE]) for start in starts]
    done = len(items) - sum(len(part) for _, part in todo)
    work = partial(_make_part, make_row, folder)
    with (
        multiprocessing.Pool(workers) as pool,
        tqdm(total=len(items), initial=done, desc=description, unit="picture") as bar,
    ):
        for count in pool.imap_unordered(work, todo):
            bar.update(count)


def read_rows(folder: Path) -> Iterator[str]:
    """The rows of all parts in the order of the items, without newlines."""
    yield from _lines(sorted(folder.glob("*.tsv")))


def read_failures(folder: Path) -> list[str]:
    """The messages of all unusable items in the order of the items."""
    return list(_lines(sorted(folder.glob("*.failed"))))


def _lines(paths: Sequence[Path]) -> Iterator[str]:
    for path in paths:
        with path.open(encoding="utf-8", newline="\n") as lines:
            yield from (line.removesuffix("\n") for line in lines)


def _rows_file(folder: Path, start: int) -> Path:
    return folder / f"{start:09d}.tsv"


def _make_part(make_row: Callable[[Item], str], folder: Path, part: tuple[int, Sequence[Item]]) -> int:
    start, items = part
    target = _rows_file(folder, start)
    # The rows' file is renamed last: where it is, the part is complete.
    with atomic_write(target) as rows, atomic_write(target.with_suffix(".failed")) as failures:
        for item in items:
            try:
                rows.write(make_row(item) + "\n")
            except UnusableError as error:
                failures.write(f"{error}\n")
    return len(items)
