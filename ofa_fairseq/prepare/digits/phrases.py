"""Phrases that mean one digit of a scene, for the task of finding its box.

    attributes    the seven / the large red digit            as few attributes as single the digit out
    place         the digit at the top left
    relation      the three left of the green seven           without the relation, several digits could be meant
    absent        the large blue seven                        one attribute of a digit changed, so that nothing fits
    present       the large red seven                         the same before the change

"Left of" is said of two digits in one row and "above" of two in one column, and only if no digit in another row or
column could be meant either.
"""

from collections.abc import Iterator
from itertools import permutations
from typing import NamedTuple

from .balance import Balance
from .descriptions import LOOKS, changed, descriptions, fitting, noun, subsets, values_of
from .scenes import Scene


class Phrase(NamedTuple):
    """What means a digit, and the digit's box in pixels (None: there is no such digit)."""

    kind: str
    text: str
    box: tuple[int, int, int, int] | None


# Words -> the line that two digits share, and how the first stands to the second.
_RELATIONS = {
    "left of": ("row", lambda a, b: a.column < b.column),
    "right of": ("row", lambda a, b: a.column > b.column),
    "above": ("column", lambda a, b: a.row < b.row),
    "below": ("column", lambda a, b: a.row > b.row),
}


def _relational(scene: Scene) -> Iterator[Phrase]:
    for target, anchor in permutations(scene.digits, 2):
        for words, (line, holds) in _RELATIONS.items():
            if not holds(target, anchor) or getattr(target, line) != getattr(anchor, line):
                continue
            for subset in ((), *subsets(LOOKS)):
                values = values_of(target, subset)
                alike = fitting(scene, values)
                if len(alike) > 1 and [digit for digit in alike if holds(digit, anchor)] == [target]:
                    for known in descriptions(scene, anchor):
                        yield Phrase("relation", f"the {noun(values)} {words} the {noun(known)}", target.box)


def all_phrases(scene: Scene) -> dict[str, list[Phrase]]:
    """All phrases of each kind that has any in this scene, the kinds of absent digits aside."""
    kinds = {
        "attributes": [
            Phrase("attributes", f"the {noun(values)}", digit.box)
            for digit in scene.digits
            for values in descriptions(scene, digit)
        ],
        "place": [
            Phrase("place", f"the {noun({'quadrant': digit.quadrant})}", digit.box) for digit in scene.digits
        ],
        "relation": list(_relational(scene)),
    }
    return {kind: found for kind, found in kinds.items() if found}


# A place gives away where to look, so there are few of them.
_WEIGHTS = {"attributes": 4.0, "place": 1.0, "relation": 5.0}


def phrases(scene: Scene, count: int, balance: Balance) -> list[Phrase]:
    """At most `count` different phrases, short and long ones."""
    kinds = all_phrases(scene)
    chosen: list[Phrase] = []
    while len(chosen) < count and kinds:
        kind = balance.by_weight({kind: _WEIGHTS[kind] for kind in kinds})
        words = balance.rarest(kind, list({len(phrase.text.split()) for phrase in kinds[kind]}))
        chosen.append(balance.one_of([phrase for phrase in kinds[kind] if len(phrase.text.split()) == words]))
        kinds[kind].remove(chosen[-1])
        if not kinds[kind]:
            del kinds[kind]
    return chosen


def present_or_absent(scene: Scene, count: int, balance: Balance) -> list[Phrase]:
    """At most `count` phrases of two or three attributes that mean one digit or, half of them, fit none."""
    found: list[Phrase] = []
    for digit in balance.shuffled(scene.digits * count)[:count]:
        present = values_of(digit, balance.one_of(subsets(LOOKS, smallest=2)))
        absent = changed(scene, present, balance)
        if absent is None or fitting(scene, present) != [digit]:
            continue
        kind = balance.rarest("presence", ("present", "absent"))
        values, box = (present, digit.box) if kind == "present" else (absent, None)
        found.append(Phrase(kind, f"the {noun(values)}", box))
    return list(dict.fromkeys(found))
