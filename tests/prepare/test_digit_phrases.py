"""Phrases mean the digit whose box they have: read here by another parser, looked up in the whole scene."""

import re
from collections import Counter

import pytest

from ofa_fairseq.prepare.digits import PlacedDigit, Scene, random_scenes
from ofa_fairseq.prepare.digits.balance import Balance
from ofa_fairseq.prepare.digits.phrases import Phrase, phrases, present_or_absent
from ofa_fairseq.prepare.digits.scenes import COLOURS, DIGIT_WORDS

SCENES = list(random_scenes("valid", 600, seed=3))
RELATION = re.compile(r"the (.+) (left of|right of|above|below) the (.+)")


@pytest.fixture(scope="module")
def made() -> list[tuple[Scene, Phrase]]:
    balance = Balance(1)
    return [(scene, phrase) for scene in SCENES for phrase in phrases(scene, 3, balance)]


def said(digit: PlacedDigit) -> set[str]:
    """Every word that is true of a digit."""
    return {"digit", digit.size, digit.colour, DIGIT_WORDS[digit.digit]}


def fitting(words: str, scene: Scene) -> list[PlacedDigit]:
    name, _, place = words.partition(" at the ")
    return [d for d in scene.digits if set(name.split()) <= said(d) and place in ("", d.quadrant)]


def centre(digit: PlacedDigit) -> tuple[float, float]:
    x0, y0, x1, y1 = digit.box
    return (x0 + x1) / 2, (y0 + y1) / 2


def stands(a: PlacedDigit, relation: str, b: PlacedDigit) -> bool:
    """In the wide sense of the words: from the pixels, with the half of the picture that a digit is in."""
    (ax, ay), (bx, by) = (tuple(int(c // 32) for c in centre(digit)) for digit in (a, b))
    return {"left of": ax < bx, "right of": ax > bx, "above": ay < by, "below": ay > by}[relation]


def test_every_phrase_means_exactly_the_digit_of_its_box(made: list[tuple[Scene, Phrase]]) -> None:
    for scene, phrase in made:
        if match := RELATION.fullmatch(phrase.text):
            target, relation, anchor = match.groups()
            (known,) = fitting(anchor, scene)
            means = [d for d in fitting(target, scene) if stands(d, relation, known)]
        else:
            means = fitting(phrase.text.removeprefix("the "), scene)
        assert [digit.box for digit in means] == [phrase.box], phrase


def test_no_word_of_a_phrase_can_be_left_out(made: list[tuple[Scene, Phrase]]) -> None:
    for scene, phrase in made:
        if phrase.kind == "attributes":
            words = set(phrase.text.split()[1:]) - {"digit"}
            assert len(words) == 1 or all(len(fitting(" ".join(words - {w}), scene)) > 1 for w in words)


def test_relations_are_needed_and_join_neighbours(made: list[tuple[Scene, Phrase]]) -> None:
    relational = [(scene, phrase) for scene, phrase in made if phrase.kind == "relation"]
    for scene, phrase in relational:
        match = RELATION.fullmatch(phrase.text)
        assert match is not None
        target, relation, anchor = match.groups()
        assert len(fitting(target, scene)) > 1, "the digit is known without the relation"
        (known,) = fitting(anchor, scene)
        (meant,) = (digit for digit in scene.digits if digit.box == phrase.box)
        assert meant.row == known.row if relation in ("left of", "right of") else meant.column == known.column
    named = [phrase for _, phrase in relational if not phrase.text.startswith("the digit")]
    assert len(named) > len(relational) / 3, "other digits of the same look should lead astray"


def test_phrases_differ_in_kind_and_length_and_none_is_made_twice(made: list[tuple[Scene, Phrase]]) -> None:
    kinds = Counter(phrase.kind for _, phrase in made)
    assert kinds.keys() == {"attributes", "place", "relation"}
    assert kinds["place"] < len(made) / 5
    assert kinds["relation"] > len(made) / 4
    lengths = Counter(len(phrase.text.split()) for _, phrase in made if phrase.kind == "attributes")
    assert lengths.keys() == {2, 3, 4}
    assert lengths[3] > lengths[2] / 2
    assert len({(scene.image_id, phrase) for scene, phrase in made}) == len(made)


def test_an_absent_digit_differs_from_a_present_one_in_one_attribute() -> None:
    balance = Balance(2)
    made = [(scene, phrase) for scene in SCENES for phrase in present_or_absent(scene, 2, balance)]
    kinds = Counter(phrase.kind for _, phrase in made)
    assert kinds["present"] == pytest.approx(kinds["absent"], rel=0.05)
    mixed = []
    for scene, phrase in made:
        words = set(phrase.text.split()[1:])
        assert 2 <= len(words - {"digit"}) <= 3
        if phrase.kind == "present":
            assert [digit.box for digit in fitting(" ".join(words), scene)] == [phrase.box]
        else:
            assert phrase.box is None
            assert fitting(" ".join(words), scene) == []
            assert min(len(words - said(digit)) for digit in scene.digits) == 1
            if len(scene.digits) > 2:
                mixed.append(words <= set.union(*map(said, scene.digits)))
    assert sum(mixed) > 0.8 * len(mixed), "in most pictures each word is true of some digit"


def test_absent_and_present_phrases_read_alike() -> None:
    """The share of each word does not tell which are absent."""
    balance = Balance(3)
    counts = {kind: Counter[str]() for kind in ("present", "absent")}
    for scene in random_scenes("train", 3000, seed=3):
        for phrase in present_or_absent(scene, 2, balance):
            counts[phrase.kind].update(phrase.text.split())
    for word in ("digit", "large", *COLOURS):
        assert counts["present"][word] == pytest.approx(counts["absent"][word], rel=0.25)
