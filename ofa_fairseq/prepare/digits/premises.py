"""Premises and hypotheses about a scene: whether one follows from the other takes the text and the picture.

    colour    anna wrote every red digit but no blue digit                        anna wrote the seven
    digit     tom wrote every seven but no three                                  the red digit was written by tom
    place     eva wrote what is at the top left but not what is at the top right  eva wrote the large red digit
    clause    anna wrote no blue digit                                            anna wrote the seven
    claim     there are 3 digits                                                  the seven is red

The first kinds are of a premise that tells what somebody wrote and what not, by colour, digit or place, and of a
hypothesis that names a digit by something else. If the picture's seven is red, the first pair is entailment; if it is
blue, contradiction; otherwise neutral. Each picture shows a digit of each sort, so neither the two texts without the
picture, nor the picture with one of the texts, tell the label.

Claims and single clauses are for training. The picture alone decides claims, and training begins with them; without
them no part of the way to an answer is of any use alone, and a small model finds none of it. Single clauses show what
each of them says: with two at once, a model stays long at telling those that entail from all others.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import NamedTuple

from .balance import Balance
from .descriptions import ATTRIBUTES, noun, references
from .scenes import PlacedDigit, Scene

LABELS = ("entailment", "neutral", "contradiction")
WRITERS = ("anna", "ben", "eva", "tom")

# Kind -> the attribute that the premise is about, clauses of a value of it by what they make of a hypothesis about such
# a digit, and a claim of it.
_KINDS = {
    "colour": ("colour", {"entailment": "every {} digit", "contradiction": "no {} digit"}, "is {}"),
    "digit": ("word", {"entailment": "every {}", "contradiction": "no {}"}, "is {}"),
    "place": (
        "quadrant",
        {"entailment": "what is at the {}", "contradiction": "not what is at the {}"},
        "is at the {}",
    ),
}


class Premise(NamedTuple):
    kind: str
    premise: str
    hypothesis: str
    label: str


def _reference(scene: Scene, digit: PlacedDigit, unsaid: str, balance: Balance) -> str | None:
    """ "the large red seven", without one of the attributes; None if nothing else singles the digit out."""
    known = references(scene, digit, unsaid)
    return f"the {noun(balance.one_of(known))}" if known else None


def _premise(
    kind: str, scene: Scene, balance: Balance, labels: tuple[str, ...] = ("entailment", "contradiction")
) -> Premise | None:
    """With a clause for each of the labels.

    None if no more values than these are in the picture, or nothing else singles the chosen digit out.
    """
    attribute, clauses, _ = _KINDS[kind]
    seen = balance.shuffled(sorted({getattr(digit, attribute) for digit in scene.digits}))
    if len(seen) <= len(labels):
        return None
    values = {label: [value] for label, value in zip(labels, seen)}
    said = [clauses[label].format(*value) for label, value in values.items()]
    values["neutral"] = seen[len(labels) :]
    label = balance.rarest((kind, labels), list(values))
    digit = balance.one_of([digit for digit in scene.digits if getattr(digit, attribute) in values[label]])
    reference = _reference(scene, digit, attribute, balance)
    if reference is None:
        return None
    writer = balance.one_of(WRITERS)
    premise = f"{writer} wrote {' but '.join(said)}"
    hypothesis = balance.one_of((f"{writer} wrote {reference}", f"{reference} was written by {writer}"))
    return Premise(kind if len(labels) > 1 else "clause", premise, hypothesis, label)


def _claim(scene: Scene, balance: Balance) -> Premise | None:
    attribute, *_, claim = _KINDS[balance.one_of(list(_KINDS))]
    digit = balance.one_of(scene.digits)
    reference = _reference(scene, digit, attribute, balance)
    if reference is None:
        return None
    value = getattr(digit, attribute)
    # What is not so of this digit is so of another, where there is another.
    others = {getattr(other, attribute) for other in scene.digits} - {value}
    others = others or set(ATTRIBUTES[attribute]) - {value}
    label = balance.rarest("claim", ("entailment", "contradiction"))
    told = value if label == "entailment" else balance.one_of(sorted(others))
    count = len(scene.digits)
    facts = (
        "there is 1 digit" if count == 1 else f"there are {count} digits",
        f"{balance.one_of(WRITERS)} wrote every digit",
    )
    return Premise("claim", balance.one_of(facts), f"{reference} {claim.format(told)}", label)


def _different(makers: Iterable[Callable[[], Premise | None]], count: int) -> list[Premise]:
    """What the first makers make, until there are `count` different ones."""
    found: dict[Premise, None] = {}
    for make in makers:
        if len(found) == count:
            break
        made = make()
        if made is not None:
            found[made] = None
    return list(found)


def premises(scene: Scene, count: int, balance: Balance) -> list[Premise]:
    """At most `count` different pairs that take text and picture, each kind equally often."""
    kinds = balance.shuffled(list(_KINDS) * count)
    return _different((partial(_premise, kind, scene, balance) for kind in kinds), count)


def clauses(scene: Scene, count: int, balance: Balance) -> list[Premise]:
    """At most `count` different pairs with a premise of one clause."""
    kinds = [(kind, label) for kind in _KINDS for label in ("entailment", "contradiction")]
    drawn = balance.shuffled(kinds * count)
    return _different((partial(_premise, kind, scene, balance, (label,)) for kind, label in drawn), count)


def claims(scene: Scene, count: int, balance: Balance) -> list[Premise]:
    """At most `count` different claims."""
    return _different([partial(_claim, scene, balance)] * 8 * count, count)
