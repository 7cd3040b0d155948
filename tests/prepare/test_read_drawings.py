"""The score of drawn pictures: against counts made by hand on composed pictures, and by the real command line."""

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ofa_fairseq.data.images import encode_image
from ofa_fairseq.models.image_tokenizer import ImageTokenizer, TokenizerConfig
from ofa_fairseq.models.vqgan import Architecture
from ofa_fairseq.prepare.__main__ import main
from ofa_fairseq.prepare.digits import PlacedDigit, Scene, captions
from ofa_fairseq.prepare.digits.drawing import draw_plain
from ofa_fairseq.prepare.digits.drawing_reader import FoundDigit
from ofa_fairseq.prepare.digits.drawings_command import captioned_scenes
from ofa_fairseq.prepare.digits.read_drawings import drawing_scores, number_named, shuffled
from ofa_fairseq.prepare.digits.scenes import DIGIT_WORDS

COLUMNS = ["digit+colour", "digit", "colour", "size", "place", "relation", "number"]
NAN = math.nan
TRAINING = [scene for scene, _ in captioned_scenes("train", 600, seed=1, handwriting_seed=1)]


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all that the command needs of it."""
    folder = tmp_path_factory.mktemp("digits")
    (folder / "drawings_scenes_train.jsonl").write_text("".join(scene.to_json() + "\n" for scene in TRAINING))
    return folder


def placed(description: str, quadrant: str) -> PlacedDigit:
    """ "large red seven" in some training handwriting."""
    size, colour, word = description.split()
    digit = next(
        digit
        for scene in TRAINING
        for digit in scene.digits
        if (digit.size, digit.word, digit.quadrant) == (size, word, quadrant)
    )
    return replace(digit, colour=colour)


def picture(*content: tuple[str, str]) -> Image.Image:
    return draw_plain(Scene("", tuple(placed(*entry) for entry in content), background_seed=0))


# Caption, picture, rank, and what is right by the columns.
TOP_LEFT, BOTTOM_LEFT, BOTTOM_RIGHT = "top left", "bottom left", "bottom right"
SINGLE = "large red seven top left"
TWO = "a large red seven above and to the left of a small blue three"
DRAWN = [
    (SINGLE, picture(("large red seven", TOP_LEFT)), 0, [1, 1, 1, 1, 1, NAN, 1]),
    (SINGLE, picture(("large blue seven", TOP_LEFT)), 1, [0, 1, 0, 1, 1, NAN, 1]),
    (
        "only a small green two at the bottom left",
        picture(("small green six", BOTTOM_LEFT)),
        0,
        [0, 0, 1, 1, 1, NAN, 1],
    ),
    ("a large cyan zero", picture(("small cyan zero", BOTTOM_LEFT)), 0, [1, 1, 1, 0, NAN, NAN, 1]),
    ("top left a small pink four", picture(("small pink four", BOTTOM_RIGHT)), 0, [1, 1, 1, 1, 0, NAN, 1]),
    (
        "large white nine bottom right",
        picture(("large white nine", BOTTOM_RIGHT), ("small red two", TOP_LEFT)),
        0,
        [1, 1, 1, 1, 1, NAN, 0],
    ),
    ("large yellow five bottom right", picture(), 0, [0, 0, 0, 0, 0, NAN, 0]),
    (
        TWO,
        picture(("large red seven", TOP_LEFT), ("small blue three", BOTTOM_RIGHT)),
        0,
        [1, 1, 1, 1, NAN, 1, 1],
    ),
    (
        TWO,
        picture(("small blue three", TOP_LEFT), ("large red seven", BOTTOM_RIGHT)),
        1,
        [1, 1, 1, 1, NAN, 0, 1],
    ),
    (
        "small pink one top left large green six bottom left",
        picture(("small pink one", TOP_LEFT)),
        0,
        [0, 0, 0, 0, 0, NAN, 0],
    ),
]


def write_list(folder: Path, drawn: Sequence[tuple[str, Image.Image, int]]) -> Path:
    path = folder / "pictures.tsv"
    lines = ["id\tcaption\trank\tscore\tpath"]
    for number, (caption, image, rank) in enumerate(drawn):
        image.save(folder / f"{number}.png")
        lines.append(f"{number}\t{caption}\t{rank}\t-0.5\t{number}.png")
    path.write_text("\n".join(lines) + "\n")
    return path


def printed_tables(capsys: pytest.CaptureFixture[str], *flags: str) -> list[dict[str, list[float]]]:
    """Of each table: kind -> rows and the columns."""
    capsys.readouterr()
    main(["read_drawings", *flags])
    blocks = capsys.readouterr().out.split("with the captions of other pictures:")
    tables = []
    for block in blocks:
        header, *lines = block.strip().split("\n")
        assert header.split() == ["kind", "rows", *COLUMNS]
        parts = (re.fullmatch(r"(\D+?)  +([\d].*)", line) for line in lines)
        tables.append({part[1]: [float(number) for number in part[2].split()] for part in parts if part})
    return tables


def expected(rows: list[list[float]]) -> list[float]:
    """Numbers of a line: rows, and the mean of what is counted in percent."""
    columns = [[value for value in column if value == value] for column in zip(*rows)]
    return [len(rows), *(round(100 * sum(c) / len(c), 1) if c else NAN for c in columns)]


@pytest.mark.parametrize("ranks", ["first", "all"])
def test_the_table_is_the_count_made_by_hand(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], ranks: str
) -> None:
    path = write_list(tmp_path, [entry[:3] for entry in DRAWN])
    right, _ = printed_tables(capsys, "--digits", str(digits), "--pictures", str(path), "--ranks", ranks)
    counted = [(caption, row) for caption, _, rank, row in DRAWN if ranks == "all" or rank == 0]
    single = [row for caption, row in counted if caption not in (TWO, DRAWN[-1][0])]
    two = [row for caption, row in counted if caption in (TWO, DRAWN[-1][0])]
    assert right.keys() == {"one digit", "two digits", "all"}
    np.testing.assert_allclose(right["one digit"], expected(single), atol=0.051)
    np.testing.assert_allclose(right["two digits"], expected(two), atol=0.051)
    np.testing.assert_allclose(right["all"], expected(single + two), atol=0.051)


def test_the_second_table_has_the_captions_of_other_pictures(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All but one of three captions fit each other's pictures in what the third one's do not."""
    drawn = [
        ("a large red seven", picture(("large red seven", TOP_LEFT)), 0),
        ("a small red seven", picture(("small red seven", TOP_LEFT)), 0),
        ("a small green two", picture(("small green two", TOP_LEFT)), 0),
    ]
    path = write_list(tmp_path, drawn)
    right, chance = printed_tables(capsys, "--digits", str(digits), "--pictures", str(path))
    assert right["one digit"][1:5] == [100.0] * 4
    # The pictures with the captions after theirs: only the first one has the digit and colour of the second caption,
    # only the second one the size of the third.
    assert chance["one digit"][1:5] == [33.3, 33.3, 33.3, 33.3]


def test_real_pictures_are_read_from_a_tsv(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "drawings.tsv"
    made = list(captioned_scenes("test", 60, 1, 1)) + list(captioned_scenes("two", 40, 1, 1))
    path.write_text("".join(f"0\t{s.image_id}\t{encode_image(draw_plain(s))}\t{text}\n" for s, text in made))
    right, chance = printed_tables(capsys, "--digits", str(digits), "--real", str(path))
    assert [right[kind][0] for kind in ("one digit", "two digits", "all")] == [60, 40, 100]
    assert min(right["one digit"][1:6]) >= 90
    assert chance["one digit"][1] <= 10


def seen(digit: int | None, colour: str, quadrant: str | None, box: tuple[int, int, int, int]) -> FoundDigit:
    return FoundDigit(digit, colour, "large", quadrant, box)


def test_a_smear_is_not_the_digit_and_spoils_the_number() -> None:
    seven, smear = seen(7, "red", TOP_LEFT, (2, 2, 20, 30)), seen(None, "red", None, (25, 25, 40, 50))
    captions = ["a red seven"] * 4
    scores = drawing_scores(captions, [[seven], [smear], [seven, smear], []])
    assert scores["digit+colour"].tolist() == [1, 0, 1, 0]
    assert scores["number"].tolist() == [1, 0, 0, 0]


def test_digit_and_colour_have_to_be_of_one_digit() -> None:
    caption = "a red seven and to its right a blue three"
    crossed = [seen(7, "blue", TOP_LEFT, (2, 2, 20, 30)), seen(3, "red", "top right", (35, 2, 60, 30))]
    scores = drawing_scores([caption], [crossed])
    assert scores["digit+colour"].tolist() == [0]
    assert scores["digit"].tolist() == [1]


@given(st.integers(0, 500))
def test_true_pictures_score_in_every_column(number: int) -> None:
    scene = TRAINING[number]
    found = [FoundDigit(d.digit, d.colour, d.size, d.quadrant, d.box) for d in scene.digits]
    texts = captions(scene)
    scores = drawing_scores(texts, [found] * len(texts))
    assert {value for column in scores.values() for value in column if value == value} == {1.0}


@given(st.lists(st.integers(0, 200), min_size=1))
def test_every_caption_gets_another_one_of_its_kind(numbers: list[int]) -> None:
    texts = [captions(TRAINING[number])[0] for number in numbers]
    others = shuffled(texts)
    assert [number_named(text) for text in others] == [number_named(text) for text in texts]
    for kind in set(map(number_named, texts)):
        distinct = {text for text in texts if number_named(text) == kind}
        given_ = {text: other for text, other in zip(texts, others) if text in distinct}
        assert set(given_.values()) == distinct
        assert len(distinct) == 1 or all(text != other for text, other in given_.items())


def test_kinds_say_how_many_digits_a_caption_names() -> None:
    texts = [" ".join(DIGIT_WORDS[:count]) for count in (1, 2, 4)]
    assert [number_named(text) for text in texts] == ["one digit", "two digits", "four digits"]


RED_SEVEN = DRAWN[0][1]


@pytest.mark.parametrize(
    ("drawn", "message"),
    [
        ([("a house", RED_SEVEN, 0)], r"0\.png: expected a caption that names digits, got 'a house'"),
        ([(SINGLE, RED_SEVEN, 1)], "expected pictures of rank 0, there are none"),
        ([(SINGLE, RED_SEVEN.resize((32, 32)), 0)], r"0\.png: expected a picture of 64x64 pixels, got 32x32"),
    ],
)
def test_unusable_pictures_are_refused_in_words(
    digits: Path, tmp_path: Path, drawn: list[tuple[str, Image.Image, int]], message: str
) -> None:
    path = write_list(tmp_path, drawn)
    with pytest.raises(SystemExit, match=message):
        main(["read_drawings", "--digits", str(digits), "--pictures", str(path)])


def test_missing_and_broken_files_are_named(digits: Path, tmp_path: Path) -> None:
    path = write_list(tmp_path, [(SINGLE, RED_SEVEN, 0)])
    command = ["read_drawings", "--digits", str(digits)]
    with pytest.raises(SystemExit, match="the data of `digit_drawings`"):
        main(["read_drawings", "--digits", str(tmp_path), "--pictures", str(path)])
    with pytest.raises(SystemExit, match="--reconstructed-by is for --real"):
        main([*command, "--pictures", str(path), "--reconstructed-by", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"gone\.tsv: no such TSV file"):
        main([*command, "--real", str(tmp_path / "gone.tsv")])

    (tmp_path / "0.png").write_bytes(b"no picture")
    with pytest.raises(SystemExit, match=r"0\.png: not an image"):
        main([*command, "--pictures", str(path)])
    (tmp_path / "0.png").unlink()
    with pytest.raises(SystemExit, match=r"row 2: there is no picture file .*0\.png"):
        main([*command, "--pictures", str(path)])

    real = tmp_path / "real.tsv"
    real.write_text(f"0\t1\tgone.png\t{SINGLE}\n")
    with pytest.raises(SystemExit, match=r"real\.tsv, row 1: can't read the image file"):
        main([*command, "--real", str(real)])


def test_pictures_can_be_read_as_a_tokenizer_restores_them(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One with random weights restores nothing, however many pictures there are in its last batch."""
    architecture = Architecture(ch=32, ch_mult=(1, 1, 1, 1), num_res_blocks=1, z_channels=4, resolution=64)
    config = TokenizerConfig(architecture, embed_dim=3, n_embed=8, quantizer="fsq", levels=(2, 2, 2))
    torch.manual_seed(1)
    ImageTokenizer(config).save(tmp_path / "last.ckpt", tmp_path / "model.yaml")
    path = tmp_path / "drawings.tsv"
    picture = encode_image(RED_SEVEN)
    path.write_text("".join(f"{number}\t0\t{picture}\t{SINGLE}\n" for number in range(53)))
    flags = "--digits", str(digits), "--real", str(path)
    assert printed_tables(capsys, *flags)[0]["one digit"][:2] == [53, 100]
    assert printed_tables(capsys, *flags, "--reconstructed-by", str(tmp_path))[0]["one digit"][:2] == [53, 0]
    with pytest.raises(SystemExit, match="model.yaml"):
        main(["read_drawings", *flags, "--reconstructed-by", str(tmp_path / "gone")])
