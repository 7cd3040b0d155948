"""Turns the public SNLI-VE files and the pictures of Flickr30k into the TSV files of the snli_ve task.

Reads snli_ve_train.jsonl, snli_ve_dev.jsonl and snli_ve_test.jsonl (any of them; the name tells the split) and
writes snli_ve_train.tsv, snli_ve_dev.tsv and snli_ve_test.tsv. Columns: uniq-id (the pair's id), image-id, picture,
hypothesis, caption (the premise as text), label. Pairs that have no gold label, hypothesis or premise are left out
and listed in left_out_rows.txt, pictures that are missing or can't be read in missing_images.txt.

An interrupted run goes on where it was when it is started again with the same arguments.
"""

import argparse
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from . import conversion
from .annotation_files import expecting
from .plan import Picture, Plan, Row

LABELS = ("entailment", "neutral", "contradiction")
UNDECIDED = "-"  # the annotators did not agree
_FOLDERS = ("flickr30k-images", "flickr30k_images")  # of the picture archive

_EXPECTED = "an SNLI-VE pair (Flickr30K_ID, pairID, sentence1, sentence2 and gold_label: {} or {})".format(
    ", ".join(LABELS), UNDECIDED
)


class Pair(NamedTuple):
    """A hypothesis about a picture, and the picture's caption as its premise; `label` may be UNDECIDED."""

    pair_id: str
    picture: Picture
    hypothesis: str
    premise: str
    label: str


def read_pairs(path: Path) -> Iterator[Pair]:
    """The pairs of a JSONL file; raises ValueError, naming the line, where there is something else."""
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                with expecting(_EXPECTED, path, number):
                    pair = _parse(json.loads(line))
                yield pair


def _parse(entry: dict[str, str]) -> Pair:
    # Files of both spellings were published.
    name = entry["Flickr30K_ID"] if "Flickr30K_ID" in entry else entry["Flikr30kID"]
    image_id = str(name).removesuffix(".jpg")
    texts = (entry["sentence2"].strip(), entry["sentence1"].strip(), entry["gold_label"].strip())
    if texts[-1] not in (*LABELS, UNDECIDED):
        raise ValueError(f"gold_label {texts[-1]!r}")
    file = f"{image_id}.jpg"
    picture = Picture(image_id, (file, *(f"{folder}/{file}" for folder in _FOLDERS)))
    return Pair(str(entry["pairID"]), picture, *texts)


def split_of(path: Path) -> str:
    """Raises ValueError if the file's name does not tell the split."""
    match = re.search("train|dev|test", path.name)
    if not match:
        raise ValueError(f"{path}: expected a file name that tells the split, such as snli_ve_train.jsonl")
    return match[0]


def plan_rows(files: Iterable[Path]) -> Plan:
    """Raises ValueError for two files of one split, and as `read_pairs` and `split_of`."""
    plan = Plan()
    paths: dict[str, Path] = {}
    for path in files:
        split = split_of(path)
        if split in paths:
            raise ValueError(f"{paths[split]} and {path} are both of the {split} split: give one")
        paths[split] = path
        for pair in read_pairs(path):
            if pair.label == UNDECIDED:
                plan.leave_out(pair.pair_id, "no gold label", split)
            elif not pair.hypothesis or not pair.premise:
                plan.leave_out(pair.pair_id, "no premise" if pair.hypothesis else "no hypothesis", split)
            else:
                before, after = (
                    (pair.pair_id, pair.picture.image_id),
                    (pair.hypothesis, pair.premise, pair.label),
                )
                plan.add(pair.picture, Row(f"snli_ve_{split}.tsv", before, after))
    return plan


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--annotations", type=Path, nargs="+", required=True, help="snli_ve_{train,dev,test}.jsonl"
    )
    conversion.add_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Raises ValueError if a file is of another kind or no pair or picture can be used."""
    conversion.convert("snli_ve", plan_rows(args.annotations), args)
