"""Makes a predictions file of what one or several runs of fairseq-generate printed, and scores the predictions.

The file is a JSON list as evaluation servers take it:

    caption   {"image_id", "caption"}, punctuation deleted as in the releases
    vqa       {"question_id", "answer"}
    refcoco   {"uniq_id", "box"}, in pixels of the stored picture
    snli_ve   {"uniq_id", "answer"}

Beside it (FILE.scores.tsv): id, probability, output. The probability is that of the whole output among the allowed
ones or, where scores were normalised by length, of its tokens on average. Scores are over all files together.
"""

import argparse
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fairseq.scoring import BaseScorer
from PIL import Image

from ..data.boxes import BoxFrame
from ..data.drawing import draw_boxes
from ..data.images import ImageError, decode_image
from ..data.text_normalize import strip_punctuation
from ..data.tsv import TsvFile, parse_columns
from ..files import atomic_write
from ..metrics.box_accuracy import parse_box
from ..metrics.caption_scorers import CiderScorer, CiderScorerConfig
from ..metrics.row_scorers import AccuracyScorer, BoxAccuracyScorer, VqaScorer, VqaScorerConfig
from ..models.checkpoint import task_options
from .predictions import Output, read_outputs, read_targets

logger = logging.getLogger(__name__)


class ResultFormat(NamedTuple):
    """What a task's entry is called, and how it is made of an output's text."""

    id_key: str
    value_key: str
    value: Callable[[str], Any] = str.strip


FORMATS = {
    "caption": ResultFormat("image_id", "caption", strip_punctuation),
    "vqa": ResultFormat("question_id", "answer"),
    "refcoco": ResultFormat("uniq_id", "box"),
    "snli_ve": ResultFormat("uniq_id", "answer"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--task", choices=FORMATS, default="caption")
    parser.add_argument(
        "--generated",
        type=Path,
        nargs="+",
        required=True,
        help="outputs of fairseq-generate (generate-*.txt)",
    )
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument(
        "--document-frequencies",
        help="caption: file of them for CIDEr-D (default: counted over the references)",
    )
    parser.add_argument(
        "--vqa-normalize",
        action="store_true",
        help="vqa: compare as the official evaluation does: lower case, no articles or punctuation",
    )
    boxes = parser.add_argument_group("refcoco, and boxes of `instruct`")
    boxes.add_argument("--data", type=Path, help="the TSV file, for the pictures and their sizes")
    boxes.add_argument(
        "--selected-cols", default="0,4,2,3", help="its columns: id, picture, phrase, box (default 0,4,2,3)"
    )
    boxes.add_argument("--model", type=Path, help="the checkpoint, which knows the unit of its boxes")
    boxes.add_argument(
        "--draw", type=Path, help="folder for a picture of each row with its box and the reference"
    )


def run(args: argparse.Namespace) -> None:
    """Raises ValueError if the files have no output, or boxes lack their TSV file or model."""
    outputs: dict[str, Output] = {}
    targets: dict[str, str] = {}
    for path in args.generated:
        outputs |= read_outputs(path)
        targets |= read_targets(path)
    if not outputs:
        raise ValueError(
            f"{args.generated[0]}: expected D- lines as fairseq-generate prints them, found none"
        )
    form = FORMATS[args.task]
    values = {key: form.value(output.text) for key, output in outputs.items()}
    if args.task == "refcoco":
        values = _boxes_in_pixels(values, targets, args)
    entries = [{form.id_key: _id(key, args.task), form.value_key: value} for key, value in values.items()]
    with atomic_write(args.out) as file:
        json.dump(entries, file)
    with atomic_write(args.out.with_suffix(".scores.tsv")) as file:
        file.writelines(f"{key}\t{o.probability:.6g}\t{o.text.strip()}\n" for key, o in outputs.items())
    logger.info("wrote %s: %d predictions", args.out, len(entries))
    scorer = _scorer(args)
    for key, output in outputs.items():
        if key in targets:
            scorer.add_string(targets[key], output.text)
    if scorer.pred:
        suffix = f" over {len(scorer.pred)} pictures" if args.task == "caption" else ""
        print(f"{scorer.result_string()}{suffix}")


def _id(key: str, task: str) -> str | int:
    """VQA's server wants numbers; what is no number stays as it is."""
    return int(key) if task == "vqa" and key.isdecimal() else key


def _scorer(args: argparse.Namespace) -> BaseScorer:
    if args.task == "caption":
        return CiderScorer(CiderScorerConfig(cider_document_frequencies=args.document_frequencies))
    if args.task == "vqa":
        return VqaScorer(VqaScorerConfig(vqa_normalize=args.vqa_normalize))
    return {"refcoco": BoxAccuracyScorer, "snli_ve": AccuracyScorer}[args.task](None)


def _boxes_in_pixels(
    values: Mapping[str, str], targets: Mapping[str, str], args: argparse.Namespace
) -> dict[str, list[float]]:
    """Boxes by id; with `--draw` also pictures. Rows that can't be read have no output either."""
    if args.data is None or args.model is None:
        raise ValueError(
            "refcoco: give --data, the TSV file that the pictures are in, and --model, the checkpoint"
        )
    options = task_options(args.model)
    side, num_bins = options["patch_image_size"], options["num_bins"]
    unit = options.get("max_image_size") or side  # as the tasks have it
    rows = TsvFile(args.data, parse_columns(args.selected_cols))
    boxes = {}
    if args.draw:
        args.draw.mkdir(parents=True, exist_ok=True)
    for i in range(len(rows)):
        try:
            key, picture, phrase, *_ = rows[i]
            if key not in values:
                continue
            image = decode_image(picture, rows.path.parent)
        except (ImageError, ValueError):
            continue
        width, height = image.size
        frame = BoxFrame(width, height, side, unit, num_bins)
        box = parse_box(values[key])
        boxes[key] = frame.to_pixels(box) if box else [0.0] * 4
        if args.draw:
            reference = parse_box(targets.get(key, ""))
            _draw(
                args.draw, key, image, phrase, boxes[key], frame.to_pixels(reference) if reference else None
            )
    return boxes


def _draw(
    folder: Path, key: str, image: Image.Image, phrase: str, box: list[float], reference: list[float] | None
) -> None:
    name = "".join(c if c.isalnum() or c in "-_." else "_" for c in key)
    drawn = draw_boxes(image, phrase, {"red": box} | ({"lime": reference} if reference else {}))
    with atomic_write(folder / f"{name}.png", "wb") as file:
        drawn.save(file, format="PNG")
