"""Pictures as they stand in a TSV column: base64 text or the path of a file."""

import base64
import binascii
import io
import os
import re
from pathlib import Path
from typing import Literal

from PIL import Image, UnidentifiedImageError

# PIL's own limit against decompression bombs, kept here because users may lift PIL's.
MAX_PIXELS = 178_956_970
# Longer text is never taken for a path.
_MAX_PATH_CHARACTERS = 1024

_BASE64_CHARACTERS = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/-_="
_DATA_URL_HEADER = re.compile(r"data:[^,]{0,200};base64,", re.IGNORECASE)  # RFC 2397
_URL_SAFE_TO_PLAIN = bytes.maketrans(b"-_", b"+/")


class ImageError(ValueError):
    """A picture that can't be used; the message is the reason in one sentence."""


def decode_image(value: str, root: Path) -> Image.Image:
    """The RGB picture that a TSV column holds.

    Text of up to 1024 characters is a path if a character belongs to neither base64 alphabet (a dot, say)
    or if such a file exists; all else is base64, and so is what follows the header of a data URL
    (``data:image/png;base64,``). White space around the text is dropped. Conversion is PIL's
    ``convert("RGB")``; EXIF rotation is ignored, as it was when the released checkpoints were trained.

    Args:
        value: base64 in the URL-safe or the plain alphabet, padding optional, after the header of a data
            URL or without one; or a path.
        root: the folder that a relative path starts from (the TSV file's).

    Raises:
        ImageError: broken base64, missing file, unknown or damaged format, truncated, more than MAX_PIXELS.
    """
    value = value.strip()
    header = _DATA_URL_HEADER.match(value)
    data = _decode_base64(value[header.end() :]) if header else _read_bytes(value, root)
    if not data:
        raise ImageError("the image is empty")
    try:
        with Image.open(io.BytesIO(data)) as image:  # reads the header only
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise ImageError(f"the image has {width} x {height} pixels, more than {MAX_PIXELS}")
            return image.convert("RGB")
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError(f"not an image in a known format (it starts with {data[:8]!r})") from error
    except Exception as error:  # PIL's readers raise nearly any type on damaged data
        raise ImageError(f"the image can't be decoded: {error}") from error


def encode_image(image: Image.Image, format: Literal["PNG", "JPEG"] = "PNG", quality: int = 90) -> str:
    """URL-safe base64 of a picture, as the image column of the released files; ``quality`` is for JPEG."""
    buffer = io.BytesIO()
    image.save(buffer, format=format, quality=quality)
    return base64.urlsafe_b64encode(buffer.getvalue()).decode()


def _read_bytes(value: str, root: Path) -> bytes:
    if len(value) <= _MAX_PATH_CHARACTERS:
        path = os.path.join(root, value)
        if _foreign_characters(value) or os.path.isfile(path):
            return _read_file(path)
    return _decode_base64(value)


def _foreign_characters(value: str) -> str:
    """Those that are in neither base64 alphabet."""
    return value.encode().translate(None, delete=_BASE64_CHARACTERS).decode()


def _decode_base64(value: str) -> bytes:
    foreign = _foreign_characters(value)
    if foreign:
        raise ImageError(f"broken base64: {foreign[0]!r} at character {value.index(foreign[0]) + 1}")
    encoded = value.encode().translate(_URL_SAFE_TO_PLAIN) + b"=" * (-len(value) % 4)
    try:
        return binascii.a2b_base64(encoded, strict_mode=True)
    except binascii.Error as error:
        raise ImageError(f"{value[:40]!r} is neither base64 ({error}) nor the path of a file") from error


def _read_file(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL character
        reason = error.strerror if isinstance(error, OSError) else error
        raise ImageError(f"can't read the image file {path!r}: {reason}") from error
