"""What the readers of public annotation files share."""

import pickle
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .plan import one_line


def without_separator(text: str) -> str:
    """A text that can be joined to others by "&&" and split again; any white space in it is one space."""
    return one_line(re.sub("&&+|^&|&$", " and ", text.strip()))


def coco_files(file_name: str) -> tuple[str, ...]:
    """Where a picture of COCO may lie: under its name of 2014 (COCO_train2014_000000000009.jpg) or of 2017."""
    match = re.fullmatch(r"COCO_((?:train|val|test)\d{4})_(\d{12}\.jpg)", file_name)
    if not match:
        return (file_name,)
    later = match[2]  # the pictures of both splits were dealt out anew
    return (f"{match[1]}/{file_name}", file_name, f"train2017/{later}", f"val2017/{later}", later)


@contextmanager
def expecting(expected: str, path: Path, line: int | None = None) -> Iterator[None]:
    """Whatever a file of another kind causes becomes a ValueError that names the file and what was expected."""
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError, pickle.UnpicklingError) as error:
        place = f"{path}, line {line}" if line else path
        raise ValueError(f"{place}: expected {expected}; got {error!r}") from error


@contextmanager
def in_entry(number: int) -> Iterator[None]:
    """Within `expecting`: what is wrong with an entry of a long list is told with its number, from 1."""
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"entry {number}: {error!r}") from error
