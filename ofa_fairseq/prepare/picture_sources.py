"""Pictures of a folder or of a TSV column, for training on them."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor
from tqdm import tqdm

from ..data.images import ImageError, decode_image
from ..data.tsv import RowError, TsvFile
from ..models.image_tokenizer import square

# Names of files that are taken for pictures.
PICTURE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm"}


class PictureSource(Protocol):
    """Pictures by number, and what tells one state of them from another."""

    digest: str

    def __len__(self) -> int: ...

    def picture(self, index: int) -> Image.Image:
        """Raises ValueError, with the picture's place in the message, if it can't be read."""
        ...


class FolderPictures:
    """The pictures in a folder and its folders, in the order of their paths."""

    def __init__(self, folder: Path) -> None:
        self._paths = sorted(
            path for path in folder.rglob("*") if path.suffix.lower() in PICTURE_SUFFIXES and path.is_file()
        )
        if not self._paths:
            raise ValueError(f"{folder}: no pictures ({', '.join(sorted(PICTURE_SUFFIXES))}) in this folder")
        self.digest = _digest(self._paths)

    def __len__(self) -> int:
        return len(self._paths)

    def picture(self, index: int) -> Image.Image:
        path = self._paths[index].resolve()
        try:
            return decode_image(str(path), path.parent)
        except ImageError as error:
            raise ValueError(f"{path}: {error}") from error


class ColumnPictures:
    """The pictures in a column (from 0) of a TSV file."""

    def __init__(self, path: Path, column: int) -> None:
        self._rows = TsvFile(path, [column])
        self.digest = f"{_digest([path])} {column}"

    def __len__(self) -> int:
        return len(self._rows)

    def picture(self, index: int) -> Image.Image:
        try:
            return decode_image(self._rows[index][0], self._rows.path.parent)
        except ImageError as error:
            raise self._rows.row_error(index, str(error)) from error


def open_source(data: Path, column: int) -> PictureSource:
    """The pictures of a folder, or of a TSV file's column.

    Raises:
        OSError: no such file or folder.
        ValueError: no picture in the folder, no such column in the file.
    """
    return FolderPictures(data) if data.is_dir() else ColumnPictures(data, column)


def read_squares(source: PictureSource, indices: Sequence[int], side: int) -> tuple[Tensor, list[str]]:
    """The pictures of these numbers as squares, bytes [n, 3, side, side], and the reasons why others can't be read."""
    pixels = torch.empty(len(indices), 3, side, side, dtype=torch.uint8)
    failures: list[str] = []
    read = 0
    for index in tqdm(indices, desc="reading pictures", unit="picture"):
        try:
            pixels[read] = pil_to_tensor(square(source.picture(index), side))
        except (RowError, ValueError) as error:
            failures.append(str(error))
        else:
            read += 1
    return pixels[:read], failures


def _digest(paths: Sequence[Path]) -> str:
    """Of paths, sizes and times."""
    digest = hashlib.sha256()
    for path in paths:
        status = path.stat()
        digest.update(repr((str(path.resolve()), status.st_size, status.st_mtime_ns)).encode())
    return digest.hexdigest()
