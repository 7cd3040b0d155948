"""What may be wrong with a row as a whole, said beside the reason why it can't be used."""

import re
from collections.abc import Mapping

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,29}")
_USUAL_WORDS = {
    "id",
    "image",
    "img",
    "picture",
    "photo",
    "text",
    "label",
    "caption",
    "question",
    "answer",
    "box",
}


def with_hint(reason: str, row: Mapping[str, str]) -> str:
    """The reason and, if the row has the looks of one, the mistake that is behind it.

    Args:
        reason: why the row can't be used.
        row: its columns by name.
    """
    if _is_header(row):
        return f"{reason} (this looks like a header: files start with their first row, without one)"
    question, answer = row.get("question", "").strip(), row.get("answer", "").strip()
    if answer.endswith("?") and not question.endswith("?"):
        return f"{reason} (do question and answer stand in each other's columns?)"
    return reason


def _is_header(row: Mapping[str, str]) -> bool:
    """Whether all columns hold names, one of them a usual one or the task's own."""
    fields = [field.strip() for field in row.values()]
    words = {word for field in fields for word in re.split("[_-]", field.lower())}
    return all(map(_NAME.fullmatch, fields)) and bool(words & (_USUAL_WORDS | row.keys()))
