"""Turns the public files of RefCOCO, RefCOCO+ or RefCOCOg and COCO's pictures into the TSV files of the refcoco task.

Writes a file for each split that is in `refs(*).p`, named by --name: refcoco_train.tsv, refcoco_val.tsv,
refcoco_testA.tsv and so on, with a row for each sentence. Columns: uniq-id, image-id, text, box, picture; boxes are
x0,y0,x1,y1 in pixels of the picture. Pictures that are missing, can't be read or have another size than
instances.json tells are listed in missing_images.txt; phrases without words or with an unusable box are listed in
left_out_rows.txt.

An interrupted run goes on where it was when it is started again with the same arguments.
"""

import argparse
import math
from pathlib import Path

from ..data.boxes import Box, clipped
from . import conversion
from .plan import Plan, Row
from .refcoco_annotations import read_phrases

TOLERANCE = 1.0  # pixels that a box may reach out of its picture; it is clipped


def corners(box: tuple[float, float, float, float], size: tuple[int, int]) -> Box:
    """x0, y0, x1, y1 inside the picture, from x, y, width, height.

    Raises:
        ValueError: the reason why the box can't be used.
    """
    x, y, width, height = box
    if not all(map(math.isfinite, box)):
        raise ValueError("a box that is not of finite numbers")
    # Sums of decimal fractions are off in the last digits.
    x0, y0, x1, y1 = (round(edge, 4) for edge in (x, y, x + width, y + height))
    try:
        return clipped((x0, y0, x1, y1), size, TOLERANCE)
    except ValueError as error:
        raise ValueError(f"the box {error}") from None


def plan_rows(name: str, refs: Path, instances: Path) -> Plan:
    """Raises ValueError as `read_phrases`."""
    plan = Plan()
    for phrase in read_phrases(refs, instances):
        if not phrase.text:
            plan.leave_out(phrase.phrase_id, "no words", phrase.split)
            continue
        assert phrase.picture.size is not None
        try:
            box = corners(phrase.box, phrase.picture.size)
        except ValueError as error:
            plan.leave_out(phrase.phrase_id, str(error), f"{phrase.box} in {phrase.picture.size}")
            continue
        columns = (phrase.phrase_id, phrase.picture.image_id, phrase.text, ",".join(map(str, box)))
        plan.add(phrase.picture, Row(f"{name}_{phrase.split}.tsv", columns))
    return plan


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--refs", type=Path, required=True, help="refs(unc).p, refs(umd).p or refs(google).p")
    parser.add_argument("--instances", type=Path, required=True, help="instances.json of the same data set")
    parser.add_argument(
        "--name", choices=("refcoco", "refcocoplus", "refcocog"), required=True, help="of the TSV files"
    )
    conversion.add_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Raises ValueError if a file is of another kind or no phrase or picture can be used."""
    conversion.convert(args.name, plan_rows(args.name, args.refs, args.instances), args)
