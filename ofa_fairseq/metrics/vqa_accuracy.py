"""VQA accuracy: answers that carry a confidence, where it comes from, and the official normalisation.

Ten people answered each question of VQA v2 (Goyal et al., CVPR 2017). An answer counts min(matches / 3, 1) against
nine of them, averaged over the ten ways of leaving one out: 0.3 for an answer that one person gave, 0.6 for two, 0.9
for three, 1 for four and more. Data files hold these numbers, so scoring is a look-up.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from .cider import Floats, check_paired

# Between the confidence and the answer, in the released files.
CONFIDENCE_SEPARATOR = "|!+"

# A number before a bar: a separator that was written otherwise.
_LIKE_A_CONFIDENCE = re.compile(r"\s*[01]?\.?\d+\s*\|")

_ENOUGH_MATCHES = 3


def parse_answer(text: str) -> tuple[str, float]:
    """Answer and confidence of `0.6|!+cat`, or of a plain `cat` (confidence 1); white space around both goes.

    Raises:
        ValueError: the confidence is no number from 0 to 1 or not parted by `|!+`, or the answer is empty.
    """
    before, separator, after = text.partition(CONFIDENCE_SEPARATOR)
    if not separator and _LIKE_A_CONFIDENCE.match(text):
        raise ValueError(f"what is the confidence of {text!r}? Expected like 0.6|!+cat")
    answer = (after if separator else before).strip()
    if not answer:
        raise ValueError(f"the answer is empty: {text!r}")
    return answer, _confidence(before, text) if separator else 1.0


def without_confidence(text: str) -> str:
    """`cat` of `0.6|!+cat`; a plain text as it is."""
    return text.rpartition(CONFIDENCE_SEPARATOR)[2]


def with_answer(change: Callable[[str], str], text: str) -> str:
    """`0.6|!+Cat` with its answer changed and its confidence kept; a plain text changed as a whole."""
    confidence, separator, answer = text.rpartition(CONFIDENCE_SEPARATOR)
    return confidence + separator + change(answer)


def _confidence(number: str, text: str) -> float:
    try:
        if "_" in number or not number.isascii():  # what Python, but no file, takes for digits
            raise ValueError
        confidence = float(number)
    except ValueError:
        raise ValueError(f"confidence {number!r} is no number: {text!r}, expected like 0.6|!+cat") from None
    if not 0 <= confidence <= 1:  # false for NaN too
        raise ValueError(f"confidence {number!r} is not from 0 to 1: {text!r}")
    return confidence


def vqa_score(outputs: Sequence[str], references: Sequence[Sequence[str]]) -> Floats:
    """Confidence of each output among its references, 0 if it is none of them.

    Compared as the released evaluation does: letter by letter (nothing is lower-cased, no article removed), white
    space at the ends aside. An answer that is given twice counts with its highest confidence.

    Args:
        outputs: H answers.
        references: for each output one or more texts for `parse_answer`.

    Returns:
        H scores from 0 to 1.

    Raises:
        ValueError: the lengths differ, an output has no reference, or a reference does not parse (names its row).
    """
    check_paired(outputs, references)
    scores = np.zeros(len(outputs))
    for row, (output, texts) in enumerate(zip(outputs, references)):
        try:
            answers = [parse_answer(text) for text in texts]
        except ValueError as error:
            raise ValueError(f"row {row}: {error}") from error
        confidences = (confidence for answer, confidence in answers if answer == output.strip())
        scores[row] = max(confidences, default=0.0)
    return scores


def soft_scores(annotations: Sequence[str]) -> dict[str, float]:
    """Official accuracy of each distinct answer, given what n people answered (compared as they are).

    The mean of min(matches / 3, 1) over the n sets of n - 1 people. An answer with m matches has m - 1 left in m of
    these sets and m in the others:

        (m * min(m - 1, 3) + (n - m) * min(m, 3)) / (3 n)

    One person alone can't be compared with others and is believed: 1.
    """
    n = len(annotations)
    if n == 1:
        return {annotations[0]: 1.0}

    def accuracy(m: int) -> float:
        hits = m * min(m - 1, _ENOUGH_MATCHES) + (n - m) * min(m, _ENOUGH_MATCHES)
        return hits / (_ENOUGH_MATCHES * n)

    return {answer: accuracy(m) for answer, m in Counter(annotations).items()}


def normalise_answer(text: str) -> str:
    """The normalisation that the official VQA v2 evaluation gives outputs and annotations before it compares them.

    In this order: punctuation and full stops (see `_without_punctuation`), lower case, number words (and "none") to
    digits, articles removed, forgotten apostrophes put back ("dont" becomes "don't"), single spaces.
    (The official evaluation leaves it out for questions whose annotators all agree; that is the caller's decision.)
    """
    words = _without_punctuation(text).lower().split()
    words = [_DIGITS.get(word, word) for word in words if word not in _ARTICLES]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words)


def _without_punctuation(text: str) -> str:
    """Each sign becomes a space, but is deleted if it stands beside a space anywhere in the text: "red-brown" -> "red
    brown", "red -brown-green" -> "red browngreen". With a comma between digits ("1,000") all signs are deleted. Full
    stops go, except before a digit. Apostrophes and signs like $, % and : stay."""
    text = text.replace("\n", " ").replace("\t", " ").strip()
    has_thousands = re.search(r"\d,\d", text) is not None
    joins_words = {p: not has_thousands and f"{p} " not in text and f" {p}" not in text for p in _PUNCTUATION}
    text = text.translate({ord(p): " " if joins else "" for p, joins in joins_words.items()})
    return re.sub(r"\.(?!\d)", "", text)


_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_ARTICLES = {"a", "an", "the"}
_NUMBER_WORDS = "zero one two three four five six seven eight nine ten"
_DIGITS = {"none": "0"} | {word: str(i) for i, word in enumerate(_NUMBER_WORDS.split())}

# Only what the official table repairs: "were", "well", "its", "lets" are words of their own and stay.
_STEMS_OF_ENDING = {
    "n't": "ai are ca could did does do had has have is might must need ought sha should was were wo would",
    "n't've": "could had might should would",
    "'d": "he how it someone something there they where who you",
    "'d've": "he it she somebody someone something there they we who you y'all",
    "'ll": "how it somebody someone something they what who why you y'all",
    "'re": "there they what why you",
    "'s": "he how somebody someone that there what when where who why",
    "'ve": "could might must not should they we what where who would you",
}
_SINGLE_CONTRACTIONS = "ma'am o'clock 'ow's'at 'twas y'all"


def _one_apostrophe_less(word: str) -> list[str]:
    return [word[:i] + word[i + 1 :] for i, letter in enumerate(word) if letter == "'"]


def _contractions() -> dict[str, str]:
    """Spellings that lack one apostrophe -> the full spelling."""
    inflected = [stem + ending for ending, stems in _STEMS_OF_ENDING.items() for stem in stems.split()]
    spellings = [*inflected, *_SINGLE_CONTRACTIONS.split()]
    return {short: word for word in spellings for short in _one_apostrophe_less(word)}


# The official table has this one pair the wrong way round.
_CONTRACTIONS = _contractions() | {"somebody'd": "somebodyd"}
