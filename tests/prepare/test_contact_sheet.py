"""The command that draws the pictures of a TSV with captions, against the drawing of pictures made here."""

import json
from pathlib import Path

import pytest
from PIL import Image

from ofa_fairseq.data.drawing import contact_sheet
from ofa_fairseq.data.images import encode_image
from ofa_fairseq.prepare.__main__ import main

LONG = "a large red seven at the top left and a small blue three at the bottom right"


def test_the_command_draws_the_first_rows_with_the_generated_captions(tmp_path: Path) -> None:
    data, predictions, out = tmp_path / "test.tsv", tmp_path / "test_predict.json", tmp_path / "sheet.png"
    sizes = [(64, 64), (2000, 1000), (64, 64)]
    pictures = [Image.new("RGB", size, (200, 50 * i, 0)) for i, size in enumerate(sizes)]
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
