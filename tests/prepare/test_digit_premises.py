"""Labels follow from premise and picture, worked out here anew; and from nothing less than all three parts."""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable

import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression

from ofa_fairseq.prepare.digits import PlacedDigit, Scene, random_scenes
from ofa_fairseq.prepare.digits.balance import Balance
from ofa_fairseq.prepare.digits.premises import Premise, premises, premises_and_claims
from ofa_fairseq.prepare.digits.scenes import DIGIT_WORDS, QUADRANTS

CHANCE = 1 / 3


@pytest.fixture(scope="module")
def made() -> list[tuple[Scene, Premise]]:
    balance = Balance(1)
    return [(s, pair) for s in random_scenes("train", 4000, seed=3) for pair in premises(s, 4, balance)]


def fits(words: str, digit: PlacedDigit) -> bool:
    place = next((quadrant for quadrant in QUADRANTS if words.endswith(f"at the {quadrant}")), None)
    wanted = set(words.removesuffix(f"at the {place}").split())
    wanted -= {"the", "every", "no", "not", "digit", "what", "is"}
    return wanted <= {digit.size, digit.colour, DIGIT_WORDS[digit.digit]} and place in (None, digit.quadrant)


def parts(pair: Premise) -> tuple[str, str, str]:
    """What the premise says is written, what it says is not, and what the hypothesis is about."""
    told = re.fullmatch(r"(\w+) wrote (every .+?|what is at the .+?) but (no .+|not .+)", pair.premise)
    assert told is not None, pair.premise
    asked = re.fullmatch(rf"{told[1]} wrote (the .+)", pair.hypothesis) or re.fullmatch(
        rf"(the .+) was written by {told[1]}", pair.hypothesis
    )
    assert asked is not None, pair.hypothesis
    return told[2], told[3], asked[1]


def label_of(scene: Scene, pair: Premise) -> str:
    written, unwritten, what = parts(pair)
    (meant,) = (digit for digit in scene.digits if fits(what, digit))
    assert not (fits(written, meant) and fits(unwritten, meant))
    return "entailment" if fits(written, meant) else "contradiction" if fits(unwritten, meant) else "neutral"


def test_labels_follow_from_premise_and_picture(made: list[tuple[Scene, Premise]]) -> None:
    for scene, pair in made:
        assert pair.label == label_of(scene, pair), (pair, scene)


def test_every_label_was_possible_in_the_picture(made: list[tuple[Scene, Premise]]) -> None:
    for scene, pair in made:
        fitting = [sum(fits(clause, digit) for digit in scene.digits) for clause in parts(pair)[:2]]
        assert min(fitting) > 0
        assert sum(fitting) < len(scene.digits)


def test_claims_are_true_or_false_of_the_picture() -> None:
    balance = Balance(1)
    for scene in random_scenes("train", 1000, seed=3):
        pairs = premises_and_claims(scene, 6, balance)
        claims = [pair for pair in pairs if pair.kind == "claim"]
        assert len(claims) == len(pairs) / 2
        for pair in claims:
            assert f"there are {len(scene.digits)} digits" == pair.premise or "every digit" in pair.premise
            what, value = pair.hypothesis.split(" is ")
            (meant,) = (digit for digit in scene.digits if fits(what, digit))
            assert pair.label == ("entailment" if fits(value, meant) else "contradiction")


def test_kinds_labels_and_wordings_are_balanced(made: list[tuple[Scene, Premise]]) -> None:
    assert len(set(made)) == len(made) > 5_000
    kinds = Counter(pair.kind for _, pair in made)
    assert kinds.keys() == {"colour", "digit", "place"}
    assert min(kinds.values()) > 0.27 * len(made)
    wordings: dict[Hashable, Counter[str]] = defaultdict(Counter)
    for _, pair in made:
        wordings[pair.kind, "was written" in pair.hypothesis][pair.label] += 1
    assert len(wordings) == 6
    for labels in wordings.values():
        assert max(labels.values()) < (CHANCE + 0.05) * labels.total()


def _words(pair: Premise) -> str:
    """The two texts, each word told which it is in."""
    return " ".join(f"p_{word}" for word in pair.premise.split()) + " " + pair.hypothesis


def test_a_classifier_of_the_texts_learns_nothing(made: list[tuple[Scene, Premise]]) -> None:
    features = CountVectorizer(ngram_range=(1, 2)).fit_transform([_words(pair) for _, pair in made])
    labels = [pair.label for _, pair in made]
    half = len(made) // 2
    reader = LogisticRegression(max_iter=50).fit(features[:half], labels[:half])
    assert reader.score(features[half:], labels[half:]) < CHANCE + 0.03


def _picture_and_hypothesis(scene: Scene, pair: Premise) -> Hashable:
    """What of the picture could matter: how many digits there are, and how many are like the one that is meant."""
    (meant,) = (digit for digit in scene.digits if fits(parts(pair)[2], digit))
    alike = {
        name: sum(getattr(d, name) == getattr(meant, name) for d in scene.digits)
        for name in ("colour", "word")
    }
    return pair.kind, len(scene.digits), meant.quadrant, *alike.values()


def _picture_and_premise(scene: Scene, pair: Premise) -> Hashable:
    """How many digits each clause of the premise is about, and how many none."""
    counts = [sum(fits(clause, digit) for digit in scene.digits) for clause in parts(pair)[:2]]
    return pair.kind, len(scene.digits), *counts


@pytest.mark.parametrize("known", [_picture_and_hypothesis, _picture_and_premise])
def test_the_picture_with_one_of_the_texts_tells_nothing(
    made: list[tuple[Scene, Premise]], known: Callable[[Scene, Premise], Hashable]
) -> None:
    """Scored with the majority label of all rows of the other half about which the same is known."""
    half = len(made) // 2
    seen: dict[Hashable, Counter[str]] = defaultdict(Counter)
    for scene, pair in made[:half]:
        seen[known(scene, pair)][pair.label] += 1
    right = [
        max(seen[key], key=seen[key].get) == pair.label
        for s, pair in made[half:]
        if (key := known(s, pair)) in seen
    ]
    assert len(right) > 0.95 * half
    assert sum(right) < (CHANCE + 0.04) * len(right)
