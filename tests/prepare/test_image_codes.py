"""The command that turns pictures into code columns, against the tokenizer used picture by picture."""

import argparse
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from task_builders import write_tsv

from ofa_fairseq.data.images import encode_image
from ofa_fairseq.models.image_tokenizer import ImageTokenizer, TokenizerConfig, picture_input
from ofa_fairseq.models.vqgan import Architecture
from ofa_fairseq.prepare import image_codes

SIZES = [(16, 16), (40, 20), (10, 31), (16, 16), (64, 64)]


def picture(number: int) -> Image.Image:
    rng = np.random.default_rng(number)
    pixels = rng.integers(0, 256, (*SIZES[number % len(SIZES)][::-1], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> tuple[ImageTokenizer, Path]:
    folder = tmp_path_factory.mktemp("tokenizer")
    torch.manual_seed(1)
    architecture = Architecture(8, (1, 2), 1, 8, 16, patch_size=4, norm="position")
    model = ImageTokenizer(TokenizerConfig(architecture, 4, 50, "gumbel")).eval()
    model.save(folder / "last.ckpt", folder / "model.yaml")
    return model, folder


def command(data: Path, out: Path, folder: Path, *flags: str) -> None:
    parser = argparse.ArgumentParser()
    image_codes.add_arguments(parser)
    paths = {
        "data": data,
        "out": out,
        "vqgan-model-path": folder / "last.ckpt",
        "vqgan-config-path": folder / "model.yaml",
    }
    argv = [part for name, path in paths.items() for part in (f"--{name}", str(path))]
    image_codes.run(parser.parse_args([*argv, "--side", "16", *flags]))


def rows_of(count: int) -> list[list[str]]:
    return [[str(i), f"p{i}", encode_image(picture(i)), f"text {i}"] for i in range(count)]


def codes_of(model: ImageTokenizer, number: int) -> str:
    return " ".join(
        str(int(code)) for row in model.encode(picture_input(picture(number), 16)[None])[0] for code in row
    )


def lines(path: Path) -> list[list[str]]:
    return [line.split("\t") for line in path.read_text().splitlines()]


def test_rows_get_the_codes_of_their_pictures(tokenizer: tuple[ImageTokenizer, Path], tmp_path: Path) -> None:
    model, folder = tokenizer
    data = write_tsv(tmp_path / "data.tsv", rows_of(11))
    command(data, tmp_path / "four.tsv", folder, "--batch-size", "4")
    expected = [codes_of(model, i) for i in range(11)]
    assert len(set(expected)) > 5
    assert lines(tmp_path / "four.tsv") == [[str(i), f"p{i}", f"text {i}", expected[i]] for i in range(11)]
    command(data, tmp_path / "two.tsv", folder, "--selected-cols", "1,2")
    assert lines(tmp_path / "two.tsv") == [[f"p{i}", expected[i]] for i in range(11)]


def test_rows_that_cannot_be_used_are_listed(
    tokenizer: tuple[ImageTokenizer, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, folder = tokenizer
    rows = rows_of(7)
    rows[1][2], rows[3][2] = "abcde", "missing.png"
    data, out = write_tsv(tmp_path / "data.tsv", rows), tmp_path / "out.tsv"
    text = data.read_text().splitlines()
    data.write_text("\n".join([*text[:2], "too\tfew", *text[3:]]) + "\n")
    with caplog.at_level("INFO"):
        command(data, out, folder, "--batch-size", "3")
    assert [row[0] for row in lines(out)] == ["0", "4", "5", "6"]
    assert lines(out)[1][3] == codes_of(model, 4)
    listed = lines(tmp_path / "out.tsv.left_out.tsv")
    assert [row[:2] for row in listed] == [[str(data), number] for number in ("2", "3", "4")]
    assert "'abcde' is neither base64" in listed[0][2]
    assert "has 2 columns" in listed[1][2]
    assert "missing.png" in listed[2][2]
    assert "left out: 3 of 7 rows" in caplog.text


def test_no_usable_row_is_an_error(tokenizer: tuple[ImageTokenizer, Path], tmp_path: Path) -> None:
    data = write_tsv(tmp_path / "data.tsv", [["0", "p", "abc", "text"]])
    with pytest.raises(ValueError, match=r"data.tsv: no row can be used"):
        command(data, tmp_path / "out.tsv", tokenizer[1])
    assert not (tmp_path / "out.tsv").exists()


def test_an_interrupted_run_goes_on(
    tokenizer: tuple[ImageTokenizer, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_tsv(tmp_path / "data.tsv", rows_of(12))
    command(data, tmp_path / "whole.tsv", tokenizer[1])
    monkeypatch.setattr(image_codes, "PART_ROWS", 4)
    encode, coded = ImageTokenizer.encode, []

    def counting(self: ImageTokenizer, pictures: torch.Tensor) -> torch.Tensor:
        if len(coded) == 3:
            raise KeyboardInterrupt
        coded.append(len(pictures))
        return encode(self, pictures)

    monkeypatch.setattr(ImageTokenizer, "encode", counting)
    out = tmp_path / "out.tsv"
    with pytest.raises(KeyboardInterrupt):
        command(data, out, tokenizer[1], "--batch-size", "2")
    assert not out.exists()
    coded[:] = [0, 0]  # one more batch until the next interruption
    with pytest.raises(KeyboardInterrupt):
        command(data, out, tokenizer[1], "--batch-size", "4")
    coded[:] = [0, 0]
    command(data, out, tokenizer[1], "--batch-size", "4")
    assert coded == [0, 0, 4]  # two of the three parts were there
    assert out.read_bytes() == (tmp_path / "whole.tsv").read_bytes()
    assert not list(tmp_path.glob(".out.tsv*"))


def test_what_is_finished_is_left_alone_until_something_changes(
    tokenizer: tuple[ImageTokenizer, Path], tmp_path: Path
) -> None:
    data, out = write_tsv(tmp_path / "data.tsv", rows_of(3)), tmp_path / "out.tsv"

    def made_anew(*flags: str) -> bool:
        os.utime(out, ns=(0, 0))
        command(data, out, tokenizer[1], *flags)
        return out.stat().st_mtime_ns != 0

    command(data, out, tokenizer[1])
    assert not made_anew()
    assert not made_anew("--batch-size", "1")
    assert made_anew("--side", "24")
    assert len(lines(out)[0][3].split()) == 9
    assert made_anew("--side", "24", "--selected-cols", "1,2")
    write_tsv(data, rows_of(4))
    assert made_anew("--side", "24", "--selected-cols", "1,2")
    assert len(lines(out)) == 4


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--selected-cols", "0,1,2"], "expected four columns"),
        (["--side", "20"], "--side 20: expected a multiple of 8"),
        (["--batch-size", "0"], "--batch-size 0"),
        (["--selected-cols", "1,9"], "selected column 9 does not exist"),
    ],
)
def test_unusable_options_are_errors_in_words(
    flags: list[str], message: str, tokenizer: tuple[ImageTokenizer, Path], tmp_path: Path
) -> None:
    data = write_tsv(tmp_path / "data.tsv", rows_of(1))
    with pytest.raises(ValueError, match=message):
        command(data, tmp_path / "out.tsv", tokenizer[1], *flags)
