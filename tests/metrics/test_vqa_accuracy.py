from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ofa_fairseq.metrics.vqa_accuracy import normalise_answer, parse_answer, soft_scores, vqa_score


@given(st.lists(st.sampled_from("abcd"), min_size=2, max_size=14))
def test_soft_scores_average_over_all_ways_of_leaving_one_annotator_out(annotations: list[str]) -> None:
    others = list(combinations(annotations, len(annotations) - 1))
    expected = {a: np.mean([min(subset.count(a) / 3, 1) for subset in others]) for a in annotations}
    assert soft_scores(annotations) == pytest.approx(expected)


def test_soft_scores_of_ten_annotators_are_the_released_confidences() -> None:
    annotations = ["cat"] * 4 + ["dog"] * 3 + ["cow"] * 2 + ["Cow"]
    assert soft_scores(annotations) == {"cat": 1.0, "dog": 0.9, "cow": 0.6, "Cow": 0.3}


def test_one_annotator_is_believed_and_none_says_nothing() -> None:
    assert soft_scores(["cat"]) == {"cat": 1.0}
    assert soft_scores([]) == {}


def test_answers_with_and_without_confidence() -> None:
    assert parse_answer(" 0.6|!+ a cat ") == ("a cat", 0.6)
    assert parse_answer("0|!+cat") == ("cat", 0.0)
    assert parse_answer(" cat\n") == ("cat", 1.0)
    assert parse_answer("0.6") == ("0.6", 1.0)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("high|!+cat", "confidence 'high' is no number"),
        ("|!+cat", "confidence '' is no number"),
        ("-0.1|!+cat", "confidence '-0.1' is not from 0 to 1"),
        ("1.1|!+cat", "confidence '1.1' is not from 0 to 1"),
        ("nan|!+cat", "confidence 'nan' is not from 0 to 1"),
        ("0.6|!+ ", "the answer is empty"),
        (" ", "the answer is empty"),
    ],
)
def test_what_is_no_answer_is_named(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_answer(text)
    with pytest.raises(ValueError, match=f"row 1: {reason}"):
        vqa_score(["cat", "cat"], [["cat"], ["dog", text]])


def test_an_output_has_the_confidence_of_its_answer() -> None:
    references = ["0.6|!+cat", "0.9|!+ cat", "0.3|!+dog", "cow"]
    outputs = ["cat", " dog ", "cow", "horse", "Cat", ""]
    scores = vqa_score(outputs, [references] * len(outputs))
    assert scores.tolist() == [0.9, 0.3, 1.0, 0.0, 0.0, 0.0]
    assert scores.dtype == np.float64
    assert vqa_score([], []).shape == (0,)


@given(st.lists(st.sampled_from("abcd"), min_size=2, max_size=10), st.sampled_from("abcde"))
def test_soft_scores_written_to_a_file_are_read_back(annotations: list[str], output: str) -> None:
    scores = soft_scores(annotations)
    references = [f"{confidence}|!+{answer}" for answer, confidence in scores.items()]
    assert vqa_score([output], [references]).tolist() == [scores.get(output, 0.0)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  Cat\non a mat\t", "cat on mat"),
        ("Two", "2"),
        ("none", "0"),
        ("ten to eleven", "10 to eleven"),
        ("yes, it is.", "yes it is"),
        ("red/brown", "red brown"),
        ("red-brown", "red brown"),
        (
            "red -brown-green",
            "red browngreen",
        ),  # this sign also stands beside a space: it is deleted everywhere
        ("$1,000-2,000", "$10002000"),
        ("black,white", "black white"),
        ("3.5 m. tall", "3.5 m tall"),
        ("10:30", "10:30"),
        ("dont", "don't"),
        ("isn't", "isn't"),
        ("they couldnt've known", "they couldn't've known"),
        ("couldn'tve", "couldn't've"),
        ("yall'd've", "y'all'd've"),
        ("5 oclock", "5 o'clock"),
        ("Theyre here", "they're here"),
        ("were well its im", "were well its im"),  # not repaired, some being words of their own
        ("a", ""),
    ],
)
def test_official_normalisation(text: str, expected: str) -> None:
    assert normalise_answer(text) == expected
