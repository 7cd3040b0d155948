"""The list of pictures that a model has drawn: a TSV file with a header, beside or above the picture files."""

import os
from argparse import ArgumentParser
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from ..data.images import decode_image
from ..data.tsv import TsvFile
from ..files import atomic_write


class DrawnPicture(NamedTuple):
    """One sample for a caption."""

    id: str
    caption: str
    rank: int  # among the samples for this caption, 0 is the best
    score: float  # what it was ranked by, higher is better; nan if it was not ranked
    path: Path  # of the picture file, absolute once read

    def load(self) -> Image.Image:
        """The picture in RGB; raises `ImageError` if it can't be read."""
        return decode_image(str(self.path), self.path.parent)


HEADER = list(DrawnPicture._fields)


def add_ranks_argument(parser: ArgumentParser) -> None:
    """`--ranks`, which `read_drawn_pictures` takes."""
    parser.add_argument(
        "--ranks",
        choices=("first", "all"),
        default="first",
        help="of several samples for a caption the best (default) or all",
    )


def read_drawn_pictures(path: str | Path, ranks: str = "all") -> list[DrawnPicture]:
    """The pictures of a list, all or those of rank 0 ("first"); the pictures themselves are not opened.

    Raises:
        FileNotFoundError: no such list.
        ValueError: no list of this form, a list without pictures, or (`RowError`, which names the line) a rank that
            is no whole number from 0 on, a score that is no number, or a picture file that does not exist.
    """
    rows = TsvFile(path)
    if rows[0] != HEADER:
        raise rows.row_error(0, f"expected the header {', '.join(HEADER)} between tabs, got {rows[0]}")
    if len(rows) == 1:
        raise ValueError(f"{path}: expected pictures below the header, there are none")
    pictures = [_parse(rows, row) for row in range(1, len(rows))]
    return [picture for picture in pictures if ranks == "all" or picture.rank == 0]


def _parse(rows: TsvFile, row: int) -> DrawnPicture:
    key, caption, rank, score, name = rows[row]
    if not (rank.isascii() and rank.isdecimal()):
        raise rows.row_error(row, f"expected a rank from 0 on, got {rank!r}")
    try:
        value = float(score)
    except ValueError:
        raise rows.row_error(row, f"expected a number as score, got {score!r}") from None
    picture = Path(os.path.abspath(rows.path.parent / name))
    if not picture.is_file():
        raise rows.row_error(row, f"there is no picture file {picture}")
    return DrawnPicture(key, caption, int(rank), value, picture)


def write_drawn_pictures(path: str | Path, pictures: Iterable[DrawnPicture]) -> None:
    """Write a list, with paths relative to its folder, so that the folder can be moved as a whole.

    Raises:
        ValueError: a tab or line break in an id, a caption or a path.
    """
    path = Path(path)
    with atomic_write(path) as file:
        file.write("\t".join(HEADER) + "\n")
        for picture in pictures:
            file.write("\t".join(columns(picture, path.parent)) + "\n")


def columns(picture: DrawnPicture, folder: Path) -> list[str]:
    """What a list in this folder holds of a picture.

    Raises:
        ValueError: a tab or line break in an id, a caption or a path.
    """
    name = os.path.relpath(picture.path, folder)
    texts = [picture.id, picture.caption, str(picture.rank), repr(float(picture.score)), name]
    broken = [text for text in texts if any(mark in text for mark in "\t\n\r")]
    if broken:
        raise ValueError(
            f"a column of a list of pictures can't hold a tab or a line break, got {broken[0]!r}"
        )
    return texts
