"""Reads what a model generated, from either of the two forms that it is written in."""

import json
import logging
from pathlib import Path
from typing import NamedTuple

logger = logging.getLogger(__name__)

FORMS = 'JSON list of {"image_id", "caption"}, or what fairseq-generate printed (its D- lines)'


class Output(NamedTuple):
    """An output and the model's confidence in it."""

    text: str
    probability: float  # 2 to the score that fairseq-generate prints: per token unless --unnormalized


def read_predictions(path: Path) -> dict[str, str]:
    """Caption by image-id: a JSON list of {"image_id", "caption"}, or the output of `fairseq-generate`.

    Of several hypotheses for one picture, `fairseq-generate` prints the best first; that one is taken.

    Raises:
        ValueError: neither form, or no caption in the file.
    """
    text = path.read_text(encoding="utf-8")
    if text.lstrip().startswith("["):
        predictions = _from_json(text, path)
    else:
        predictions = {key: output.text for key, output in read_outputs(path).items()}
    if not predictions:
        raise ValueError(f"{path}: expected {FORMS}; found no caption")
    return predictions


def _from_json(text: str, path: Path) -> dict[str, str]:
    try:
        return {str(entry["image_id"]): str(entry["caption"]) for entry in json.loads(text)}
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: expected {FORMS}; got {error!r}") from error


def read_outputs(path: Path) -> dict[str, Output]:
    """The best output for each row's id in what `fairseq-generate` printed.

    Raises:
        ValueError: a D- line of another form.
    """
    outputs: dict[str, Output] = {}
    lines = path.read_bytes().decode("utf-8").split("\n")  # not at what else an output may hold: \r
    for number, line in enumerate(lines, start=1):
        if not line.startswith("D-"):
            continue
        columns = line.rstrip("\r").split("\t", 2)
        try:
            key, score, text = columns
            output = Output(text, 2.0 ** float(score))
        except ValueError:
            raise ValueError(
                f"{path}, line {number}: expected D-<id>, score, text between tabs, got {line!r}"
            ) from None
        outputs.setdefault(key.removeprefix("D-"), output)
    return outputs


def read_targets(path: Path) -> dict[str, str]:
    """The joined references by id: the T- lines of an output of fairseq-generate; rows that share an id are told."""
    with path.open(encoding="utf-8", newline="\n") as file:
        columns = [line.rstrip("\r\n").split("\t", 1) for line in file if line.startswith("T-")]
    targets = {key.removeprefix("T-"): text for key, text in columns}
    if len(targets) < len(columns):
        logger.warning(
            "%s: %d rows, but only %d different ids: of rows that share an id one output is kept",
            path,
            len(columns),
            len(targets),
        )
    return targets
