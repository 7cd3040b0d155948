"""Labels follow from premise and picture, worked out here anew; and from nothing less than all three parts."""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable

import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression

from ofa_fairseq.prepare.digits import PlacedDigit, Scene, random_scenes
from ofa_fairseq.prepare.digits.balance import Balance
from ofa_fairseq.prepare.digits.premises import WRITERS, Premise, premises
from ofa_fairseq.prepare.digits.scenes import DIGIT_WORDS, QUADRANTS

CHANCE = 1 / 3
CLAUSE = "(every .+?|what is at the .+?)"


@pytest.fixture(scope="module")
def made() -> list[tuple[Scene, Premise]]:
    balance = Balance(1)
    return [(s, pair) for s in random_scenes("train", 4000, seed=3) for pair in premises(s, 4, balance)]


def fits(words: str, digit: PlacedDigit) -> bool:
    place = next((quadrant for quadrant in QUADRANTS if words.endswith(f"at the {quadrant}")), None)
    wanted = set(words.removesuffix(f"at the {place}").split())
    wanted -= {"the", "every", "no", "not", "digit", "what", "is"}
    return wanted <= {digit.size, digit.colour, DIGIT_WORDS[digit.digit]} and place in (None, digit.quadrant)


def parts(pair: Premise) -> tuple[dict[str, str], str, str]:
    """Clauses of the premise with their writers, who is asked about, and what is asked about."""
    if match := re.fullmatch(rf"(\w+) wrote {CLAUSE} and (\w+) {CLAUSE}", pair.premise):
        writers = {match[2]: match[1], match[4]: match[3]}
    else:
        match = re.fullmatch(rf"(\w+) wrote {CLAUSE} but (no .+|not .+)", pair.premise)
        assert match is not None, pair.premise
        writers = {match[2]: match[1], match[3]: "somebody else"}
    asked = re.fullmatch(r"(?P<writer>\w+) wrote (?P<what>the .+)", pair.hypothesis) or re.fullmatch(
        r"(?P<what>the .+) was written by (?P<writer>\w+)", pair.hypothesis
    )
    assert asked is not None, pair.hypothesis
    return writers, asked["writer"], asked["what"]


def test_labels_follow_from_premise_and_picture(made: list[tuple[Scene, Premise]]) -> None:
    for scene, pair in made:
        writers, asked, what = parts(pair)
        (meant,) = (digit for digit in scene.digits if fits(what, digit))
        known = [writer for clause, writer in writers.items() if fits(clause, meant)]
        assert len(known) <= 1
        expected = "neutral" if not known else "entailment" if known == [asked] else "contradiction"
        assert pair.label == expected, (pair, scene)


def test_a_premise_is_about_some_digits_of_the_picture_and_not_about_others(
    made: list[tuple[Scene, Premise]],
) -> None:
    for scene, pair in made:
        covered = [any(fits(clause, digit) for clause in parts(pair)[0]) for digit in scene.digits]
        assert any(covered)
        assert not all(covered)


def test_kinds_labels_and_wordings_are_balanced(made: list[tuple[Scene, Premise]]) -> None:
    assert len(set(made)) == len(made) > 11_000
    kinds = Counter(pair.kind for _, pair in made)
    assert kinds.keys() == {"colour", "digit", "place"}
    assert min(kinds.values()) > 0.3 * len(made)
    wordings: dict[Hashable, Counter[str]] = defaultdict(Counter)
    for _, pair in made:
        wordings[pair.kind, "but" in pair.premise, "was written" in pair.hypothesis][pair.label] += 1
    assert len(wordings) == 12
    for labels in wordings.values():
        assert max(labels.values()) < (CHANCE + 0.05) * labels.total()


def _words(scene: Scene, pair: Premise) -> str:
    """The two texts, each word told which it is in and whether its writer is the one that the other text names."""
    asked = parts(pair)[1]

    def marked(text: str, mark: str) -> str:
        names = {writer: "other" for writer in WRITERS} | {asked: "asked"}
        return " ".join(mark + names.get(word, word) for word in text.split())

    return f"{marked(pair.premise, 'p_')} {marked(pair.hypothesis, 'h_')}"


def test_a_classifier_of_the_texts_learns_nothing(made: list[tuple[Scene, Premise]]) -> None:
    features = CountVectorizer(ngram_range=(1, 2)).fit_transform([_words(*row) for row in made])
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
    counts = [sum(fits(clause, digit) for digit in scene.digits) for clause in parts(pair)[0]]
    return pair.kind, len(scene.digits), "but" in pair.premise, *counts


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
