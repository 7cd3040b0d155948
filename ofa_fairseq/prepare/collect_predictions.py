"""Makes a predictions file of what one or several runs of fairseq-generate printed, and scores the captions.

The file is a JSON list of {"image_id", "caption"}, as evaluation servers take it; punctuation is deleted as in the
releases. Scores are over all files together: a mean of the files' own scores would count document frequencies apart.
"""

import argparse
import json
import logging
from pathlib import Path

from ..data.files import atomic_write
from ..data.text_normalize import strip_punctuation
from ..metrics.caption_scorers import CiderScorer, CiderScorerConfig
from .predictions import read_predictions

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--generated",
        type=Path,
        nargs="+",
        required=True,
        help="outputs of fairseq-generate (generate-*.txt)",
    )
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument(
        "--document-frequencies", help="file of them for CIDEr-D (default: counted over the references)"
    )


def read_targets(path: Path) -> dict[str, str]:
    """The joined references by image-id: the T- lines of an output of fairseq-generate."""
    with path.open(encoding="utf-8", newline="\n") as file:
        columns = [line.rstrip("\r\n").split("\t", 1) for line in file if line.startswith("T-")]
    return {key.removeprefix("T-"): text for key, text in columns}


def run(args: argparse.Namespace) -> None:
    """Raises ValueError if a file has no caption."""
    captions: dict[str, str] = {}
    targets: dict[str, str] = {}
    for path in args.generated:
        captions |= read_predictions(path)
        targets |= read_targets(path)
    entries = [{"image_id": key, "caption": strip_punctuation(text)} for key, text in captions.items()]
    with atomic_write(args.out) as file:
        json.dump(entries, file)
    logger.info("wrote %s: %d captions", args.out, len(entries))
    scorer = CiderScorer(CiderScorerConfig(cider_document_frequencies=args.document_frequencies))
    for key, text in captions.items():
        if key in targets:
            scorer.add_string(targets[key], text)
    if scorer.pred:
        print(f"{scorer.result_string()} over {len(scorer.pred)} pictures")
