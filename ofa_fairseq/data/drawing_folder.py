"""A folder of drawings as PNG files: all_results/ and top1/ as the original has them, and a list of them."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from .drawn_pictures import HEADER, DrawnPicture, columns

LONGEST_NAME = 200  # bytes of a file's name that are left to the caption


class DrawingFolder:
    """Where fairseq-generate puts what it draws; `pictures.tsv` (see `drawn_pictures`) lists it.

    Files are `{caption}_{rank}.png`. A caption that another row has had before comes with its row's id.

    Args:
        folder: made if it is not there; a list that is there already is begun anew.
        rank: of the process; others than 0 have lists of their own, `pictures.{rank}.tsv`.
    """

    def __init__(self, folder: str | Path, rank: int = 0) -> None:
        self.folder = Path(folder)
        self.all_results, self.top1 = self.folder / "all_results", self.folder / "top1"
        for subfolder in (self.all_results, self.top1):
            subfolder.mkdir(parents=True, exist_ok=True)
        self.list = self.folder / (f"pictures.{rank}.tsv" if rank else "pictures.tsv")
        self.list.write_text("\t".join(HEADER) + "\n", encoding="utf-8")
        self._rows: dict[str, str] = {}  # by caption as a file name

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
        name = caption.replace("/", "").replace("\0", "").encode()[:LONGEST_NAME].decode(errors="ignore")
        if self._rows.setdefault(name, id) != id:
            name = f"{name} ({id.replace('/', '')})"
        return name
