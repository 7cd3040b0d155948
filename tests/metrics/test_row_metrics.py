import pickle
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from ofa_fairseq.metrics.caption_scorers import rouge_l
from ofa_fairseq.metrics.cider import CiderD
from ofa_fairseq.metrics.row_metrics import accuracy, row_metric

NAMES = ["accuracy", "box_accuracy", "box_iou", "cider", "rouge_l", "vqa"]

# As output and reference, what gets each metric's highest score.
PERFECT = {name: "a large red seven" for name in NAMES} | {"box_iou": "1,2,3,4", "box_accuracy": "1,2,3,4"}


@pytest.mark.parametrize("name", NAMES)
def test_every_metric_scores_each_row_and_can_be_pickled(name: str) -> None:
    metric = pickle.loads(pickle.dumps(row_metric(name)))
    # The second row keeps the n-grams of the first from standing in every document, where CIDEr weighs them 0.
    references = [[PERFECT[name]], ["5 6 7 8"]]
    scores = metric([PERFECT[name], "nothing"], references)
    assert isinstance(scores, np.ndarray)
    assert scores.dtype == np.float64
    assert scores == pytest.approx([10.0 if name == "cider" else 1.0, 0.0])
    assert metric([], []).shape == (0,)
    with pytest.raises(ValueError, match="has no references"):
        metric([PERFECT[name]], [[]])
    with pytest.raises(ValueError, match="lists of references for 0"):
        metric([PERFECT[name]], [])


def test_accuracy_is_equality_with_any_reference() -> None:
    outputs = ["cat", " cat\n", "Cat", "cat.", "", "dog"]
    references = [["cat"], ["cow", "cat "], ["cat"], ["cat"], ["cat"], ["cat", "dog"]]
    assert accuracy(outputs, references).tolist() == [1, 1, 0, 0, 0, 1]


def test_caption_metrics_delete_punctuation() -> None:
    outputs, references = ["A dog, running!", "two cats"], [["A dog running.", "one dog"], ["three; cats"]]
    clean_outputs, clean = ["A dog running", "two cats"], [["A dog running", "one dog"], ["three cats"]]
    np.testing.assert_allclose(row_metric("cider")(outputs, references), CiderD().score(clean_outputs, clean))
    assert row_metric("rouge_l")(outputs, references).mean() == pytest.approx(
        rouge_l(clean_outputs, clean) / 100
    )


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="unknown metric 'bleu': expected " + ", ".join(NAMES)):
        row_metric("bleu")


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of the user's own on the path."""
    (tmp_path / "own_metric_package").mkdir()
    (tmp_path / "own_metric_package" / "lengths.py").write_text(
        "LIMIT = 3\n"
        "def shorter(outputs, references):\n"
        "    return [len(o) <= max(map(len, r)) for o, r in zip(outputs, references)]\n"
        "def mean(outputs, references):\n"
        "    return 0.5\n"
    )
    (tmp_path / "own_metric_package" / "broken.py").write_text("import no_such_library\n")
    monkeypatch.syspath_prepend(tmp_path)
    return "own_metric_package.lengths"


def test_a_function_of_the_users_own(own_module: str) -> None:
    metric = pickle.loads(pickle.dumps(row_metric(f"{own_module}:shorter")))
    scores = metric(["cat", "horse"], [["a", "dog"], ["cow"]])
    assert scores.tolist() == [1.0, 0.0]
    assert scores.dtype == np.float64


def test_mistakes_in_a_name_of_ones_own_are_named(own_module: str) -> None:
    for name, reason in [
        (f"{own_module}:longer", "own_metric_package.lengths has no function longer"),
        (f"{own_module}:LIMIT", "own_metric_package.lengths has no function LIMIT"),
        ("own_metric_package.width:shorter", "can't be imported .* PYTHONPATH"),
        ("own_metric_package.broken:shorter", "no_such_library"),
        (f"{own_module}:", "expected package.module:function"),
        (":shorter", "expected package.module:function"),
        (f"{own_module}:shorter:longer", "expected package.module:function"),
        (f".{own_module}:shorter", "expected package.module:function"),
    ]:
        with pytest.raises(ValueError, match=f"metric '{name}': .*{reason}"):
            row_metric(name)


def test_scores_of_the_wrong_shape_are_refused(own_module: str) -> None:
    metric = row_metric(f"{own_module}:mean")
    with pytest.raises(ValueError, match=r"lengths:mean': expected one score for each of 2 outputs"):
        metric(["cat", "dog"], [["cat"], ["dog"]])


def test_a_function_that_answers_with_an_array_keeps_its_numbers() -> None:
    metric = row_metric("ofa_fairseq.metrics.row_metrics:accuracy")
    rows: tuple[Sequence[str], Sequence[Sequence[str]]] = (["cat", "cow"], [["cat"], ["dog"]])
    assert isinstance(metric, partial)
    assert metric(*rows).tolist() == accuracy(*rows).tolist()
