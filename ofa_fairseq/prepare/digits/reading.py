"""Reading captions: a tolerant parser of the grammar in `captions.py`, and what captions get right."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
from scipy.optimize import linear_sum_assignment

from .scenes import COLOURS, DIGIT_WORDS, QUADRANTS, SIZES, Scene

# Phrase -> how the digit named before it stands to the digit named after it: columns, rows; -1 left or above.
_RELATIONS = {
    "to the left of": (-1, 0),
    "to the right of": (1, 0),
    "to its right": (-1, 0),
    "to its left": (1, 0),
    "above": (0, -1),
    "below": (0, 1),
    "below it": (0, -1),
    "below them": (0, -1),
    "above it": (0, 1),
    "above them": (0, 1),
    "above and to the left of": (-1, -1),
    "above and to the right of": (1, -1),
    "below and to the left of": (-1, 1),
    "below and to the right of": (1, 1),
    "below it to the right": (-1, -1),
    "below it to the left": (1, -1),
    "above it to the right": (-1, 1),
    "above it to the left": (1, 1),
}


def _any_of(words: Iterable[str]) -> str:
    # Longest first: "above and to the left of" is not "above".
    return "|".join(sorted(words, key=len, reverse=True))


_TOKEN = re.compile(
    rf"\b(?:(?P<place>{_any_of(QUADRANTS)})|(?P<relation>{_any_of(_RELATIONS)})|(?P<size>{_any_of(SIZES)})"
    rf"|(?P<colour>{_any_of(COLOURS)})|(?P<digit>{_any_of(DIGIT_WORDS)}))\b"
)


class Relation(NamedTuple):
    """How a mention stands to another: `columns` -1 left, 1 right; `rows` -1 above, 1 below; 0 not said."""

    other: int  # index of the other mention
    columns: int
    rows: int


@dataclass(frozen=True)
class Mention:
    """A digit as a caption names it; what the caption does not say is None."""

    digit: int
    colour: str | None = None
    size: str | None = None
    place: str | None = None
    relations: tuple[Relation, ...] = ()


def parse_caption(text: str) -> list[Mention]:
    """The digits that a caption names, in its order. Words that fit nowhere are skipped; no text is an error.

    A digit takes the size and colour named since the digit before it. Places belong to the digit before
    them, or to the digit after them if the caption starts with a place. A relation of columns holds between
    the two digits around it, one of rows between all digits before it and all after it; both stand with the
    digit named first.
    """
    mentions: list[Mention] = []
    said: dict[str, str] = {}  # since the digit before
    links: list[tuple[int, int, int]] = []  # number of mentions before the phrase, columns, rows
    place_first = False
    for token in _TOKEN.finditer(" ".join(text.lower().split())):
        kind, words = str(token.lastgroup), token.group()
        if kind == "digit":
            digit = DIGIT_WORDS.index(words)
            mentions.append(Mention(digit, said.get("colour"), said.get("size"), said.get("place")))
            said = {}
        elif kind == "relation":
            links.append((len(mentions), *_RELATIONS[words]))
        elif kind == "place" and mentions and not place_first:
            mentions[-1] = replace(mentions[-1], place=words)
        else:
            place_first |= kind == "place"
            said[kind] = words
    for i, mention in enumerate(mentions):
        mentions[i] = replace(mention, relations=_relations(i, len(mentions), links))
    return mentions


def _relations(first: int, count: int, links: list[tuple[int, int, int]]) -> tuple[Relation, ...]:
    """The relations of mention `first` to the mentions after it."""
    relations = []
    for before, columns, rows in links:
        others = range(before, count) if rows else range(before, min(before + 1, count))
        if first < before and (rows or first == before - 1):
            relations += [Relation(other, columns, rows) for other in others]
    return tuple(relations)


@dataclass(frozen=True)
class Reading:
    """Counts over one caption, or sums over many."""

    scenes: int = 0
    digits: int = 0  # digits in the scenes; of these are named right:
    digit_right: int = 0
    colour_right: int = 0
    size_right: int = 0
    places: int = 0  # places and relations that captions name
    place_right: int = 0
    relations: int = 0
    relation_right: int = 0
    nothing_invented: int = 0  # scenes
    exact: int = 0  # scenes

    def __add__(self, other: "Reading") -> "Reading":
        return Reading(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))

    def score(self) -> dict[str, float]:
        """Fractions in 0..1; nan where nothing was counted."""
        parts = {
            "digits": (self.digit_right, self.digits),
            "colours": (self.colour_right, self.digits),
            "sizes": (self.size_right, self.digits),
            "places": (self.place_right, self.places),
            "relations": (self.relation_right, self.relations),
            "nothing invented": (self.nothing_invented, self.scenes),
            "exact": (self.exact, self.scenes),
        }
        return {name: right / total if total else float("nan") for name, (right, total) in parts.items()}


class SeenDigit(Protocol):
    """What there is to a digit in a picture, whether it was placed there or found there; None is unknown."""

    @property
    def digit(self) -> int | None: ...
    @property
    def colour(self) -> str: ...
    @property
    def size(self) -> str: ...
    @property
    def quadrant(self) -> str | None: ...
    @property
    def column(self) -> int: ...
    @property
    def row(self) -> int: ...


Seen = TypeVar("Seen", bound=SeenDigit)


def match(mentions: Sequence[Mention], digits: Sequence[Seen]) -> dict[int, Seen]:
    """Mention index -> the digit of the picture that it is taken to mean.

    The one-to-one assignment under which most of digit, colour, size and place agree. Of several, the one
    with more digits right, then the one nearest to the reading order (which parts two digits that look the
    same).
    """
    value = np.zeros((len(mentions), len(digits)))
    for i, mention in enumerate(mentions):
        for j, digit in enumerate(digits):
            said = (mention.colour, mention.size, mention.place)
            agree = sum(a == b for a, b in zip(said, (digit.colour, digit.size, digit.quadrant)))
            value[i, j] = 1.1 * (mention.digit == digit.digit) + agree - 1e-3 * abs(i - j)
    return {int(i): digits[j] for i, j in zip(*linear_sum_assignment(value, maximize=True))}


def holds(relation: Relation, first: SeenDigit | None, second: SeenDigit | None) -> bool:
    """Whether two digits stand to each other as a relation says; not so if one of them is missing."""
    if first is None or second is None:
        return False
    columns, rows = first.column - second.column, first.row - second.row
    return relation.columns in (0, columns) and relation.rows in (0, rows)


def read_caption(caption: str, scene: Scene) -> Reading:
    """What a caption says right about a scene.

    Each scene digit counts as named right in digit, colour and size by the mention that `match` assigns to
    it. A digit is invented if it is mentioned more often than the scene has it. Exact means that every
    digit is named with its size and colour, nothing else is named, and every place and relation that the
    caption states is true.
    """
    mentions = parse_caption(caption)
    meant = match(mentions, scene.digits)
    pairs = [(mentions[i], digit) for i, digit in meant.items()]
    places = [(mention.place, meant.get(i)) for i, mention in enumerate(mentions) if mention.place]
    relations = [
        holds(relation, meant.get(i), meant.get(relation.other))
        for i, mention in enumerate(mentions)
        for relation in mention.relations
    ]
    invented = Counter(mention.digit for mention in mentions) - Counter(digit.digit for digit in scene.digits)
    reading = Reading(
        scenes=1,
        digits=len(scene.digits),
        digit_right=sum(mention.digit == digit.digit for mention, digit in pairs),
        colour_right=sum(mention.colour == digit.colour for mention, digit in pairs),
        size_right=sum(mention.size == digit.size for mention, digit in pairs),
        places=len(places),
        place_right=sum(digit is not None and place == digit.quadrant for place, digit in places),
        relations=len(relations),
        relation_right=sum(relations),
        nothing_invented=not invented,
    )
    named = {len(mentions), reading.digit_right, reading.colour_right, reading.size_right} == {reading.digits}
    true = reading.place_right == reading.places and reading.relation_right == reading.relations
    return replace(reading, exact=named and true)


def read_captions(pairs: Iterable[tuple[str, Scene]]) -> dict[str, Reading]:
    """Summed readings by number of digits in the scene ("1", "2", ...) and over "all"."""
    sums: dict[str, Reading] = {}
    for caption, scene in pairs:
        reading = read_caption(caption, scene)
        for key in (str(len(scene.digits)), "all"):
            sums[key] = sums.get(key, Reading()) + reading
    return dict(sorted(sums.items()))


def reading_table(readings: dict[str, Reading]) -> str:
    """The result of `read_captions` as a table in percent."""
    names = list(Reading().score())
    lines = [f"{'digits in scene':16}{'scenes':>8}" + "".join(f"{name:>{len(name) + 2}}" for name in names)]
    for key, reading in readings.items():
        numbers = (f"{100 * value:>{len(name) + 2}.1f}" for name, value in reading.score().items())
        lines.append(f"{key:16}{reading.scenes:>8}" + "".join(numbers))
    return "\n".join(lines)
