"""Premises and hypotheses about a scene: whether one follows from the other takes the text and the picture.

    colour    anna wrote at least what is red            anna wrote the seven
    digit     tom wrote none of what is a seven          the red digit was written by tom
    place     eva wrote only what is at the top left     eva wrote the large red digit
    claim     there are 3 digits                         the seven is red

A premise tells what somebody wrote by colour, digit or place, and a hypothesis names a digit by something else. What
follows depends on the premise's quantifier, and on whether the digit in the picture is of the sort:

    quantifier       of the sort      of another sort
    at least what    entailment       neutral
    none of what     contradiction    neutral
    only what        neutral          contradiction
    exactly what     entailment       contradiction

The picture shows digits of the sort and of others. So the label can be guessed in half of the cases at best from the
texts alone, and in a third from the picture and the hypothesis.

Claims are for training, which begins with them: they teach to compare what a text says with what was looked up, which
the picture alone decides.
"""

from collections.abc import Iterable
from typing import NamedTuple

from .balance import Balance
from .descriptions import ATTRIBUTES, noun, references, with_article
from .scenes import PlacedDigit, Scene

LABELS = ("entailment", "neutral", "contradiction")
WRITERS = ("anna", "ben", "eva", "tom")

# Kind -> the attribute that the premise is about.
_KINDS = {"colour": "colour", "digit": "word", "place": "quadrant"}

# Quantifier -> label of what is of the sort, label of what is not, and how often: all labels are equally frequent then.
# (Cases are numbered, since a balance tells equal ones not apart.)
_QUANTIFIERS = {
    "at least what": ("entailment", "neutral", 2),
    "none of what": ("contradiction", "neutral", 1),
    "only what": ("neutral", "contradiction", 1),
    "exactly what": ("entailment", "contradiction", 2),
}
_CASES = [
    (quantifier, of_the_sort, label, number)
    for quantifier, (yes, no, frequency) in _QUANTIFIERS.items()
    for of_the_sort, label in ((True, yes), (False, no))
    for number in range(frequency)
]


class Premise(NamedTuple):
    kind: str
    premise: str
    hypothesis: str
    label: str


def _is(attribute: str, value: str) -> str:
    """ "is red", "is a seven" or "is at the top left"."""
    if attribute == "quadrant":
        return f"is at the {value}"
    return f"is {with_article(value) if attribute == 'word' else value}"


def _reference(scene: Scene, digit: PlacedDigit, attribute: str, balance: Balance) -> str | None:
    """ "the large red seven", without the attribute; None if nothing else singles the digit out."""
    known = references(scene, digit, unsaid=attribute)
    return f"the {noun(balance.one_of(known))}" if known else None


def _premise(kind: str, scene: Scene, balance: Balance) -> Premise | None:
    """None if all digits are of one sort, or nothing else singles the chosen digit out."""
    attribute = _KINDS[kind]
    digit = balance.one_of(scene.digits)
    value = getattr(digit, attribute)
    others = {getattr(other, attribute) for other in scene.digits} - {value}
    reference = _reference(scene, digit, attribute, balance)
    if reference is None or not others:
        return None
    quantifier, of_the_sort, label, _ = balance.rarest(kind, _CASES)
    writer = balance.one_of(WRITERS)
    said = _is(attribute, value if of_the_sort else balance.one_of(sorted(others)))
    hypothesis = balance.one_of((f"{writer} wrote {reference}", f"{reference} was written by {writer}"))
    return Premise(kind, f"{writer} wrote {quantifier} {said}", hypothesis, label)


def _claim(scene: Scene, balance: Balance) -> Premise | None:
    """None if nothing singles the chosen digit out."""
    attribute = balance.one_of(list(_KINDS.values()))
    digit = balance.one_of(scene.digits)
    reference = _reference(scene, digit, attribute, balance)
    if reference is None:
        return None
    value = getattr(digit, attribute)
    # What is not so of this digit is so of another, where there is another.
    others = {getattr(other, attribute) for other in scene.digits} - {value}
    others = others or set(ATTRIBUTES[attribute]) - {value}
    label = balance.rarest("claim", ("entailment", "contradiction"))
    said = _is(attribute, value if label == "entailment" else balance.one_of(sorted(others)))
    count = len(scene.digits)
    facts = (
        "there is 1 digit" if count == 1 else f"there are {count} digits",
        f"{balance.one_of(WRITERS)} wrote every digit",
    )
    return Premise("claim", balance.one_of(facts), f"{reference} {said}", label)


def _different(made: Iterable[Premise | None], count: int) -> list[Premise]:
    """The first `count` different ones."""
    found: dict[Premise, None] = {}
    for premise in made:
        if premise is not None:
            found[premise] = None
        if len(found) == count:
            break
    return list(found)


def premises(scene: Scene, count: int, balance: Balance) -> list[Premise]:
    """At most `count` different pairs that take text and picture, each kind equally often."""
    kinds = balance.shuffled(list(_KINDS) * count)
    return _different((_premise(kind, scene, balance) for kind in kinds), count)


def claims(scene: Scene, count: int, balance: Balance) -> list[Premise]:
    """At most `count` different claims."""
    return _different((_claim(scene, balance) for _ in range(8 * count)), count)
