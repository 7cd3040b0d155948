"""Turns the public COCO captions and a folder of pictures into the TSV files of the caption task.

Writes caption_stage1_train.tsv (a row for each caption), caption_stage2_train.tsv, caption_val.tsv and
caption_test.tsv (a row for each picture, its captions joined by "&&"), and test_caption_coco_format.json
for COCO's evaluation. Columns: uniq-id (rows are numbered as if all pictures were there), image-id, captions,
object labels (empty), picture. Splits without pictures get no file. Pictures that are missing or can't be read
are left out and listed with the reason in missing_images.txt, pictures without captions in left_out_rows.txt.

An interrupted run goes on where it was when it is started again with the same arguments.
"""

import argparse
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..data.text_normalize import REFERENCE_SEPARATOR
from ..files import atomic_write
from . import conversion
from .annotation_files import without_separator
from .coco_annotations import AnnotatedPicture, read_annotations
from .plan import Picture, Plan, Row

# Split -> the files with one row for each picture, and the file with one row for each caption.
JOINED_FILES = {"train": "caption_stage2_train.tsv", "val": "caption_val.tsv", "test": "caption_test.tsv"}
SINGLE_FILE = "caption_stage1_train.tsv"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--annotations", type=Path, nargs="+", default=[], help="captions_*.json and/or a Karpathy split file"
    )
    parser.add_argument(
        "--split-file", type=Path, help="dataset_coco.json (Karpathy); alone it gives the captions too"
    )
    conversion.add_arguments(parser)


def plan_rows(annotated: Iterable[AnnotatedPicture]) -> Plan:
    """Captions in lower case; those of a picture together, and those for training one by one too."""
    plan = Plan()
    numbers: Counter[str] = Counter()
    for picture in annotated:
        texts = (without_separator(caption.lower()) for caption in picture.captions)
        captions = [text for text in texts if text]
        if not captions:
            plan.leave_out(picture.image_id, "no caption", picture.files[0])
            continue
        rows = [(JOINED_FILES[picture.split], REFERENCE_SEPARATOR.join(captions))]
        if picture.split == "train":
            rows += [(SINGLE_FILE, caption) for caption in captions]
        for file, text in rows:
            columns = (str(numbers[file]), picture.image_id, text, "")
            plan.add(Picture(picture.image_id, picture.files), Row(file, columns))
            numbers[file] += 1
    return plan


def _write_coco_format(out: Path, pictures: Sequence[AnnotatedPicture]) -> None:
    """The references as COCO's evaluation tools read them: captions as they were annotated."""

    def number(image_id: str) -> int | str:
        return int(image_id) if image_id.isdecimal() else image_id

    annotations = [
        {"image_id": number(picture.image_id), "caption": caption}
        for picture in pictures
        for caption in picture.captions
    ]
    content = {
        "info": {},
        "licenses": [],
        "type": "captions",
        "images": [{"id": number(picture.image_id)} for picture in pictures],
        "annotations": [{"id": index, **annotation} for index, annotation in enumerate(annotations)],
    }
    with atomic_write(out / "test_caption_coco_format.json") as file:
        json.dump(content, file)


def run(args: argparse.Namespace) -> None:
    """Raises ValueError if there are no annotations, no picture folder or no usable picture."""
    if not args.annotations and not args.split_file:
        raise ValueError("expected --annotations, or a --split-file that has the captions")
    annotated = read_annotations(args.annotations, args.split_file)
    plan = plan_rows(annotated)
    written = plan.pictures.keys() - conversion.convert("coco", plan, args)
    test = [picture for picture in annotated if picture.split == "test" and picture.image_id in written]
    if test:
        _write_coco_format(args.out, test)
