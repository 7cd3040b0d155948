"""Turns the public COCO captions and a folder of pictures into the TSV files of the caption task.

Writes caption_stage1_train.tsv (a row for each caption), caption_stage2_train.tsv, caption_val.tsv and
caption_test.tsv (a row for each picture, its captions joined by "&&"), and test_caption_coco_format.json
for COCO's evaluation. Columns: uniq-id, image-id, captions, object labels (empty), picture. Splits without
pictures get no file. Pictures that are missing or can't be read are left out and listed with the reason in
missing_images.txt.

An interrupted run goes on where it was when it is started again with the same arguments.
"""

import argparse
import base64
import hashlib
import json
import logging
import os
import re
import shutil
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import astuple
from functools import partial
from pathlib import Path
from typing import IO

from ..data.files import atomic_write
from ..data.images import ImageError, decode_image
from ..data.text_normalize import REFERENCE_SEPARATOR
from .coco_annotations import AnnotatedPicture, read_annotations
from .parts import UnusableError, make_parts, read_failures, read_rows

logger = logging.getLogger(__name__)

# Split -> the files with one row for each picture, and the file with one row for each caption.
JOINED_FILES = {"train": "caption_stage2_train.tsv", "val": "caption_val.tsv", "test": "caption_test.tsv"}
SINGLE_FILE = "caption_stage1_train.tsv"
PARTS = ".parts"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--images", type=Path, required=True, help="folder of the pictures, or of train2014/, val2014/"
    )
    parser.add_argument(
        "--annotations", type=Path, nargs="+", default=[], help="captions_*.json and/or a Karpathy split file"
    )
    parser.add_argument(
        "--split-file", type=Path, help="dataset_coco.json (Karpathy); alone it gives the captions too"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the TSV files")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes (default: all cores)")
    how = parser.add_mutually_exclusive_group()
    how.add_argument(
        "--embed", action="store_true", help="pictures stand in the TSVs, base64 of their files (default)"
    )
    how.add_argument(
        "--paths", action="store_true", help="TSVs hold the pictures' paths, relative to --out: small files"
    )


def clean_caption(caption: str) -> str:
    """Lower case, one space for any white space (tabs and line breaks too), no "&&"."""
    return " ".join(re.sub("&&+", " and ", caption.lower()).split())


def _make_row(picture: AnnotatedPicture, images: Path, out: Path, embed: bool) -> str:
    """split, image-id, captions and picture between tabs."""
    captions = [caption for caption in map(clean_caption, picture.captions) if caption]
    if not captions:
        raise UnusableError(f"{picture.image_id}\t{picture.files[0]}\tno caption")
    path = next((images / name for name in picture.files if (images / name).is_file()), None)
    if path is None:
        raise UnusableError(f"{picture.image_id}\t{picture.files[0]}\tno such file in {images}")
    try:
        value = base64.urlsafe_b64encode(path.read_bytes()).decode() if embed else os.path.relpath(path, out)
        decode_image(value, out)  # as training will
    except (ImageError, OSError) as error:
        raise UnusableError(f"{picture.image_id}\t{path}\t{' '.join(str(error).split())}") from error
    return "\t".join((picture.split, picture.image_id, REFERENCE_SEPARATOR.join(captions), value))


def _assemble(parts: Path, out: Path) -> set[str]:
    """The final TSV files from the parts; returns the ids of the pictures in them."""
    image_ids = set()
    files: dict[str, IO] = {}
    numbers: Counter[str] = Counter()
    with ExitStack() as stack:

        def write(name: str, *columns: str) -> None:
            if name not in files:
                files[name] = stack.enter_context(atomic_write(out / name))
            files[name].write("\t".join((str(numbers[name]), *columns)) + "\n")
            numbers[name] += 1

        for row in read_rows(parts):
            split, image_id, captions, image = row.split("\t")
            image_ids.add(image_id)
            write(JOINED_FILES[split], image_id, captions, "", image)
            if split == "train":
                for caption in captions.split(REFERENCE_SEPARATOR):
                    write(SINGLE_FILE, image_id, caption, "", image)
    for name, count in numbers.items():
        logger.info("%s: %d rows", name, count)
    return image_ids


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
    if not args.images.is_dir():
        raise ValueError(f"--images {args.images}: expected a folder of pictures")
    pictures = read_annotations(args.annotations, args.split_file)
    out, embed = args.out.resolve(), not args.paths
    plan = json.dumps([str(args.images.resolve()), embed, *map(astuple, pictures)])
    digest = hashlib.sha256(plan.encode()).hexdigest()
    stamp = out / "coco_settings.json"
    if stamp.exists() and json.loads(stamp.read_text(encoding="utf-8")) == {"sha256": digest}:
        logger.info("%s is complete already", args.out)
        return
    parts = out / f"{PARTS}-{digest[:16]}"
    make_row = partial(_make_row, images=args.images.resolve(), out=out, embed=embed)
    make_parts(pictures, make_row, parts, args.workers, "reading pictures")
    image_ids = _assemble(parts, out)
    test = [picture for picture in pictures if picture.split == "test" and picture.image_id in image_ids]
    if test:
        _write_coco_format(out, test)
    failures = read_failures(parts)
    with atomic_write(out / "missing_images.txt") as file:
        file.writelines(f"{failure}\n" for failure in failures)
    for folder in out.glob(f"{PARTS}-*"):
        shutil.rmtree(folder)
    if not image_ids:
        raise ValueError(f"no picture can be used: see {out / 'missing_images.txt'}")
    if failures:
        # No stamp: when the pictures are there, the same command makes everything anew.
        logger.warning("%d of %d pictures left out, see missing_images.txt", len(failures), len(pictures))
        return
    with atomic_write(stamp) as file:
        json.dump({"sha256": digest}, file)
