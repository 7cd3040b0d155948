"""Turns the pictures of a TSV into image codes, in the columns of the released tokenizer script.

Four selected columns are uniq-id, image-id, picture, text and give uniq-id, image-id, text, codes; two are image-id,
picture and give image-id, codes. Codes stand row by row from the top, with spaces between them. Rows that can't be used
are left out and listed in <out>.left_out.tsv. An interrupted run goes on, and a finished one is left alone.
"""

import argparse
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import torch
from torch import Tensor
from tqdm import tqdm

from ..data.images import ImageError, decode_image
from ..data.tsv import FileStamp, RowError, TsvFile, parse_columns
from ..files import atomic_write
from ..models.image_tokenizer import ImageTokenizer, picture_input
from .parts import read_failures, read_rows
from .plan import one_line

logger = logging.getLogger(__name__)

PICTURE_COLUMN = {2: 1, 4: 2}  # by the number of selected columns
PART_ROWS = 1024  # what an interruption can cost


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, required=True, help="TSV file with the pictures")
    parser.add_argument(
        "--selected-cols",
        default="0,1,2,3",
        help="columns of uniq-id, image-id, picture, text or of image-id, picture, from 0 (default 0,1,2,3)",
    )
    parser.add_argument("--out", type=Path, required=True, help="TSV file to write")
    parser.add_argument(
        "--side",
        type=int,
        help="pixels along a side of the squares that pictures are made (default: what the tokenizer was trained with)",
    )
    parser.add_argument("--vqgan-model-path", type=Path, required=True, help="the tokenizer's last.ckpt")
    parser.add_argument("--vqgan-config-path", type=Path, required=True, help="the tokenizer's model.yaml")
    parser.add_argument("--batch-size", type=int, default=16, help="pictures at once (default 16)")


def run(args: argparse.Namespace) -> None:
    """Raises ValueError if an option, a file or every row is unusable."""
    columns = parse_columns(args.selected_cols) or []
    if len(columns) not in PICTURE_COLUMN:
        raise ValueError(
            f"--selected-cols {args.selected_cols}: expected four columns (uniq-id, image-id, picture, text)"
            " or two (image-id, picture)"
        )
    if args.batch_size < 1:
        raise ValueError(f"--batch-size {args.batch_size}: expected a number from 1")
    for name in ("vqgan_model_path", "vqgan_config_path"):
        if not getattr(args, name).is_file():
            raise ValueError(f"--{name.replace('_', '-')} {getattr(args, name)}: no such file")
    rows = TsvFile(args.data, columns)
    settings = _settings(args)
    stamp = args.out.with_name(args.out.name + ".settings.json")
    if args.out.exists() and stamp.exists() and stamp.read_text(encoding="utf-8") == settings:
        logger.info("%s has these codes already", args.out)
        return
    tokenizer = ImageTokenizer.load(args.vqgan_model_path, args.vqgan_config_path)
    if args.side is None:
        args.side = tokenizer.config.architecture.resolution
    if args.side < tokenizer.factor or args.side % tokenizer.factor:
        raise ValueError(f"--side {args.side}: expected a multiple of {tokenizer.factor}")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    stamp.unlink(missing_ok=True)
    parts = _parts_folder(args.out, settings)
    _make_parts(rows, PictureCoder(tokenizer, args.side), args.batch_size, parts)
    _assemble(args, len(rows), parts)
    with atomic_write(stamp) as file:
        file.write(settings)
    shutil.rmtree(parts)


def _settings(args: argparse.Namespace) -> str:
    """What the codes depend on, as a line of JSON."""
    files = {name: getattr(args, name) for name in ("data", "vqgan_model_path", "vqgan_config_path")}
    stamps = {name: [os.path.abspath(path), *FileStamp.of(path.stat())] for name, path in files.items()}
    return json.dumps({"selected_cols": args.selected_cols, "side": args.side, **stamps}) + "\n"


def _parts_folder(out: Path, settings: str) -> Path:
    """Of these settings; those of others are removed."""
    digest = hashlib.sha256(settings.encode()).hexdigest()[:16]
    parts = out.with_name(f".{out.name}-parts-{digest}")
    for folder in out.parent.glob(f".{out.name}-parts-*"):
        if folder != parts:
            shutil.rmtree(folder)
    parts.mkdir(exist_ok=True)
    return parts


class PictureCoder:
    """Codes pictures in batches."""

    def __init__(self, tokenizer: ImageTokenizer, side: int) -> None:
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._tokenizer = tokenizer.to(self._device)
        self._side = side

    def code(self, columns: Sequence[str], root: Path) -> list[str | ImageError]:
        """The codes of each picture column, with spaces between them, or why it can't be used.

        Relative paths in the columns start from `root`.
        """
        inputs = [self._input(column, root) for column in columns]
        pictures = [picture for picture in inputs if isinstance(picture, Tensor)]
        codes = iter(self._encode(pictures) if pictures else [])
        return [next(codes) if isinstance(picture, Tensor) else picture for picture in inputs]

    def _input(self, column: str, root: Path) -> Tensor | ImageError:
        try:
            return picture_input(decode_image(column, root), self._side)
        except ImageError as error:
            return error

    def _encode(self, pictures: list[Tensor]) -> list[str]:
        codes = self._tokenizer.encode(torch.stack(pictures).to(self._device))
        return [" ".join(map(str, row)) for row in codes.flatten(1).tolist()]


def _make_parts(rows: TsvFile, coder: PictureCoder, batch_size: int, parts: Path) -> None:
    """Part files of `PART_ROWS` rows, named so that `read_rows` and `read_failures` find them in order."""
    with tqdm(total=len(rows), desc="coding pictures", unit="picture") as bar:
        for start in range(0, len(rows), PART_ROWS):
            numbers = range(start, min(start + PART_ROWS, len(rows)))
            target = parts / f"{start:012d}.tsv"
            if target.exists():
                bar.update(len(numbers))
                continue
            # The rows' file is renamed last: where it is, the part is complete.
            with atomic_write(target) as good, atomic_write(target.with_suffix(".failed")) as failures:
                for first in range(0, len(numbers), batch_size):
                    batch = numbers[first : first + batch_size]
                    _code_batch(rows, batch, coder, good, failures)
                    bar.update(len(batch))


def _code_batch(rows: TsvFile, numbers: Sequence[int], coder: PictureCoder, good: IO, failures: IO) -> None:
    read, errors = [], []
    for number in numbers:
        try:
            read.append((number, rows[number]))
        except RowError as error:
            errors.append(error)
    pictures = [columns.pop(PICTURE_COLUMN[len(columns)]) for _, columns in read]
    for (number, columns), codes in zip(read, coder.code(pictures, rows.path.parent)):
        if isinstance(codes, ImageError):
            errors.append(rows.row_error(number, str(codes)))
        else:
            good.write("\t".join((*columns, codes)) + "\n")
    for bad in sorted(errors, key=lambda bad: bad.row):
        failures.write(f"{bad.path}\t{bad.row}\t{one_line(bad.reason)}\n")


def _assemble(args: argparse.Namespace, num_rows: int, parts: Path) -> None:
    """The final files from the parts."""
    failures = read_failures(parts)
    left_out = args.out.with_name(args.out.name + ".left_out.tsv")
    left_out.unlink(missing_ok=True)
    if failures:
        with atomic_write(left_out) as file:
            file.writelines(f"{failure}\n" for failure in failures)
        logger.warning("left out: %d of %d rows, see %s", len(failures), num_rows, left_out)
    if len(failures) == num_rows:
        shutil.rmtree(parts)
        raise ValueError(f"{args.data}: no row can be used, see {left_out}")
    with atomic_write(args.out) as file:
        file.writelines(f"{row}\n" for row in read_rows(parts))
    logger.info("%s: %d rows", args.out, num_rows - len(failures))
