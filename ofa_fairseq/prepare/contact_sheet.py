"""Draws a sheet (PNG) of the first pictures of a file with captions: a TSV, or what a model has drawn."""

import argparse
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from PIL import Image

from ..data.drawing import contact_sheet
from ..data.images import decode_image
from ..data.text_normalize import REFERENCE_SEPARATOR
from ..data.tsv import TsvFile, parse_columns
from ..drawing.drawn_pictures import read_drawn_pictures
from ..files import atomic_write
from .predictions import FORMS, read_predictions

PICTURE_SIDE = 192  # pixels that `run` makes of a picture's longer side, or a few less


def add_arguments(parser: argparse.ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--data", type=Path, help="TSV file with the pictures")
    source.add_argument("--pictures", type=Path, help="list of drawings, pictures.tsv of task image_gen")
    parser.add_argument(
        "--selected-cols", default="1,4,2", help="columns of id, picture, captions (default 1,4,2)"
    )
    parser.add_argument("--predictions", type=Path, help=f"{FORMS} (default: the TSV's first caption)")
    parser.add_argument("--out", type=Path, required=True, help="PNG file to write")
    parser.add_argument("--rows", type=int, default=24, help="so many of the first (default 24)")
    parser.add_argument("--columns", type=int, default=6, help="pictures side by side (default 6)")


def rows_of_tsv(args: argparse.Namespace) -> Iterator[tuple[Image.Image, str]]:
    """Pictures and the captions of `--predictions`, or the first of their own."""
    tsv = TsvFile(args.data, parse_columns(args.selected_cols))
    predictions = read_predictions(args.predictions) if args.predictions else None
    for image_id, image, references in map(tsv.__getitem__, range(len(tsv))):
        reference = references.split(REFERENCE_SEPARATOR)[0]
        caption = reference if predictions is None else predictions.get(image_id, "(no caption)")
        yield decode_image(image, args.data.parent), caption


def drawn(args: argparse.Namespace) -> Iterator[tuple[Image.Image, str]]:
    """Drawings and what they should show."""
    return ((picture.load(), picture.caption) for picture in read_drawn_pictures(args.pictures))


def run(args: argparse.Namespace) -> None:
    shown = list(islice(drawn(args) if args.pictures else rows_of_tsv(args), args.rows))
    pictures = [picture for picture, _ in shown]
    for picture in pictures:
        picture.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
    scale = max(1, PICTURE_SIDE // max(max(picture.size) for picture in pictures))
    with atomic_write(args.out, "wb") as file:
        sheet = contact_sheet(pictures, [caption for _, caption in shown], args.columns, scale)
        sheet.save(file, format="PNG")
