"""Reads the captions that a model generated, from either of the two forms that they are written in."""

import json
from pathlib import Path

FORMS = 'JSON list of {"image_id", "caption"}, or what fairseq-generate printed (its D- lines)'


def read_predictions(path: Path) -> dict[str, str]:
    """Caption by image-id: a JSON list of {"image_id", "caption"}, or the output of `fairseq-generate`.

    Of several hypotheses for one picture, `fairseq-generate` prints the best first; that one is taken.

    Raises:
        ValueError: neither form, or no caption in the file.
    """
    text = path.read_text(encoding="utf-8")
    predictions = _from_json(text, path) if text.lstrip().startswith("[") else _from_generate(text, path)
    if not predictions:
        raise ValueError(f"{path}: expected {FORMS}; found no caption")
    return predictions


def _from_json(text: str, path: Path) -> dict[str, str]:
    try:
        return {str(entry["image_id"]): str(entry["caption"]) for entry in json.loads(text)}
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: expected {FORMS}; got {error!r}") from error


def _from_generate(text: str, path: Path) -> dict[str, str]:
    predictions: dict[str, str] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.startswith("D-"):
            continue
        columns = line.rstrip("\r").split("\t")
        if len(columns) != 3:
            raise ValueError(
                f"{path}, line {number}: expected D-<id>, score, text between tabs, got {line!r}"
            )
        predictions.setdefault(columns[0].removeprefix("D-"), columns[2])
    return predictions
