"""The text clean-up that OFA's finetuning data went through, step by step in the released order."""

import re
import string

# Between the captions, labels or answers that one column holds.
REFERENCE_SEPARATOR = "&&"

_LEADING_PUNCTUATION = ",.!?*#:;~"
_DASH_AND_SLASH_TO_SPACE = str.maketrans("-/", "  ")
_DELETE_PUNCTUATION = str.maketrans("", "", string.punctuation)


def pre_caption(text: str, max_words: int) -> str:
    """Normalised caption, hypothesis or phrase: as ``pre_question``, and ``<person>`` becomes ``person``."""
    return _squeeze(_lower(text).replace("<person>", "person"), max_words)


def pre_question(text: str, max_words: int) -> str:
    """Normalised question of at most ``max_words`` words: lowercase, no leading punctuation, ``-`` and ``/``
    as spaces, single spaces. Trailing punctuation stays."""
    return _squeeze(_lower(text), max_words)


def strip_punctuation(text: str) -> str:
    """Deletes every ASCII punctuation character (words on both sides of it join), then strips whitespace."""
    return text.translate(_DELETE_PUNCTUATION).strip()


def split_references(text: str) -> list[str]:
    """The captions, labels or answers that one column joins by ``&&``."""
    return text.split(REFERENCE_SEPARATOR)


def _lower(text: str) -> str:
    return text.lower().lstrip(_LEADING_PUNCTUATION).translate(_DASH_AND_SLASH_TO_SPACE)


def _squeeze(text: str, max_words: int) -> str:
    single_spaced = re.sub(r"\s{2,}", " ", text).rstrip("\n").strip(" ")
    return " ".join(single_spaced.split(" ")[:max_words])
