"""Closed sets of answers in their file formats, and what is wrong with some of them."""

import json
import pickle
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ofa_fairseq.data.answer_list import parse_answers, read_answers
from ofa_fairseq.data.safe_pickle import UnsafePickleError

ANSWERS = ["yes", "light blue", "no", "café", "1.5", "a && b"]


def write(folder: Path, name: str, content: Any) -> Path:
    """A file of the format that its name says."""
    path = folder / name
    if path.suffix in (".pkl", ".p", ".pickle"):
        path.write_bytes(pickle.dumps(content))
    elif path.suffix == ".json":
        path.write_text(json.dumps(content), encoding="utf-8")
    else:
        path.write_text(content, encoding="utf-8", newline="")
    return path


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("answers.txt", "\n".join(ANSWERS)),
        ("answers.txt", "\n".join(ANSWERS) + "\n"),
        ("answers.txt", "\r\n".join(ANSWERS) + "\r\n"),
        ("answers.txt", "\ufeff" + "\n".join(ANSWERS)),
        ("answers", "\n".join(ANSWERS)),
        ("answers.json", ANSWERS),
        ("answers.json", {answer: len(ANSWERS) - i for i, answer in enumerate(ANSWERS)}),
        ("answers.pkl", ANSWERS),
        ("answers.pkl", {answer: i for i, answer in enumerate(ANSWERS)}),
        ("answers.p", {answer: str(i) for i, answer in enumerate(ANSWERS)}),
        ("answers.pickle", {answer: 0 for answer in ANSWERS}),
    ],
    ids=lambda value: (
        value if isinstance(value, str) and "." in value and "\n" not in value else type(value).__name__
    ),
)
def test_all_formats_hold_the_same_list(name: str, content: Any, tmp_path: Path) -> None:
    """In the file's order: of a dictionary only the keys matter."""
    assert read_answers(write(tmp_path, name, content)) == ANSWERS


@given(st.lists(st.text().map(str.strip).filter(bool), min_size=1, unique=True))
def test_json_options(answers: list[str]) -> None:
    assert parse_answers(json.dumps(answers), "--flag") == answers
    assert parse_answers(json.dumps(dict.fromkeys(answers, 0)), "--flag") == answers


def test_white_space_around_answers_does_not_matter(tmp_path: Path) -> None:
    """Nor does it in columns."""
    for name, content in (
        ("a.txt", " yes\nno \t\n"),
        ("a.json", [" yes", "no\n"]),
        ("a.pkl", {"yes ": 0, " no": 1}),
    ):
        assert read_answers(write(tmp_path, name, content)) == ["yes", "no"]


def test_python_2_pickles(tmp_path: Path) -> None:
    (tmp_path / "old.pkl").write_bytes(pickle.dumps({"yes": 0, "no": 1}, protocol=2))
    assert read_answers(tmp_path / "old.pkl") == ["yes", "no"]


# What is wrong


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "yes\nno\nyes\n", "answer 3, 'yes', stands there twice"),
        ("a.json", ["yes", "yes"], "answer 2, 'yes', stands there twice"),
        ("a.pkl", ["no", "yes", "yes"], "answer 3, 'yes', stands there twice"),
        ("a.txt", "yes\n\nno\n", "answer 2 is '', expected a text that is not empty"),
        ("a.txt", "yes\n \n", "answer 2 is ' ', expected a text that is not empty"),
        ("a.txt", "yes\nno\nyes \n", "answer 3, 'yes ', stands there twice"),
        ("a.json", ["yes", 5], "answer 2 is 5, expected a text that is not empty"),
        ("a.pkl", {"yes": 0, None: 1}, "answer 2 is None, expected a text that is not empty"),
        ("a.txt", "", "there are no answers"),
        ("a.json", [], "there are no answers"),
        ("a.json", {}, "there are no answers"),
        ("a.pkl", {}, "there are no answers"),
        ("a.json", "yes", "expected a pickle or JSON file .*, got str"),
        ("a.pkl", {"yes"}, "expected a pickle or JSON file .*, got set"),
    ],
)
def test_lists_that_are_none(name: str, content: Any, message: str, tmp_path: Path) -> None:
    path = write(tmp_path, name, content)
    with pytest.raises(ValueError, match=f"{path}: {message}"):
        read_answers(path)


def test_a_json_dictionary_that_repeats_an_entry(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"yes": 0, "no": 1, "yes": 2}')
    with pytest.raises(ValueError, match="a.json: answer 3, 'yes', stands there twice"):
        read_answers(tmp_path / "a.json")
    with pytest.raises(ValueError, match="--flag: answer 2, 'yes', stands there twice"):
        parse_answers('{"yes": 0, "yes": 1}', "--flag")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{'no': 0}", r"--flag: not JSON \("),
        ("yes", r"--flag: not JSON \("),
        ('"yes"', '--flag "yes": expected a JSON dictionary answer -> number, or a list of answers'),
        ("5", "--flag 5: expected a JSON dictionary answer -> number, or a list of answers"),
        ("{}", "--flag: there are no answers"),
        ('{"": 0}', "--flag: answer 1 is '', expected a text"),
    ],
)
def test_json_options_that_are_no_list(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_answers(text, "--flag")


def test_a_broken_json_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('["yes",')
    with pytest.raises(ValueError, match=r"a.json: not JSON \("):
        read_answers(tmp_path / "a.json")


def test_a_pickle_that_imports_something_is_refused_by_name(tmp_path: Path) -> None:
    path = write(tmp_path, "a.pkl", {"yes": Fraction(1, 2)})
    with pytest.raises(UnsafePickleError, match=r"a.pkl: refused, the pickle asks for 'fractions.Fraction'"):
        read_answers(path)


class Runs:
    """Would run code when it is unpickled by the usual means."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_a_pickle_runs_nothing(tmp_path: Path) -> None:
    path = write(tmp_path, "a.pkl", {"yes": Runs(tmp_path / "ran")})
    with pytest.raises(UnsafePickleError, match="refused, the pickle asks for"):
        read_answers(path)
    assert not (tmp_path / "ran").exists()


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nothing.txt"):
        read_answers(tmp_path / "nothing.txt")


@pytest.mark.parametrize("name", ["answers", "answers.PKL", "answers.txt"])
def test_a_pickle_is_known_by_its_first_byte(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(pickle.dumps({"yes": 0, "no": 1}, protocol=2))
    assert read_answers(path) == ["yes", "no"]
    path.write_bytes(pickle.dumps(eval, protocol=2))
    with pytest.raises(pickle.UnpicklingError, match=r"eval"):
        read_answers(path)


@pytest.mark.parametrize(("name", "content"), [("a.txt", b"caf\xe9\n"), ("a.json", '["x"]'.encode("utf-16"))])
def test_another_encoding_is_an_error_that_names_the_file(name: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{path}: expected .* in UTF-8"):
        read_answers(path)


def test_the_empty_answer_of_a_pickle_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "trainval_ans2label.pkl"
    path.write_bytes(pickle.dumps({"net": 0, "": 1, "yes": 2}))
    assert read_answers(path) == ["net", "yes"]
    assert f"{path}: the empty answer is left out" in caplog.text
