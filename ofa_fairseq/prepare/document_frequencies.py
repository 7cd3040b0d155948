"""Counts in how many pictures' captions each n-gram occurs, once, for CIDEr-D.

Reads the TSV files of a training (self-critical training's --scst-cider-cached-tokens) or, with --no-ends, those of a
validation (--eval-cider-cached-tokens), whose captions have no end counted as a word. All captions of a picture are one
document, whether one row has them, joined by &&, or several rows of its image-id.
"""

import argparse
import logging
from pathlib import Path

from tqdm import tqdm

from ..data.text_normalize import split_references, strip_punctuation
from ..data.tsv import RowError, TsvFile, parse_columns
from ..metrics.cider import DocumentFrequencies
from ..metrics.rewards import frequencies_with_ends

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="TSV files of captions")
    parser.add_argument(
        "--selected-cols",
        default="1,2",
        help="columns of the image-id and of the captions, from 0 (default 1,2)",
    )
    parser.add_argument("--no-ends", action="store_true", help="do not count the end of a caption as a word")
    parser.add_argument("--keep-punctuation", action="store_true", help="as the task's option of this name")
    parser.add_argument("--out", type=Path, required=True, help="file to write, named .json.gz")


def run(args: argparse.Namespace) -> None:
    """Raises ValueError for another kind of file than is written, or if no caption can be read."""
    if args.out.suffix != ".gz":
        raise ValueError(f"--out {args.out}: expected a name that ends in .json.gz, which is what is written")
    columns = parse_columns(args.selected_cols) or []
    if len(columns) != 2:
        raise ValueError(f"--selected-cols {args.selected_cols}: expected two columns, image-id and captions")
    args.out.parent.mkdir(parents=True, exist_ok=True)  # now: counting takes long
    captions: dict[str, list[str]] = {}
    skipped = 0
    for path in args.data:
        rows = TsvFile(path, columns)
        for i in tqdm(range(len(rows)), desc=path.name, unit="row"):
            try:
                image_id, texts = rows[i]
            except RowError as error:
                skipped += 1
                logger.warning("left out: %s", error)
                continue
            cleaned = [
                text if args.keep_punctuation else strip_punctuation(text) for text in split_references(texts)
            ]
            captions.setdefault(image_id, []).extend(text.strip() for text in cleaned if text.strip())
    documents = [texts for texts in captions.values() if texts]
    if not documents:
        raise ValueError(f"{', '.join(map(str, args.data))}: no captions in column {columns[1]}")
    count = DocumentFrequencies.from_references if args.no_ends else frequencies_with_ends
    frequencies = count(documents)
    frequencies.save(args.out)
    logger.info(
        "%s: %d n-grams of %d pictures (%d rows left out)",
        args.out,
        len(frequencies.counts),
        frequencies.num_documents,
        skipped,
    )
