"""Sheets of captioned pictures: each picture is where it belongs, its caption below it and nowhere else."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ofa_fairseq.data.images import encode_image
from ofa_fairseq.prepare.__main__ import main
from ofa_fairseq.prepare.contact_sheet import MARGIN, PAPER, contact_sheet

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


def test_the_command_draws_the_first_rows_with_the_generated_captions(tmp_path: Path) -> None:
    data, predictions, out = tmp_path / "test.tsv", tmp_path / "test_predict.json", tmp_path / "sheet.png"
    pictures = [plain((200, 0, 0), (64, 64)), plain((0, 200, 0), (2000, 1000)), plain((0, 0, 200), (64, 64))]
    rows = [f"{i}\t{i + 50}\tshort&&{LONG}\t\t{encode_image(image)}\n" for i, image in enumerate(pictures)]
    data.write_text("".join(rows))
    command = ["contact_sheet", "--data", str(data), "--out", str(out), "--rows", "2", "--columns", "2"]

    main(command)
    references = Image.open(out).convert("RGB")
    small = pictures[1].resize((192, 96)), pictures[0]
    assert references == contact_sheet(small[::-1], ["short", "short"], columns=2)

    predictions.write_text(json.dumps([{"image_id": 51, "caption": LONG}]))
    main([*command, "--predictions", str(predictions), "--selected-cols", "1,4,2"])
    assert Image.open(out).convert("RGB") == contact_sheet(small[::-1], ["(no caption)", LONG], columns=2)


def test_wrong_columns_are_an_error_in_words(tmp_path: Path) -> None:
    (tmp_path / "test.tsv").write_text("0\t1\n")
    with pytest.raises(SystemExit, match="selected column 4 does not exist"):
        main(["contact_sheet", "--data", str(tmp_path / "test.tsv"), "--out", str(tmp_path / "sheet.png")])
