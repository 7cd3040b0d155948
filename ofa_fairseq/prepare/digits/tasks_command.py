"""Makes questions, phrases and premises about the embedded scenes: the data of `vqa`, `refcoco` and `snli_ve`.

Beside the files of the command `digits`, with the released columns and the same pictures, for train, valid and test:

    vqa_*.tsv        question-id, image-id, question, answer with its confidence, object labels, picture
    refcoco_*.tsv    uniq-id, image-id, phrase, box x0,y0,x1,y1 in pixels, picture
    snli_ve_*.tsv    uniq-id, image-id, picture, hypothesis, text premise, label

The first id is KIND-IMAGEID-NUMBER, so that scores can be told for each kind. Training files have kinds of their own,
which teach what the others take: vqa_train.tsv also asks for descriptions ("what is at the top left?" "a large red
seven"), which force a model to look. Training begins with vqa_first_train.tsv, descriptions and where digits are, and
with snli_ve_first_train.tsv, claims that the picture alone decides. Half of the phrases in refcoco_absent_test.tsv fit
no digit; their boxes are empty. ans2label.json has all answers.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from ...files import atomic_write
from ...metrics.vqa_accuracy import CONFIDENCE_SEPARATOR
from .balance import Balance
from .folder import digits_settings, make_once
from .phrases import Phrase, phrases, present_or_absent
from .premises import Premise, claims, premises
from .questions import LOOKUPS, Question, all_answers, lookups, questions
from .scenes import Scene, read_scenes

FORMAT = 7  # raised when the same settings give other files
OBJECT_LABELS = "digit"  # what a detector might say; the scene's own labels would tell the answers

Example = Question | Phrase | Premise
MakeExamples = Callable[[Scene, int, Balance], list]


def _questions_and_descriptions(scene: Scene, count: int, balance: Balance) -> list[Question]:
    """Two of three are questions."""
    sixth = count // 6
    return [
        *questions(scene, 4 * sixth, balance),
        *lookups("describe_place", scene, sixth, balance),
        *lookups("describe_digit", scene, sixth, balance),
    ]


def _all_lookups(scene: Scene, count: int, balance: Balance) -> list[Question]:
    """As many of each kind."""
    return [q for kind in LOOKUPS for q in lookups(kind, scene, count // len(LOOKUPS), balance)]


class TaskFile(NamedTuple):
    """What a file holds, how many of it for a scene, and which scenes: every n-th.

    Scenes that have fewer are left out, so that the rows of a picture stand together in blocks of one size. (Scenes
    of one digit have no premises, and too few phrases and lookups to train on.)
    """

    make: MakeExamples
    per_scene: int
    every: int = 1


FILES = {
    "vqa_train.tsv": TaskFile(_questions_and_descriptions, 6),
    "vqa_valid.tsv": TaskFile(questions, 2),
    "vqa_test.tsv": TaskFile(questions, 3),
    "refcoco_train.tsv": TaskFile(phrases, 6),
    "refcoco_valid.tsv": TaskFile(phrases, 1),
    "refcoco_test.tsv": TaskFile(phrases, 2),
    "refcoco_absent_test.tsv": TaskFile(present_or_absent, 2),
    "snli_ve_train.tsv": TaskFile(premises, 6),
    "snli_ve_valid.tsv": TaskFile(premises, 1),
    "snli_ve_test.tsv": TaskFile(premises, 3),
    # Last, since a file's place is part of its seed.
    "vqa_first_train.tsv": TaskFile(_all_lookups, 6, every=2),
    "snli_ve_first_train.tsv": TaskFile(claims, 6, every=5),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--digits", type=Path, required=True, help="folder that the command `digits` has made"
    )
    parser.add_argument("--seed", type=int, default=1, help="another seed gives other examples (default 1)")


def columns(example: Example, image_id: str, number: int, picture: str) -> tuple[str, ...]:
    """An example as a row with the released columns."""
    ids = f"{example.kind}-{image_id}-{number}", image_id
    match example:
        case Question():
            return *ids, example.text, f"1.0{CONFIDENCE_SEPARATOR}{example.answer}", OBJECT_LABELS, picture
        case Phrase():
            return *ids, example.text, ",".join(map(str, example.box or ())), picture
        case Premise():
            return *ids, picture, example.hypothesis, example.premise, example.label


def _scenes_with_pictures(digits: Path, split: str) -> Iterator[tuple[Scene, str]]:
    """The scenes of a split, and their pictures as the TSV files of the command `digits` have them."""
    scenes = read_scenes(digits / f"scenes_{split}.jsonl")
    name = "train_references.tsv" if split == "train" else f"{split}.tsv"
    with (digits / name).open(encoding="utf-8") as rows:
        for row in rows:
            _, image_id, _, _, picture = row.rstrip("\n").split("\t")
            yield scenes[image_id], picture


def _write(digits: Path, name: str, balance: Balance) -> None:
    make, per_scene, every = FILES[name]
    split = name.removesuffix(".tsv").rpartition("_")[2]
    with atomic_write(digits / name) as file:
        scenes = islice(_scenes_with_pictures(digits, split), 0, None, every)
        for scene, picture in tqdm(scenes, desc=name, unit="scene"):
            examples = make(scene, per_scene, balance)
            if len(examples) < per_scene:
                continue
            for number, example in enumerate(examples):
                file.write("\t".join(columns(example, scene.image_id, number, picture)) + "\n")


def run(args: argparse.Namespace) -> None:
    """Raises ValueError if the folder has no scenes yet."""
    settings = {"format": FORMAT, "seed": args.seed, "scenes": digits_settings(args.digits)}
    make_once(args.digits / "tasks_settings.json", settings, lambda: _write_all(args.digits, args.seed))


def _write_all(digits: Path, seed: int) -> None:
    for number, name in enumerate(FILES):
        _write(digits, name, Balance(seed, number))
    with atomic_write(digits / "ans2label.json") as file:
        json.dump({answer: index for index, answer in enumerate(all_answers())}, file)
