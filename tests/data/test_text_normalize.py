"""Text clean-up: what the original made of the same texts, properties, and examples written by hand."""

import re
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ofa_fairseq.data.text_normalize import pre_caption, pre_question, split_references, strip_punctuation


# Read off the token ids that the original's datasets gave for these rows (tests/reference/rows.json).
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("the RED car - on/left.", "the red car on left."),
        ("Two dogs play.", "two dogs play."),
        ("A cat sleeps", "a cat sleeps"),
    ],
)
def test_captions_of_the_original(text: str, expected: str) -> None:
    assert pre_caption(text, 80) == expected


def test_questions_of_the_original() -> None:
    assert pre_question("Is this person wearing shorts?", 80) == "is this person wearing shorts?"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A man, riding a wave!&&a surfer on a large-wave.", "A man riding a wavea surfer on a largewave"),
        ("Two dogs/cats - run.\n", "Two dogscats  run"),
        (string.punctuation, ""),
        (" -a- ", "a"),
        ("¿naïve “quotes”—stay", "¿naïve “quotes”—stay"),
    ],
)
def test_strip_punctuation(text: str, expected: str) -> None:
    assert strip_punctuation(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ""),
        ("  Hello   World ", "hello world"),
        (",.!?*#:;~Hello?!", "hello?!"),
        # a leading space shields punctuation, for only the very beginning is stripped
        (" ?why", "?why"),
        # dashes become spaces after the beginning was stripped
        ("-!no", "!no"),
        ("a--b / c", "a b c"),
        ("a\tb \t c\n", "a\tb c"),
        ("tail\n\n", "tail"),
        ("one\n", "one"),
        ("<PERSON> and <person>", "person and person"),
        ("<per-son>", "<per son>"),
    ],
)
def test_pre_caption(text: str, expected: str) -> None:
    assert pre_caption(text, 80) == expected


def test_only_captions_unwrap_persons() -> None:
    assert pre_question("Is <person> here?", 80) == "is <person> here?"


@pytest.mark.parametrize(
    ("max_words", "expected"), [(1, "a"), (3, "a b c"), (4, "a b c d."), (9, "a b c d.")]
)
def test_max_words(max_words: int, expected: str) -> None:
    assert pre_caption("a  b-c d.", max_words) == expected
    assert pre_question("a  b-c d.", max_words) == expected


TEXT = st.text(st.sampled_from(" \n\t-/<>,.!?*#:;~aBç語") | st.characters(exclude_categories=["Cs"]))


@given(text=TEXT, max_words=st.integers(1, 6))
def test_normalized_text(text: str, max_words: int) -> None:
    for normalize in (pre_caption, pre_question):
        result = normalize(text, max_words)
        assert len(result.split(" ")) <= max_words
        assert not re.search(r"\s\s|[-/]|^ | $", result)
        whole = normalize(text, len(text) + 1)
        assert whole.split(" ")[:max_words] == result.split(" ")


@given(text=TEXT)
def test_stripped_text(text: str) -> None:
    result = strip_punctuation(text)
    assert not set(result) & set(string.punctuation)
    assert [
        character for character in text if character not in string.punctuation and not character.isspace()
    ] == [character for character in result if not character.isspace()]


def test_split_references() -> None:
    assert split_references("a boy & goats.&&two goats") == ["a boy & goats.", "two goats"]
    assert split_references("only one") == ["only one"]
