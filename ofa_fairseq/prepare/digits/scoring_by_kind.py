"""Scores predictions for the embedded tasks by kind of question, phrase or premise, beside what guessing would score.

"majority" is the score of the one answer that scores best for a kind; "text alone" (with --train) that of the answer
that scores best for the same text in the training file or, where the text is new, for its kind. A box is right when
its IoU is at least 0.5. Rows without an answer are left out; a missing prediction counts as wrong.
"""

import argparse
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ...data.boxes import BoxFrame
from ...data.text_normalize import split_references
from ...data.tsv import TsvFile
from ...metrics.box_accuracy import parse_box
from ...metrics.cider import Floats
from ...metrics.row_metrics import RowMetric, row_metric
from ...metrics.vqa_accuracy import parse_answer
from ...tasks.snli_ve import ANSWERS
from ..predictions import read_predictions
from .scenes import PICTURE_SIDE

FORMS = (
    'JSON list of {"question_id" or "uniq_id", "answer", "label" or "box" (in pixels)}, '
    "or what fairseq-generate printed"
)

# More are not looked at to find the best guess: it would take long for boxes, of which nearly all are different.
_MAX_GUESSES = 20
_MAX_ROWS_PER_GUESS = 1000


class Row(NamedTuple):
    """What a prediction is for."""

    id: str
    kind: str
    text: str  # all text of the input
    reference: str


class TaskFormat(NamedTuple):
    """Columns (texts, then the answer) and metric of a task."""

    columns: tuple[int, ...]
    metric: str


TASKS = {
    "vqa": TaskFormat((2, 3), "vqa"),
    "refcoco": TaskFormat((2, 3), "box_accuracy"),
    "snli_ve": TaskFormat((4, 3, 5), "accuracy"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--task", choices=TASKS, required=True)
    parser.add_argument("--data", type=Path, required=True, help="TSV file that the predictions are for")
    parser.add_argument(
        "--train", type=Path, help="TSV file of the training rows, for the score of the text alone"
    )
    parser.add_argument("--predictions", type=Path, help=f"{FORMS} (default: guesses only)")
    parser.add_argument("--blank", type=Path, help="predictions of the same model with blank pictures")
    parser.add_argument(
        "--num-bins", type=int, default=128, help="coordinate bins of the model (default 128)"
    )


def read_rows(path: Path, task: TaskFormat) -> list[Row]:
    """The rows of a TSV file that have an answer."""
    rows = []
    tsv = TsvFile(path, [0, *task.columns])
    for number in range(len(tsv)):
        row_id, *texts, answer = tsv[number]
        if answer:
            rows.append(Row(row_id, row_id.split("-")[0], " / ".join(texts), ANSWERS.get(answer, answer)))
    return rows


def read_outputs(path: Path, rows: Sequence[Row], num_bins: int) -> list[str]:
    """The prediction for each row, a box in pixels; empty where there is none.

    Raises:
        ValueError: neither of the forms, or there is no prediction for any row.
    """
    text = path.read_text(encoding="utf-8")
    if text.lstrip().startswith("["):
        outputs = _from_json(text, path)
    else:
        frame = BoxFrame(PICTURE_SIDE, PICTURE_SIDE, PICTURE_SIDE, PICTURE_SIDE, num_bins)
        outputs = {key: _in_pixels(output, frame) for key, output in read_predictions(path).items()}
    if not outputs.keys() & {row.id for row in rows}:
        raise ValueError(f"{path}: expected predictions for ids like {rows[0].id!r}, found none")
    return [outputs.get(row.id, "") for row in rows]


def _from_json(text: str, path: Path) -> dict[str, str]:
    try:
        return {
            str(_either(entry, "question_id", "uniq_id")): _answer_text(
                _either(entry, "answer", "box", "label")
            )
            for entry in json.loads(text)
        }
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: expected {FORMS}; got {error!r}") from error


def _either(entry: dict[str, Any], *keys: str) -> Any:
    """The value of the first of the keys that there is."""
    return entry[next((key for key in keys if key in entry), keys[0])]


def _answer_text(answer: Any) -> str:
    return ",".join(map(str, answer)) if isinstance(answer, list) else ANSWERS.get(answer, str(answer))


def _in_pixels(output: str, frame: BoxFrame) -> str:
    """Four bins as pixels; other outputs as they are."""
    bins = parse_box(output)
    return ",".join(map(str, frame.to_pixels(bins))) if bins else output


def scores(outputs: Sequence[str], rows: Sequence[Row], metric: RowMetric) -> Floats:
    """Score of each output, from 0 to 1."""
    return metric(outputs, [split_references(row.reference) for row in rows])


def best_guess(rows: Sequence[Row], metric: RowMetric) -> str:
    """Of the most frequent answers the one that scores best if it is given for every row."""
    rows = rows[:_MAX_ROWS_PER_GUESS]
    references = Counter(row.reference for row in rows).most_common(_MAX_GUESSES)
    guesses = [parse_answer(split_references(reference)[0])[0] for reference, _ in references]
    return max(guesses, key=lambda guess: scores([guess] * len(rows), rows, metric).mean())


def _grouped(rows: Iterable[Row], column: str) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[getattr(row, column)].append(row)
    return groups


def majority(rows: Sequence[Row], metric: RowMetric) -> list[str]:
    """For each row the best guess of its kind."""
    guesses = {kind: best_guess(members, metric) for kind, members in _grouped(rows, "kind").items()}
    return [guesses[row.kind] for row in rows]


def text_alone(rows: Sequence[Row], train: Sequence[Row], metric: RowMetric) -> list[str]:
    """For each row the best guess of the training rows with the same text or, if there are none, of its kind."""
    asked = {row.text for row in rows}
    by_kind, by_text = (
        {key: best_guess(members, metric) for key, members in groups.items()}
        for groups in (_grouped(train, "kind"), _grouped((row for row in train if row.text in asked), "text"))
    )
    return [by_text.get(row.text, by_kind.get(row.kind, "")) for row in rows]


def table(row_kinds: Sequence[str], columns: dict[str, Floats]) -> str:
    """Mean scores in percent: a line for each kind and one for all rows. A score that is nan is not counted."""
    kinds = np.array(row_kinds)
    groups = {kind: kinds == kind for kind in sorted(set(kinds))} | {"all": np.ones(len(kinds), bool)}
    lines = [f"{'kind':16}{'rows':>7}" + "".join(f"{name:>{len(name) + 3}}" for name in columns)]
    for kind, members in groups.items():
        numbers = (f"{100 * _mean(score[members]):>{len(name) + 3}.1f}" for name, score in columns.items())
        lines.append(f"{kind:16}{members.sum():>7}" + "".join(numbers))
    return "\n".join(lines)


def _mean(score: Floats) -> float:
    counted = score[~np.isnan(score)]
    return float(counted.mean()) if len(counted) else float("nan")


def run(args: argparse.Namespace) -> None:
    """Raises ValueError if the data have no answers or the predictions are for other rows."""
    task = TASKS[args.task]
    metric = row_metric(task.metric)
    rows = read_rows(args.data, task)
    if not rows:
        raise ValueError(f"{args.data}: expected rows with answers, there are none")
    outputs = {}
    if args.predictions:
        outputs["model"] = read_outputs(args.predictions, rows, args.num_bins)
    if args.blank:
        outputs["blank pictures"] = read_outputs(args.blank, rows, args.num_bins)
    if args.train:
        outputs["text alone"] = text_alone(rows, read_rows(args.train, task), metric)
    outputs["majority"] = majority(rows, metric)
    columns = {name: scores(texts, rows, metric) for name, texts in outputs.items()}
    print(table([row.kind for row in rows], columns))
