"""Premises and hypotheses about a scene: whether one follows from the other takes the text and the picture.

    colour    anna wrote every red digit but no blue digit                        anna wrote the seven
    digit     tom wrote every seven but no three                                  the red digit was written by tom
    place     eva wrote what is at the top left but not what is at the top right  eva wrote the large red digit
    claim     there are 3 digits                                                  the seven is red

The first kinds are of a premise that tells what somebody wrote and what not, by colour, digit or place, and of a
hypothesis that names a digit by something else. If the picture's seven is red, the first pair is entailment; if it is
blue, contradiction; otherwise neutral. Each picture shows a digit of each sort, so neither the two texts without the
picture, nor the picture with one of the texts, tell the label.

Claims are for training, first alone and then beside the other kinds: the picture alone decides them. Without them no
part of the way to an answer is of any use alone, and a small model finds none of it.
"""

from typing import NamedTuple

from .balance import Balance
from .descriptions import ATTRIBUTES, noun, references
from .scenes import PlacedDigit, Scene

LABELS = ("entailment", "neutral", "contradiction")
WRITERS = ("anna", "ben", "eva", "tom")

# Kind -> the attribute that the premise is about, what has a value of it (all of it, and none), and a claim of it.
_KINDS = {
    "colour": ("colour", "every {} digit", "no {} digit", "is {}"),
    "digit": ("word", "every {}", "no {}", "is {}"),
    "place": ("quadrant", "what is at the {}", "not what is at the {}", "is at the {}"),
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


def _premise(kind: str, scene: Scene, balance: Balance) -> Premise | None:
    """None if fewer than three values are in the picture, or nothing else singles the chosen digit out."""
    attribute, every, no, _ = _KINDS[kind]
    seen = balance.shuffled(sorted({getattr(digit, attribute) for digit in scene.digits}))
    if len(seen) < len(LABELS):
        return None
    written, unwritten, *unsaid = seen
    label = balance.rarest(kind, LABELS)
    values = {"entailment": [written], "neutral": unsaid, "contradiction": [unwritten]}[label]
    digit = balance.one_of([digit for digit in scene.digits if getattr(digit, attribute) in values])
    reference = _reference(scene, digit, attribute, balance)
    if reference is None:
        return None
    writer = balance.one_of(WRITERS)
    premise = f"{writer} wrote {every.format(written)} but {no.format(unwritten)}"
    hypothesis = balance.one_of((f"{writer} wrote {reference}", f"{reference} was written by {writer}"))
    return Premise(kind, premise, hypothesis, label)


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


def premises(scene: Scene, count: int, balance: Balance) -> list[Premise]:
    """At most `count` different pairs that take text and picture, each kind equally often."""
    pairs: list[Premise] = []
    for kind in balance.shuffled(list(_KINDS) * count):
        pair = _premise(kind, scene, balance) if len(pairs) < count else None
        if pair is not None and pair not in pairs:
            pairs.append(pair)
    return pairs


def claims(scene: Scene, count: int, balance: Balance) -> list[Premise]:
    """At most `count` different claims."""
    found: list[Premise] = []
    for _ in range(8 * count):
        if len(found) == count:
            break
        claim = _claim(scene, balance)
        if claim is not None and claim not in found:
            found.append(claim)
    return found


def premises_and_claims(scene: Scene, count: int, balance: Balance) -> list[Premise]:
    """Half of them claims; none for a scene that has too few premises."""
    pairs = premises(scene, count // 2, balance)
    if len(pairs) < count // 2:
        return []
    return pairs + claims(scene, count - len(pairs), balance)
