"""What a conversion of a public data set is going to write."""

from collections import defaultdict
from typing import NamedTuple


class Picture(NamedTuple):
    """`files` are the places, in the picture folders, where it may lie; `size` is the annotated width, height."""

    image_id: str
    files: tuple[str, ...]
    size: tuple[int, int] | None = None


class Row(NamedTuple):
    """A row of the TSV file named `file`: its columns before and after the picture."""

    file: str
    before: tuple[str, ...]
    after: tuple[str, ...] = ()


class LeftOut(NamedTuple):
    """A row that is not written; rows left out for the same `reason` are counted together."""

    row_id: str
    reason: str
    detail: str = ""


class Plan:
    """The rows that a conversion writes, grouped by their pictures, and those that it leaves out."""

    def __init__(self) -> None:
        self.pictures: dict[str, Picture] = {}
        self.rows: defaultdict[str, list[Row]] = defaultdict(list)
        self.left_out: list[LeftOut] = []

    def add(self, picture: Picture, row: Row) -> None:
        """Any white space in a column, such as a tab, becomes one space."""
        image_id = one_line(picture.image_id)
        self.pictures.setdefault(image_id, picture._replace(image_id=image_id))
        before, after = (tuple(map(one_line, columns)) for columns in (row.before, row.after))
        self.rows[image_id].append(Row(row.file, before, after))

    def leave_out(self, row_id: str, reason: str, detail: str = "") -> None:
        self.left_out.append(LeftOut(one_line(row_id), reason, one_line(detail)))


def one_line(text: str) -> str:
    """Any white space becomes one space; halves of surrogate pairs, which JSON can name and no file can hold, "?"."""
    return " ".join(text.encode(errors="replace").decode().split())
