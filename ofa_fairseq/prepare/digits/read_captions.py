"""Scores captions of the digit scenes by reading them: what is named right, and what is invented.

The score of a digit, colour or size is the share of the scenes' digits that are named with it; of a place
or relation, the share of those that captions state. A scene has "nothing invented" if no digit is mentioned
more often than it is there, and is "exact" if nothing at all is wrong or left out. A scene without a
caption counts as one that says nothing.
"""

import argparse
import logging
from pathlib import Path

from ..predictions import FORMS, read_predictions
from .reading import read_captions, reading_table
from .scenes import read_scenes

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--scenes", type=Path, required=True, help="scenes_test.jsonl of the digits data")
    parser.add_argument("--predictions", type=Path, required=True, help=FORMS)


def run(args: argparse.Namespace) -> None:
    """Raises ValueError if a caption belongs to no scene of the file."""
    scenes, predictions = read_scenes(args.scenes), read_predictions(args.predictions)
    unknown = [image_id for image_id in predictions if image_id not in scenes]
    if unknown:
        raise ValueError(
            f"{args.predictions}: {len(unknown)} ids are not in {args.scenes}, the first is {unknown[0]}"
        )
    missing = len(scenes) - len(predictions)
    if missing:
        logger.warning("%d of %d scenes have no caption", missing, len(scenes))
    print(reading_table(read_captions((predictions.get(key, ""), scene) for key, scene in scenes.items())))
