"""decode_image against PIL's own reading of the same bytes, and bad pictures of each kind."""

import base64
import io
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ofa_fairseq.data import images
from ofa_fairseq.data.images import ImageError, decode_image, encode_image


def picture(mode: str = "RGB", size: tuple[int, int] = (37, 23), seed: int = 0) -> Image.Image:
    noise = np.random.RandomState(seed).randint(0, 256, (size[1], size[0], 4), dtype=np.uint8)
    return Image.fromarray(noise, "RGBA").convert(mode)


def as_bytes(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def url_safe(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode()


def rgb(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


# A PNG whose base64 has characters that the two alphabets write differently, and needs padding.
DATA = as_bytes(picture(seed=1)) + b"\0" * ((4 - len(as_bytes(picture(seed=1))) % 3) % 3)


@pytest.mark.parametrize(
    "value",
    [
        url_safe(DATA),
        base64.b64encode(DATA).decode(),
        url_safe(DATA).rstrip("="),
        base64.b64encode(DATA).decode().rstrip("="),
        f" \t{url_safe(DATA)} \r",
        f"data:image/png;base64,{base64.b64encode(DATA).decode()}",
        f" DATA:image/png;charset=utf-8;BASE64,{url_safe(DATA)} ",
        f"data:;base64,{base64.b64encode(DATA).decode()}",
    ],
)
def test_both_alphabets_with_and_without_padding_and_wrapping(tmp_path: Path, value: str) -> None:
    assert set("+/") & set(base64.b64encode(DATA).decode())
    assert url_safe(DATA).endswith("=")
    image = decode_image(value, tmp_path)
    assert image.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(image), rgb(DATA))


EXIF_ROTATED = Image.Exif()
EXIF_ROTATED[0x0112] = 6


@pytest.mark.parametrize(
    "data",
    [
        as_bytes(picture("L")),
        as_bytes(picture("LA")),
        as_bytes(picture("RGBA")),
        as_bytes(picture("1")),
        as_bytes(picture("P")),
        as_bytes(picture("P"), transparency=3),
        as_bytes(picture("CMYK"), "JPEG"),
        as_bytes(picture("L"), "JPEG"),
        as_bytes(picture(), "JPEG", exif=EXIF_ROTATED),
        as_bytes(picture("P"), "GIF"),
        as_bytes(picture(), "WEBP"),
        as_bytes(picture(), "BMP"),
        as_bytes(Image.fromarray(np.arange(0, 60_000, 100, dtype=np.uint16).reshape(20, 30))),
    ],
)
def test_every_kind_of_picture_becomes_rgb_as_pil_does_it(tmp_path: Path, data: bytes) -> None:
    np.testing.assert_array_equal(np.asarray(decode_image(url_safe(data), tmp_path)), rgb(data))


def test_exif_rotation_is_ignored(tmp_path: Path) -> None:
    data = as_bytes(picture(size=(40, 20)), "JPEG", exif=EXIF_ROTATED)
    assert decode_image(url_safe(data), tmp_path).size == (40, 20)


def test_encoded_jpeg_begins_like_an_absolute_path_but_is_base64(tmp_path: Path) -> None:
    value = base64.b64encode(as_bytes(picture(size=(1, 1)), "JPEG", quality=1)).decode()
    assert value.startswith("/9j/")
    assert len(value) < 1024
    assert decode_image(value, tmp_path).size == (1, 1)


@pytest.mark.parametrize("name", ["a b.png", "sub/ö.jpg", "noextension", "img-1_2", "sub/../a=b"])
def test_paths(tmp_path: Path, name: str) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / name).write_bytes(DATA)
    for value in (name, f" {name}\u00a0", str(tmp_path / name)):
        np.testing.assert_array_equal(np.asarray(decode_image(value, tmp_path)), rgb(DATA))


def test_absolute_path_ignores_the_root(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(DATA)
    assert decode_image(str(tmp_path / "a.png"), Path("/nowhere")).size == (37, 23)


@pytest.mark.parametrize("format", ["PNG", "JPEG"])
def test_encode_image(tmp_path: Path, format: Literal["PNG", "JPEG"]) -> None:
    image = picture(size=(64, 48)).resize((128, 96), Image.Resampling.BICUBIC)
    value = encode_image(image, format)
    assert not set("+/") & set(value)
    data = base64.urlsafe_b64decode(value)
    assert Image.open(io.BytesIO(data)).format == format
    decoded = np.asarray(decode_image(value, tmp_path)).astype(int)
    assert np.abs(decoded - np.asarray(image)).mean() <= (0 if format == "PNG" else 20)


def test_jpeg_quality(tmp_path: Path) -> None:
    assert len(encode_image(picture(), "JPEG", quality=20)) < len(encode_image(picture(), "JPEG", quality=95))


LONG = url_safe(as_bytes(picture(size=(64, 64))))


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("", "the image is empty"),
        (" \t", "the image is empty"),
        ("data:image/png;base64,", "the image is empty"),
        ("data:image/png;base64,a.png", "broken base64: '.' at character 2"),
        ("data:image/svg+xml,%3Csvg%3E", "can't read the image file .*data:image/svg"),
        ("absent.png", "can't read the image file '.*absent.png': No such file"),
        ("/absent/photo.jpg", "can't read the image file '/absent/photo.jpg': No such file"),
        (".", "can't read the image file '.*': Is a directory"),
        ("a\0b", "can't read the image file .*null"),
        ("x." * 300, "can't read the image file .*: File name too long"),
        ("abcde", "neither base64 .* nor the path of a file"),
        ("ab=c", "neither base64 .* nor the path of a file"),
        (LONG[:4001], "neither base64"),
        (LONG[:2000] + " " + LONG[2000:], "broken base64: ' ' at character 2001"),
        (LONG[:2000] + "é" + LONG[2000:], "broken base64: 'é' at character 2001"),
        (url_safe(b"just some text, no picture"), "not an image in a known format .*just som"),
        (LONG[: len(LONG) // 8 * 4], "the image can't be decoded: .*truncated"),
        (
            url_safe(as_bytes(picture(size=(64, 64)), "JPEG")[:-900]),
            "the image can't be decoded: .*truncated",
        ),
        (url_safe(DATA[:20]), "the image can't be decoded|not an image"),
    ],
)
def test_bad_pictures(tmp_path: Path, value: str, reason: str) -> None:
    with pytest.raises(ImageError, match=reason) as caught:
        decode_image(value, tmp_path)
    assert len(str(caught.value)) < 1000
    assert "\n" not in str(caught.value)


def test_size_is_checked_before_the_pixels_are_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = as_bytes(picture(size=(60, 50)))
    monkeypatch.setattr(images, "MAX_PIXELS", 60 * 50)
    assert decode_image(url_safe(data), tmp_path).size == (60, 50)
    monkeypatch.setattr(images, "MAX_PIXELS", 60 * 50 - 1)
    # All but the header is cut off: decoding would complain of that.
    with pytest.raises(ImageError, match="the image has 60 x 50 pixels, more than 2999"):
        decode_image(url_safe(data[:60]), tmp_path)


@pytest.mark.parametrize("lifted", [False, True])
def test_decompression_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lifted: bool) -> None:
    bomb = as_bytes(Image.new("1", (20_000, 10_000)))
    assert len(bomb) < 100_000
    if lifted:
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    with pytest.raises(ImageError, match="pixels"):
        decode_image(url_safe(bomb), tmp_path)


@given(
    format=st.sampled_from(["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"]),
    damage=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=20),
    kept=st.floats(0.05, 1),
)
def test_damaged_files_give_a_picture_or_an_image_error(
    format: str, damage: list[tuple[float, int]], kept: float
) -> None:
    data = bytearray(as_bytes(picture(), format))
    for place, byte in damage:
        data[int(place * len(data))] = byte
    try:
        image = decode_image(url_safe(bytes(data[: int(kept * len(data))])), Path())
    except ImageError:
        return
    assert image.mode == "RGB"
