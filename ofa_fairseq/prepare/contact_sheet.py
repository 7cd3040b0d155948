"""Draws a sheet (PNG) of the first pictures of a TSV with the captions that a model wrote for them."""

import argparse
from pathlib import Path

from ..data.drawing import contact_sheet
from ..data.files import atomic_write
from ..data.images import decode_image
from ..data.text_normalize import REFERENCE_SEPARATOR
from ..data.tsv import TsvFile, parse_columns
from .predictions import FORMS, read_predictions

PICTURE_SIDE = 192  # pixels that `run` makes of a picture's longer side, or a few less


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, required=True, help="TSV file with the pictures")
    parser.add_argument(
        "--selected-cols", default="1,4,2", help="columns of id, picture, captions (default 1,4,2)"
    )
    parser.add_argument("--predictions", type=Path, help=f"{FORMS} (default: the TSV's first caption)")
    parser.add_argument("--out", type=Path, required=True, help="PNG file to write")
    parser.add_argument("--rows", type=int, default=24, help="rows of the TSV to draw (default 24)")
    parser.add_argument("--columns", type=int, default=6, help="pictures side by side (default 6)")


def run(args: argparse.Namespace) -> None:
    tsv = TsvFile(args.data, parse_columns(args.selected_cols))
    predictions = read_predictions(args.predictions) if args.predictions else None
    pictures, captions = [], []
    for row in range(min(args.rows, len(tsv))):
        image_id, image, references = tsv[row]
        picture = decode_image(image, args.data.parent)
        picture.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
        pictures.append(picture)
        reference = references.split(REFERENCE_SEPARATOR)[0]
        captions.append(reference if predictions is None else predictions.get(image_id, "(no caption)"))
    scale = max(1, PICTURE_SIDE // max(max(picture.size) for picture in pictures))
    with atomic_write(args.out, "wb") as file:
        contact_sheet(pictures, captions, args.columns, scale).save(file, format="PNG")
