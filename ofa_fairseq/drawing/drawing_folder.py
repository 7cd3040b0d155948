"""A folder of drawings as PNG files: all_results/ and top1/ as the original has them, and a list of them."""

from collections.abc import Sequence
from itertools import chain, count
from pathlib import Path

from PIL import Image

from .drawn_pictures import HEADER, DrawnPicture, columns

# Bytes of a file's name that are left to the caption and to the id; file systems allow 255 in all.
LONGEST_CAPTION, LONGEST_ID = 150, 60


class DrawingFolder:
    """Where fairseq-generate puts what it draws; `pictures.tsv` (see `drawn_pictures`) lists it.

    Files are `{caption}_{rank}.png`. A caption that another row has had before comes with its row's id, and so does
    every caption of another process than the first, since a process does not know what others draw.

    Args:
        folder: made if it is not there; a list that is there already is begun anew, pictures are replaced one by one.
        rank: of the process; others than 0 have lists of their own, `pictures.{rank}.tsv`.
    """

    def __init__(self, folder: str | Path, rank: int = 0) -> None:
        self.folder, self.rank = Path(folder), rank
        self.all_results, self.top1 = self.folder / "all_results", self.folder / "top1"
        for subfolder in (self.all_results, self.top1):
            subfolder.mkdir(parents=True, exist_ok=True)
        self.list = self.folder / (f"pictures.{rank}.tsv" if rank else "pictures.tsv")
        self.list.write_text("\t".join(HEADER) + "\n", encoding="utf-8")
        self._taken: set[str] = set()

    def add(self, id: str, caption: str, samples: Sequence[tuple[Image.Image, float]]) -> None:
        """Write the samples of a caption with their scores, best first; each file before its line in the list."""
        name = self._name(id, caption)
        lines = []
        for rank, (picture, score) in enumerate(samples):
            path = self.all_results / f"{name}_{rank}.png"
            picture.save(path)
            if rank == 0:
                picture.save(self.top1 / path.name)
            lines.append("\t".join(columns(DrawnPicture(id, caption, rank, score, path), self.folder)) + "\n")
        with self.list.open("a", encoding="utf-8") as file:
            file.writelines(lines)

    def _name(self, id: str, caption: str) -> str:
        """One that no other row of this process has had, also where a file system takes A for a."""
        plain = _part(caption, LONGEST_CAPTION)
        own = f"{plain} ({_part(id, LONGEST_ID)})"
        names = chain([] if self.rank else [plain], [own], (f"{own} {n}" for n in count(2)))
        name = next(name for name in names if name.casefold() not in self._taken)
        self._taken.add(name.casefold())
        return name


def _part(text: str, length: int) -> str:
    """Of a file's name, of at most so many bytes."""
    return text.replace("/", "").replace("\0", "").encode()[:length].decode(errors="ignore")
