"""Labels follow from premise and picture, worked out here anew; and from nothing less than all three parts."""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable
from itertools import combinations

import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression

from ofa_fairseq.prepare.digits import PlacedDigit, Scene, random_scenes
from ofa_fairseq.prepare.digits.balance import Balance
from ofa_fairseq.prepare.digits.premises import Premise, claims, premises
from ofa_fairseq.prepare.digits.scenes import DIGIT_WORDS, QUADRANTS

CHANCE = 1 / 3


@pytest.fixture(scope="module")
def made() -> list[tuple[Scene, Premise]]:
    balance = Balance(1)
    return [(s, pair) for s in random_scenes("train", 4000, seed=3) for pair in premises(s, 4, balance)]


def fits(words: str, digit: PlacedDigit) -> bool:
    """Whether "the large red seven", "red", "an eight" or "at the top left" is said of the digit."""
    place = next((quadrant for quadrant in QUADRANTS if words.endswith(f"at the {quadrant}")), None)
    wanted = set(words.removesuffix(f"at the {place}").split()) - {"the", "a", "an", "digit"}
    return wanted <= {digit.size, digit.colour, DIGIT_WORDS[digit.digit]} and place in (None, digit.quadrant)


def parts(pair: Premise) -> tuple[str, str, str]:
    """The premise's quantifier, its sort, and what the hypothesis is about."""
    told = re.fullmatch(
        r"(\w+) wrote (at least what|none of what|only what|exactly what) is (.+)", pair.premise
    )
    assert told is not None, pair.premise
    asked = re.fullmatch(rf"{told[1]} wrote (the .+)|(the .+) was written by {told[1]}", pair.hypothesis)
    assert asked is not None, pair.hypothesis
    return told[2], told[3], asked[1] or asked[2]


def possible_labels(scene: Scene, pair: Premise) -> set[str]:
    """By trying all sets of digits that somebody may have written if the premise is true."""
    quantifier, sort, what = parts(pair)
    of_the_sort = {digit for digit in scene.digits if fits(sort, digit)}
    (meant,) = (digit for digit in scene.digits if fits(what, digit))
    holds: dict[str, Callable[[set[PlacedDigit]], bool]] = {
        "at least what": lambda written: of_the_sort <= written,
        "none of what": lambda written: not of_the_sort & written,
        "only what": lambda written: written <= of_the_sort,
        "exactly what": lambda written: written == of_the_sort,
    }
    sets = [
        set(written)
        for size in range(len(scene.digits) + 1)
        for written in combinations(scene.digits, size)
        if holds[quantifier](set(written))
    ]
    return {"entailment" if meant in written else "contradiction" for written in sets}


def test_labels_follow_from_premise_and_picture(made: list[tuple[Scene, Premise]]) -> None:
    for scene, pair in made:
        labels = possible_labels(scene, pair)
        assert {pair.label} == (labels if len(labels) == 1 else {"neutral"}), (pair, scene)


def test_the_picture_has_digits_of_the_sort_and_others(made: list[tuple[Scene, Premise]]) -> None:
    for scene, pair in made:
        assert len({fits(parts(pair)[1], digit) for digit in scene.digits}) == 2


def test_claims_are_true_or_false_of_the_picture() -> None:
    balance = Balance(1)
    labels = Counter[str]()
    for scene in random_scenes("train", 1000, seed=3):
        for pair in claims(scene, 3, balance):
            labels[pair.label] += 1
            count = len(scene.digits)
            known = f"there are {count} digits" if count > 1 else "there is 1 digit"
            assert pair.premise == known or "every digit" in pair.premise
            what, value = pair.hypothesis.split(" is ")
            (meant,) = (digit for digit in scene.digits if fits(what, digit))
            assert pair.label == ("entailment" if fits(value, meant) else "contradiction")
    assert labels.total() > 2900
    assert labels["entailment"] == pytest.approx(labels.total() / 2, rel=0.05)


def test_kinds_labels_and_wordings_are_balanced(made: list[tuple[Scene, Premise]]) -> None:
    assert len(set(made)) == len(made) > 10_000
    kinds = Counter(pair.kind for _, pair in made)
    assert kinds.keys() == {"colour", "digit", "place"}
    assert min(kinds.values()) > 0.3 * len(made)
    wordings: dict[Hashable, Counter[str]] = defaultdict(Counter)
    for _, pair in made:
        wordings[pair.kind, "was written" in pair.hypothesis][pair.label] += 1
    assert len(wordings) == 6
    for labels in wordings.values():
        assert max(labels.values()) < (CHANCE + 0.05) * labels.total()


def _words(pair: Premise) -> str:
    """The two texts, each word told which it is in."""
    return " ".join(f"p_{word}" for word in pair.premise.split()) + " " + pair.hypothesis


def test_a_classifier_of_the_texts_learns_no_more_than_the_quantifier(
    made: list[tuple[Scene, Premise]],
) -> None:
    """After which one of two labels is left."""
    features = CountVectorizer(ngram_range=(1, 2)).fit_transform([_words(pair) for _, pair in made])
    labels = [pair.label for _, pair in made]
    half = len(made) // 2
    reader = LogisticRegression(max_iter=50).fit(features[:half], labels[:half])
    assert reader.score(features[half:], labels[half:]) < 1 / 2 + 0.03


def _picture_and_hypothesis(scene: Scene, pair: Premise) -> Hashable:
    """What of the picture could matter: how many digits there are, and how many are like the one that is meant."""
    (meant,) = (digit for digit in scene.digits if fits(parts(pair)[2], digit))
    alike = {
        name: sum(getattr(d, name) == getattr(meant, name) for d in scene.digits)
        for name in ("colour", "word")
    }
    return pair.kind, len(scene.digits), meant.quadrant, *alike.values()


def _picture_and_premise(scene: Scene, pair: Premise) -> Hashable:
    """Quantifier, and how many digits are of the premise's sort, and how many not."""
    quantifier, sort, _ = parts(pair)
    return quantifier, len(scene.digits), sum(fits(sort, digit) for digit in scene.digits)


@pytest.mark.parametrize(
    ("known", "most"), [(_picture_and_hypothesis, CHANCE + 0.04), (_picture_and_premise, 1 / 2 + 0.06)]
)
def test_the_picture_with_one_of_the_texts_tells_little(
    made: list[tuple[Scene, Premise]], known: Callable[[Scene, Premise], Hashable], most: float
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
    assert sum(right) < most * len(right)
