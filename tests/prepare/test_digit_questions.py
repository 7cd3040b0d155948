"""Answers are true, found here by reading the question; and they can't be guessed without the picture."""

import re
from collections import Counter, defaultdict

import pytest

from ofa_fairseq.metrics.row_metrics import accuracy
from ofa_fairseq.prepare.digits import PlacedDigit, Scene, random_scenes
from ofa_fairseq.prepare.digits.balance import Balance
from ofa_fairseq.prepare.digits.questions import LOOKUPS, Question, all_answers, lookups, questions
from ofa_fairseq.prepare.digits.scenes import DIGIT_WORDS, QUADRANTS
from ofa_fairseq.prepare.digits.scoring_by_kind import Row, majority, scores, text_alone

# What text alone may score, in percent, over chance: 12.5, 10, 50, 25, 25 to 50, 50.
GUESSABLE = {"colour": 19, "digit": 17, "size": 57, "where": 35, "count": 40, "exists": 58}


def make(split: str, scenes: int, count: int) -> list[tuple[Scene, Question]]:
    balance = Balance(1)
    return [(s, q) for s in random_scenes(split, scenes, seed=3) for q in questions(s, count, balance)]


@pytest.fixture(scope="module")
def asked() -> list[tuple[Scene, Question]]:
    return make("test", 1000, 3)


def fitting(words: str, scene: Scene) -> list[PlacedDigit]:
    """The digits that a noun phrase or a predicate fits."""
    place = next((quadrant for quadrant in QUADRANTS if f"at the {quadrant}" in words), None)
    wanted = set(words.removesuffix(f"at the {place}").split()) - {"the", "a", "an", "and", "digit", "digits"}
    return [
        digit
        for digit in scene.digits
        if wanted <= {digit.size, digit.colour, DIGIT_WORDS[digit.digit]} and place in (None, digit.quadrant)
    ]


def answer(question: str, scene: Scene) -> str:
    """The answer, by looking; fails if it is not clear which digit is meant."""
    if match := re.fullmatch("how many (.+) are there[?]", question):
        return str(len(fitting(match[1], scene)))
    if match := re.fullmatch("is there (an? .+)[?]", question):
        return "yes" if fitting(match[1], scene) else "no"
    patterns = {
        "what colour is (the .+)[?]": lambda digit: digit.colour,
        "what size is (the .+)[?]": lambda digit: digit.size,
        "which digit is (.+)[?]": lambda digit: DIGIT_WORDS[digit.digit],
        "where is (the .+)[?]": lambda digit: digit.quadrant,
        "what is (at the .+)[?]": lambda digit: f"a {digit.name}",
        "describe (the .+)": lambda digit: f"a {digit.name} {digit.quadrant}",
    }
    for pattern, look in patterns.items():
        if match := re.fullmatch(pattern, question):
            (meant,) = fitting(match[1], scene)
            return look(meant)
    raise AssertionError(f"not understood: {question}")


def test_answers_are_true_and_questions_unambiguous(asked: list[tuple[Scene, Question]]) -> None:
    for scene, question in asked:
        assert answer(question.text, scene) == question.answer, (question, scene)


@pytest.mark.parametrize("kind", LOOKUPS)
def test_lookups_are_true_and_different_and_there_are_enough(kind: str) -> None:
    balance = Balance(1)
    enough = 0
    for scene in random_scenes("train", 500, seed=3):
        made = lookups(kind, scene, 2, balance)
        for question in made:
            assert question.kind == kind
            assert answer(question.text, scene) == question.answer
            assert question.answer in all_answers()
        assert len(set(made)) == len(made)
        enough += len(made) >= min(2, len(scene.digits))
    assert enough > 490


def test_kinds_are_equally_frequent_and_different_in_a_scene(
    asked: list[tuple[Scene, Question]],
) -> None:
    assert len(asked) == 3000
    assert len({(scene.image_id, question.kind) for scene, question in asked}) == 3000
    kinds = Counter(question.kind for _, question in asked)
    assert kinds.keys() == GUESSABLE.keys()
    assert min(kinds.values()) > 400


def test_no_kind_can_be_guessed_from_its_text(asked: list[tuple[Scene, Question]]) -> None:
    """By the training answers to the same text, or by the answer that is most frequent in the test itself."""
    rows = {
        name: [Row("", q.kind, q.text, q.answer) for _, q in made]
        for name, made in (("train", make("train", 5000, 4)), ("test", asked))
    }
    guesses = {
        "text": text_alone(rows["test"], rows["train"], accuracy),
        "majority": majority(rows["test"], accuracy),
    }
    for outputs in guesses.values():
        right = defaultdict(list)
        for row, score in zip(rows["test"], scores(outputs, rows["test"], accuracy)):
            right[row.kind].append(score)
        percent = {kind: 100 * sum(numbers) / len(numbers) for kind, numbers in right.items()}
        assert {kind: score for kind, score in percent.items() if score > GUESSABLE[kind]} == {}


def test_what_is_not_there_differs_in_one_attribute_from_what_is(
    asked: list[tuple[Scene, Question]],
) -> None:
    mixed = []
    for scene, question in asked:
        if question.kind == "exists" and question.answer == "no":
            words = set(question.text.strip("?").split()) - {"is", "there", "a", "an", "digit"}
            true = [{digit.size, digit.colour, DIGIT_WORDS[digit.digit]} for digit in scene.digits]
            assert len(words) >= 2
            assert min(len(words - of_digit) for of_digit in true) == 1
            if len(scene.digits) > 2:
                mixed.append(words <= set.union(*true))
    assert sum(mixed) > 0.8 * len(mixed), "colour alone or digit alone must not tell"


def test_every_answer_is_in_the_closed_set_once(asked: list[tuple[Scene, Question]]) -> None:
    answers = all_answers()
    assert len(answers) == len(set(answers))
    assert {question.answer for _, question in asked} <= set(answers)
