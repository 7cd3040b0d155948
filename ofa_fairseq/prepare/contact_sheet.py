"""Draws a sheet (PNG) of the first pictures of a TSV with the captions that a model wrote for them."""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from ..data.files import atomic_write
from ..data.images import decode_image
from ..data.text_normalize import REFERENCE_SEPARATOR
from ..data.tsv import TsvFile, parse_columns
from .predictions import FORMS, read_predictions

MARGIN = 8
FONT_SIZE = 13
PAPER, INK = (255, 255, 255), (20, 20, 20)
PICTURE_SIDE = 192  # pixels that `run` makes of a picture's longer side, or a few less


def _wrap(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """`text` with line breaks, so that no line but one of a single long word is wider than `width` pixels."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return "\n".join(lines)


def contact_sheet(
    pictures: Sequence[Image.Image], captions: Sequence[str], columns: int, scale: int = 1
) -> Image.Image:
    """Pictures in a grid, each enlarged `scale` times, with its caption wrapped below it.

    Cells are as wide as the widest picture; a row is as high as its tallest picture and longest caption need.
    Raises ValueError if the numbers of pictures and captions differ or there is nothing to draw.
    """
    if len(pictures) != len(captions) or not pictures:
        raise ValueError(f"expected pictures and as many captions, got {len(pictures)} and {len(captions)}")
    font = ImageFont.load_default(size=FONT_SIZE)
    enlarged = [
        image.convert("RGB").resize((image.width * scale, image.height * scale)) for image in pictures
    ]
    width = max(image.width for image in enlarged)
    texts = [_wrap(caption, font, width) for caption in captions]
    cells = list(zip(enlarged, texts, [_text_height(text, font) for text in texts]))
    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    picture_heights = [max(image.height for image, _, _ in row) for row in rows]
    text_heights = [max(height for _, _, height in row) + 2 * MARGIN for row in rows]

    size = (columns * (width + MARGIN) + MARGIN, sum(picture_heights) + sum(text_heights) + MARGIN)
    sheet = Image.new("RGB", size, PAPER)
    pen = ImageDraw.Draw(sheet)
    y = MARGIN
    for row, picture_height, text_height in zip(rows, picture_heights, text_heights):
        for column, (image, text, _) in enumerate(row):
            x = MARGIN + column * (width + MARGIN)
            sheet.paste(image, (x, y))
            pen.multiline_text((x, y + picture_height + MARGIN // 2), text, INK, font)
        y += picture_height + text_height
    return sheet


def _text_height(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> int:
    pen = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    return math.ceil(pen.multiline_textbbox((0, 0), text, font)[3])


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
