"""Pictures for people to look at."""

import math
from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw, ImageFont

MARGIN = 8
FONT_SIZE = 13
PAPER, INK = (255, 255, 255), (20, 20, 20)


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


def draw_boxes(image: Image.Image, title: str, boxes: Mapping[str, Sequence[float]]) -> Image.Image:
    """A picture with boxes by colour (x0, y0, x1, y1 in pixels) and a title below; small pictures are enlarged."""
    scale = max(1, 256 // max(image.size))
    enlarged = image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
    drawing = ImageDraw.Draw(enlarged)
    for colour, box in boxes.items():
        x0, y0, x1, y1 = (scale * number for number in box)
        drawing.rectangle((min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)), outline=colour, width=2)
    return contact_sheet([enlarged], [title], columns=1)
