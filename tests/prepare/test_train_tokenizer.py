"""The training of a small tokenizer through its command: it learns, says how, and loses nothing when interrupted."""

import argparse
import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from task_builders import write_tsv

from ofa_fairseq.data.images import encode_image
from ofa_fairseq.models.image_tokenizer import ImageTokenizer, picture_input, scaled
from ofa_fairseq.prepare import train_tokenizer
from ofa_fairseq.prepare.train_tokenizer import (
    Training,
    distance_from_ground,
    foreground_crops,
    ground_error,
    weighted_error,
)

SMALL = [
    "--side",
    "16",
    "--codes",
    "64",
    "--channels",
    "8",
    "--batch-size",
    "8",
    "--valid",
    "10",
    "--lr",
    "5e-3",
]


def picture(number: int, side: int = 16) -> Image.Image:
    """A bright square somewhere on plain dark ground."""
    rng = np.random.default_rng(number)
    pixels = np.full((side, side, 3), 30, np.uint8)
    x, y = rng.integers(0, side - 6, 2)
    pixels[y : y + 6, x : x + 6] = rng.integers(100, 256, 3)
    return Image.fromarray(pixels)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [[str(i), str(i), encode_image(picture(i)), "a square"] for i in range(60)]
    return write_tsv(tmp_path_factory.mktemp("pictures") / "train.tsv", rows)


def options(data: Path, out: Path, *flags: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    train_tokenizer.add_arguments(parser)
    return parser.parse_args(["--data", str(data), "--out", str(out), *SMALL, *flags])


def train(data: Path, out: Path, *flags: str) -> list[dict[str, float]]:
    """The rows of the log."""
    train_tokenizer.run(options(data, out, *flags))
    return read_log(out)


def read_log(out: Path) -> list[dict[str, float]]:
    with (out / "train_log.tsv").open() as file:
        return [
            {key: float(value) for key, value in row.items()} for row in csv.DictReader(file, delimiter="\t")
        ]


@pytest.mark.parametrize("quantizer", ["gumbel", "nearest", "fsq"])
def test_training_reduces_the_error_and_tells_which_codes_are_used(
    quantizer: str, data: Path, tmp_path: Path
) -> None:
    log = train(data, tmp_path, "--quantizer", quantizer, "--updates", "100", "--log-interval", "20")
    assert [row["update"] for row in log] == [20, 40, 60, 80, 100]
    assert log[-1]["error"] < 0.7 * log[0]["error"]
    assert log[-1]["valid_error"] < log[0]["valid_error"]

    tokenizer = ImageTokenizer.load(tmp_path / "last.ckpt", tmp_path / "model.yaml")
    order = np.random.default_rng(1).permutation(60)[:10]  # the seed's; held-out pictures are the first
    pictures = torch.stack([picture_input(picture(int(i)), 16) for i in order])
    codes = tokenizer.encode(pictures)
    share = np.bincount(codes.flatten(), minlength=64) / codes.numel()
    used = share[share > 0]
    assert log[-1]["codes_used"] == len(used)
    assert log[-1]["used_share"] == pytest.approx(len(used) / 64, rel=1e-4)
    assert log[-1]["perplexity"] == pytest.approx(np.exp(-(used * np.log(used)).sum()), rel=1e-4)
    assert log[-1]["commonest"] == pytest.approx(share.max(), rel=1e-4)
    error = (tokenizer.decode(codes) - pictures).abs().mean() * 127.5
    assert log[-1]["valid_error"] == pytest.approx(float(error), rel=1e-4)
    sheet = Image.open(tmp_path / "before_after.png").convert("RGB")
    assert sheet.width > 8 * 16 * 8


@pytest.mark.parametrize("flags", [["--quantizer", "gumbel"], ["--quantizer", "nearest"], ["--bf16"]])
def test_an_interrupted_training_ends_as_an_uninterrupted_one(
    flags: list[str], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = [*flags, "--updates", "23", "--log-interval", "5", "--save-interval", "6"]
    monkeypatch.setattr(train_tokenizer, "PATIENCE", 4)
    whole = train(data, tmp_path / "whole", *flags)

    step = Training.step

    def interrupted_step(self: Training) -> None:
        if self.update == 16:
            raise KeyboardInterrupt
        step(self)

    monkeypatch.setattr(Training, "step", interrupted_step)
    with pytest.raises(KeyboardInterrupt):
        train(data, tmp_path / "parts", *flags)
    monkeypatch.setattr(Training, "step", step)
    torch.manual_seed(99)
    parts = train(data, tmp_path / "parts", *flags)

    for row in whole + parts:
        del row["seconds"]
    assert parts == whole
    states = [
        torch.load(tmp_path / name / "last.ckpt", weights_only=True)["state_dict"]
        for name in ("whole", "parts")
    ]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert not (tmp_path / "parts" / "state.pt").exists()


def test_a_finished_training_is_left_alone_and_other_options_start_anew(data: Path, tmp_path: Path) -> None:
    train(data, tmp_path, "--updates", "3")
    before = (tmp_path / "last.ckpt").stat().st_mtime_ns
    train(data, tmp_path, "--updates", "3")
    assert (tmp_path / "last.ckpt").stat().st_mtime_ns == before
    assert [row["update"] for row in train(data, tmp_path, "--updates", "2")] == [2]
    assert (tmp_path / "last.ckpt").stat().st_mtime_ns != before


def test_a_folder_is_searched_and_unreadable_pictures_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    for i in range(12):
        picture(i, side=20 + i).save(tmp_path / ("deep/er" if i % 2 else "deep") / f"{i}.PNG")
    (tmp_path / "deep" / "broken.jpg").write_bytes(b"no picture")
    (tmp_path / "notes.txt").write_text("no picture either")
    with caplog.at_level("INFO"):
        train(tmp_path, tmp_path / "out", "--updates", "2")
    assert "left out 1 unreadable pictures of 13, the first" in caplog.text
    assert "broken.jpg" in caplog.text
    assert "2 pictures for training, 10 held out" in caplog.text


def test_unreadable_rows_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [["0", encode_image(picture(i))] for i in range(12)]
    rows[3][1], rows[7][1] = "abc", "missing.png"
    data = write_tsv(tmp_path / "train.tsv", rows)
    with caplog.at_level("INFO"):
        train(data, tmp_path / "out", "--updates", "1", "--column", "1", "--valid", "9")
    assert "left out 2 unreadable pictures of 12" in caplog.text


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--codes", "500"], "fsq needs a power of two"),
        (["--side", "20"], "--side 20: expected a multiple of 8"),
        (["--valid", "60"], "60 readable pictures, too few to hold out 60"),
        (["--updates", "0"], "--updates 0: expected a number from 1"),
        (["--column", "9"], "selected column 9 does not exist"),
        (["--lr", "0"], "--lr above 0"),
    ],
)
def test_unusable_options_are_errors_in_words(
    flags: list[str], message: str, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        train(data, tmp_path / "out", *flags)


def test_an_empty_folder_is_an_error_in_words(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no pictures"):
        train(tmp_path, tmp_path / "out")


def test_pixels_weigh_by_their_distance_from_the_ground() -> None:
    pictures = scaled(torch.full((1, 3, 4, 4), 30, dtype=torch.uint8))
    pictures[0, :, 0, 0] = torch.tensor([1.0, 0.0, -1.0])
    distance = distance_from_ground(pictures)
    ground = 30 / 127.5 - 1
    expected = torch.zeros(4, 4)
    expected[0, 0] = (1 - ground) / 2
    torch.testing.assert_close(distance[0, 0], expected)
    off = pictures.clone()
    off[0, 0, 0, 0] -= 0.5
    weight = 1 + 5 * distance
    by_hand = (1 + 5 * expected[0, 0]) * (0.5 + 0.25) / 48 / (1 + 5 * expected[0, 0] / 16)
    torch.testing.assert_close(weighted_error(pictures, off, weight), by_hand)


def test_ground_may_have_one_code_for_each_picture() -> None:
    distance = torch.zeros(2, 1, 16, 24)
    distance[0, 0, 3, 3] = 0.5  # the first of six positions is no ground
    vectors = torch.zeros(2, 4, 2, 3)
    vectors[1] = 7
    vectors[0, :, 0, 0] = 9
    assert ground_error(vectors, distance) == 0
    vectors[0, :, 1, 2] = 2
    vectors.requires_grad_()
    error = ground_error(vectors, distance)
    assert error.item() == pytest.approx(4 * 4 / (2 * 4 * 6))
    error.backward()
    assert vectors.grad is not None
    assert vectors.grad.nonzero()[:, 2:].unique(dim=0).tolist() == [[1, 2]]
    distance[:] = 1
    assert ground_error(vectors, distance) == 0


def test_crops_are_parts_with_foreground() -> None:
    torch.manual_seed(0)
    pictures = scaled(torch.full((200, 3, 32, 32), 30, dtype=torch.uint8))
    pictures[:, :, 24:, :8] = 1.0
    crops, distance = foreground_crops(pictures, distance_from_ground(pictures), 16)
    assert crops.shape == (200, 3, 16, 16)
    assert torch.equal(distance > 0, crops[:, :1] == 1)
    # one of nine places has the square
    assert (crops == 1).flatten(1).any(dim=1).float().mean() > 0.8
    whole, _ = foreground_crops(pictures, distance_from_ground(pictures), 32)
    assert torch.equal(whole, pictures)
