"""Questions about a scene with one answer each.

    colour            what colour is the seven?                 red
    digit             which digit is at the top left?           seven
    size              what size is the red seven?               large
    where             where is the red seven?                   top left
    count             how many red digits are there?            2
    exists            is there a large red seven?               yes
    describe_place    what is at the top left?                  a large red seven
    describe_digit    describe the seven                        a large red seven top left

What a question asks about is singled out by what it says, and no answer is frequent for a kind of question. Where
the answer to "is there ..." is no, one attribute of a digit was changed, if possible to that of another digit.
"""

from collections import Counter
from itertools import product
from typing import NamedTuple

from .balance import Balance
from .descriptions import (
    ATTRIBUTES,
    LOOKS,
    Values,
    changed,
    descriptions,
    noun,
    references,
    subsets,
    values_of,
    with_article,
)
from .scenes import COLOURS, DIGIT_WORDS, QUADRANTS, SIZES, Scene


class Question(NamedTuple):
    kind: str
    text: str
    answer: str


# Kind -> the attribute of a digit that is asked for, and how.
_ATTRIBUTE_QUESTIONS = {
    "colour": ("colour", "what colour is the {noun}?"),
    "digit": ("word", "which digit is {predicate}?"),
    "size": ("size", "what size is the {noun}?"),
    "where": ("quadrant", "where is the {noun}?"),
}


def _ask_attribute(kind: str, scene: Scene, balance: Balance) -> Question | None:
    attribute, text = _ATTRIBUTE_QUESTIONS[kind]
    known: dict[str, list[Values]] = {}
    for digit in scene.digits:
        for values in references(scene, digit, unsaid=attribute):
            known.setdefault(getattr(digit, attribute), []).append(values)
    if not known:
        return None
    answer = balance.rarest(kind, list(known))
    values = balance.one_of(known[answer])
    return Question(kind, text.format(noun=noun(values), predicate=_predicate(values)), answer)


def _predicate(values: Values) -> str:
    """ "large and red" or "at the top left"."""
    return f"at the {values['quadrant']}" if "quadrant" in values else " and ".join(values.values())


def _ask_count(scene: Scene, balance: Balance) -> Question:
    attribute = balance.one_of(("all", "colour", "size"))
    if attribute == "all":
        return Question("count", "how many digits are there?", str(len(scene.digits)))
    counts = Counter(getattr(digit, attribute) for digit in scene.digits)
    by_count: dict[int, list[str]] = {}
    for value in ATTRIBUTES[attribute]:
        by_count.setdefault(counts[value], []).append(value)
    count = balance.rarest(("count", attribute), list(by_count))
    return Question("count", f"how many {balance.one_of(by_count[count])} digits are there?", str(count))


def _ask_existence(scene: Scene, balance: Balance) -> Question | None:
    present = values_of(balance.one_of(scene.digits), balance.one_of(subsets(LOOKS, smallest=2)))
    absent = changed(scene, present, balance)
    if absent is None:
        return None
    answer = balance.rarest("exists", ("yes", "no"))
    name = noun(present if answer == "yes" else absent)
    return Question("exists", f"is there {with_article(name)}?", answer)


def _ask(kind: str, scene: Scene, balance: Balance) -> Question | None:
    if kind == "count":
        return _ask_count(scene, balance)
    return _ask_existence(scene, balance) if kind == "exists" else _ask_attribute(kind, scene, balance)


def questions(scene: Scene, count: int, balance: Balance) -> list[Question]:
    """At most `count` questions of different kinds, each kind equally often."""
    asked: list[Question] = []
    for kind in balance.shuffled((*_ATTRIBUTE_QUESTIONS, "count", "exists")):
        question = _ask(kind, scene, balance) if len(asked) < count else None
        if question is not None:
            asked.append(question)
    return asked


# Kind -> question and answer, by which a model learns to look a digit up.
LOOKUPS = {
    "where": ("where is the {noun}?", "{digit.quadrant}"),
    "describe_place": ("what is at the {digit.quadrant}?", "a {digit.name}"),
    "describe_digit": ("describe the {noun}", "a {digit.name} {digit.quadrant}"),
}


def lookups(kind: str, scene: Scene, count: int, balance: Balance) -> list[Question]:
    """At most `count` different questions of a kind of `LOOKUPS`, about digits that their looks single out.

    For training: questions about one attribute at a time teach slowly to look a digit up.
    """
    question, answer = LOOKUPS[kind]
    asked = [
        Question(kind, question.format(digit=digit, noun=noun(values)), answer.format(digit=digit))
        for digit in scene.digits
        for values in descriptions(scene, digit)
    ]
    return balance.shuffled(list(dict.fromkeys(asked)))[:count]


def all_answers() -> list[str]:
    """Every answer that these questions can have, the short ones first."""
    names = [f"a {size} {colour} {word}" for size, colour, word in product(SIZES, COLOURS, DIGIT_WORDS)]
    return [
        *("yes", "no"),
        *map(str, range(len(QUADRANTS) + 1)),
        *(value for values in ATTRIBUTES.values() for value in values),
        *names,
        *(f"{name} {quadrant}" for name, quadrant in product(names, QUADRANTS)),
    ]
