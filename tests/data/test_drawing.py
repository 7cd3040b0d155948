"""Sheets of captioned pictures: each picture is where it belongs, its caption below it and nowhere else."""

import numpy as np
import pytest
from PIL import Image

from ofa_fairseq.data.drawing import MARGIN, PAPER, contact_sheet

LONG = "a large red seven at the top left and a small blue three at the bottom right"


def plain(colour: tuple[int, int, int], size: tuple[int, int] = (40, 30)) -> Image.Image:
    return Image.new("RGB", size, colour)


def cell(sheet: Image.Image, column: int, width: int) -> np.ndarray:
    start = MARGIN + column * (width + MARGIN)
    return np.asarray(sheet)[:, start : start + width]


def test_pictures_stand_in_a_grid_with_their_captions_below() -> None:
    colours = [(200, 0, 0), (0, 200, 0), (0, 0, 200)]
    sheet = contact_sheet([plain(colour) for colour in colours], ["one", LONG, ""], columns=3, scale=3)
    assert sheet.width == 3 * (120 + MARGIN) + MARGIN
    inked = []
    for column, colour in enumerate(colours):
        pixels = cell(sheet, column, 120)
        assert (pixels[MARGIN : MARGIN + 90] == colour).all()
        below = pixels[MARGIN + 90 :]
        inked.append(int((below != PAPER).any(axis=(1, 2)).sum()))
    assert 0 == inked[2] < inked[0] < inked[1] / 2, "the long caption takes several lines"
    # Letters may start a pixel before their place.
    gaps = [x for x in range(sheet.width) if x % (120 + MARGIN) < MARGIN - 1]
    assert (np.asarray(sheet)[:, gaps] == PAPER).all()


def test_a_second_row_starts_below_the_longest_caption_and_the_tallest_picture() -> None:
    pictures = [plain((200, 0, 0)), plain((0, 200, 0), (20, 50)), plain((0, 0, 200))]
    sheet = np.asarray(contact_sheet(pictures, [LONG, "two", "three"], columns=2, scale=1))
    rows, columns = np.nonzero((sheet == (0, 0, 200)).all(axis=-1))
    assert (columns.min(), np.ptp(columns) + 1, np.ptp(rows) + 1) == (MARGIN, 40, 30)
    assert (sheet[MARGIN + 50 : rows.min(), MARGIN : MARGIN + 40] != PAPER).any(), (
        "the first caption is above"
    )
    assert (sheet[rows.min() - MARGIN : rows.min()] == PAPER).all()


@pytest.mark.parametrize("captions", [[], ["one", "two"]])
def test_pictures_without_captions_are_refused(captions: list[str]) -> None:
    with pytest.raises(ValueError, match="as many captions"):
        contact_sheet([plain((1, 2, 3))], captions, columns=2)
