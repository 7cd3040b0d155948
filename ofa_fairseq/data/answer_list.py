"""Closed sets of answers: from a released pickle, a JSON file or a text file."""

import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from . import safe_pickle

logger = logging.getLogger(__name__)

FORMS = (
    "a pickle or JSON file of a dictionary answer -> number or of a list of answers, or a text file with an"
    " answer in each line"
)


def read_answers(path: str | Path) -> list[str]:
    """The answers in the file's order (only the keys of a dictionary matter, as released).

    Raises:
        ValueError: another form, no answers, an empty answer, or one that stands there twice.
        OSError: there is no such file, or it can't be opened.
        pickle.UnpicklingError: a pickle that is broken or not plain data.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of answers")
    suffix = path.suffix.lower()
    with path.open("rb") as file:
        begins_as_pickle = file.read(1) == b"\x80"  # of every protocol since Python 2.3
    if begins_as_pickle or suffix in (".pkl", ".p", ".pickle"):
        content = safe_pickle.load(path)
        # Lists of answers without their articles may have one of what was only an article.
        if isinstance(content, dict) and "" in content:
            logger.warning("%s: the empty answer is left out", path)
            content = [answer for answer in content if answer != ""]
    else:
        try:
            text = path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: expected {FORMS} in UTF-8 ({error})") from error
        content = _from_json(text, path) if suffix == ".json" else text.split("\n")
        if suffix != ".json":
            content = [line.removesuffix("\r") for line in content]
            content = content[:-1] if content[-1] == "" else content
    if not isinstance(content, dict | list):
        raise ValueError(f"{path}: expected {FORMS}, got {type(content).__name__}")
    return check_answers(content, str(path))


def parse_answers(text: str, flag: str) -> list[str]:
    """The answers of a JSON option such as '{"no": 0, "yes": 1}'; raises ValueError as `read_answers`."""
    content = _from_json(text, flag)
    if not isinstance(content, dict | list):
        raise ValueError(f"{flag} {text}: expected a JSON dictionary answer -> number, or a list of answers")
    return check_answers(content, flag)


def check_answers(answers: Iterable[Any], where: str) -> list[str]:
    """The answers as strings. Raises ValueError, naming `where`, for none, an empty or a repeated one."""
    checked: dict[str, None] = {}
    for number, answer in enumerate(answers, start=1):
        if not isinstance(answer, str) or not answer.strip():
            raise ValueError(f"{where}: answer {number} is {answer!r}, expected a text that is not empty")
        if answer.strip() in checked:
            raise ValueError(f"{where}: answer {number}, {answer!r}, stands there twice")
        checked[answer.strip()] = None  # as answers in columns are read
    if not checked:
        raise ValueError(f"{where}: there are no answers")
    return list(checked)


def _from_json(text: str, where: str | Path) -> Any:
    try:
        # A JSON object would hide that an answer stands there twice.
        return json.loads(text, object_pairs_hook=lambda pairs: _unique(pairs, where))
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not JSON ({error})") from error


def _unique(pairs: list[tuple[str, Any]], where: str | Path) -> dict[str, Any]:
    check_answers([key for key, _ in pairs], str(where))
    return dict(pairs)
