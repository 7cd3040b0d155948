"""Premises and hypotheses about a scene: whether one follows from the other takes the text and the picture.

    colour    anna wrote every red digit and tom every blue digit                anna wrote the seven
    digit     anna wrote every seven but no three                                the red digit was written by anna
    place     tom wrote what is at the top left and eva what is at the top right    tom wrote the large red digit

A premise tells the writers of two colours, digits or places (these are the kinds); a hypothesis names a digit by
something else. If the picture's seven is red, the first pair is entailment; if it is blue, contradiction; if it is
green, neutral. In each picture the premise is about at least one digit, and not about at least one other. So neither
the two texts without the picture, nor the picture with one of the texts, tell the label.
"""

from typing import NamedTuple

from .balance import Balance
from .descriptions import ATTRIBUTES, noun, references
from .scenes import Scene

LABELS = ("entailment", "neutral", "contradiction")
WRITERS = ("anna", "ben", "eva", "tom")

# Kind -> the attribute whose values have writers, and what has a value: all of it, and none of it.
_KINDS = {
    "colour": ("colour", "every {} digit", "no {} digit"),
    "digit": ("word", "every {}", "no {}"),
    "place": ("quadrant", "what is at the {}", "not what is at the {}"),
}


class Premise(NamedTuple):
    kind: str
    premise: str
    hypothesis: str
    label: str


def _covered_values(seen: list[str], attribute: str, balance: Balance) -> list[str]:
    """Two values, at least one of them seen in the picture, and another seen one left out."""
    unseen = [value for value in ATTRIBUTES[attribute] if value not in seen]
    both_seen = len(seen) > 2 and (not unseen or balance.one_of((True, False)))
    return seen[:2] if both_seen else [seen[0], balance.one_of(unseen)]


def _premise(kind: str, scene: Scene, balance: Balance) -> Premise | None:
    """None if all digits have the same value, or none that could be asked about can be named by anything else."""
    attribute, every, no = _KINDS[kind]
    values = {digit: getattr(digit, attribute) for digit in scene.digits}
    seen = balance.shuffled(list(dict.fromkeys(values.values())))
    if len(seen) < 2:
        return None
    covered = _covered_values(seen, attribute, balance)
    label = balance.rarest(kind, LABELS)
    digit = balance.one_of([d for d, value in values.items() if (value in covered) == (label != "neutral")])
    known = references(scene, digit, unsaid=attribute)
    if not known:
        return None
    own, others = balance.shuffled(covered)
    if (label == "entailment" and own != values[digit]) or (
        label == "contradiction" and own == values[digit]
    ):
        own, others = others, own
    writer, other_writer = balance.shuffled(WRITERS)[:2]
    wordings = [
        f"{writer} wrote {every.format(own)} and {other_writer} {every.format(others)}",
        f"{other_writer} wrote {every.format(others)} and {writer} {every.format(own)}",
    ]
    # With one of the two in the picture, this could be entailment or contradiction, but not both.
    if set(covered) <= set(seen):
        wordings += [f"{writer} wrote {every.format(own)} but {no.format(others)}"] * 2
    reference = f"the {noun(balance.one_of(known))}"
    hypothesis = balance.one_of((f"{writer} wrote {reference}", f"{reference} was written by {writer}"))
    return Premise(kind, balance.one_of(wordings), hypothesis, label)


def premises(scene: Scene, count: int, balance: Balance) -> list[Premise]:
    """At most `count` different pairs, each kind equally often; none for a scene of one digit."""
    pairs: list[Premise] = []
    for kind in balance.shuffled(list(_KINDS) * count):
        pair = _premise(kind, scene, balance) if len(pairs) < count else None
        if pair is not None and pair not in pairs:
            pairs.append(pair)
    return pairs
