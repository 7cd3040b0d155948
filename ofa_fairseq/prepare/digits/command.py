"""Makes the embedded data set: captioned scenes of real handwritten digits, with everything that training needs.

train.tsv (one caption a row), train_references.tsv, valid.tsv and test.tsv (five captions joined by "&&") have the
released columns: uniq-id, image-id, captions, object labels, picture. train_words.tsv, to begin with, holds the
training scenes of one digit, and says which digit it is and nothing else. scenes_*.jsonl tell what is where in each
picture; sentencepiece.model and dict.txt are the text vocabulary; contact_sheet.png shows the first test scenes.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ...data.drawing import contact_sheet
from ...data.images import encode_image
from ...data.text_normalize import REFERENCE_SEPARATOR
from ...files import atomic_write
from ..sentencepiece_model import train_sentencepiece
from .captions import CAPTIONS_PER_SCENE, captions
from .drawing import draw
from .folder import SETTINGS, make_once
from .handwriting import SPLITS
from .scenes import Scene, random_scenes, read_scenes
from .vocabulary_texts import vocabulary_texts

FORMAT = 3  # raised when the same settings give other files, so that folders made before are made anew
DEFAULT_COUNTS = {"train": 20_000, "valid": 1_000, "test": 1_000}
VOCABULARY_SIZE = 700  # every word of `vocabulary_texts` is one piece then
CONTACT_SHEET_SCENES = 24


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out", type=Path, required=True, help="folder, left alone if it has the data set already"
    )
    parser.add_argument("--seed", type=int, default=1, help="another seed gives another data set (default 1)")
    for split, count in DEFAULT_COUNTS.items():
        parser.add_argument(f"--{split}", type=int, default=count, help=f"{split} scenes (default {count})")


def _write_split(out: Path, split: str, count: int, seed: int) -> None:
    """The truth of a split's scenes, and a row for each with all its captions."""
    tsv = out / ("train_references.tsv" if split == "train" else f"{split}.tsv")
    scenes = tqdm(random_scenes(split, count, seed), total=count, desc=f"digits {split}", unit="scene")
    with atomic_write(out / f"scenes_{split}.jsonl") as truth, atomic_write(tsv) as rows:
        for uniq_id, scene in enumerate(scenes):
            truth.write(scene.to_json() + "\n")
            rows.write("\t".join((str(uniq_id), *_columns(scene))) + "\n")


def _columns(scene: Scene) -> tuple[str, str, str, str]:
    """Image-id, captions, object labels and picture."""
    labels = REFERENCE_SEPARATOR.join(digit.name for digit in scene.digits)
    image = encode_image(draw(scene), format="JPEG", quality=90)
    return scene.image_id, REFERENCE_SEPARATOR.join(captions(scene)), labels, image


def _write_single_captions(out: Path, seed: int) -> None:
    """train.tsv: the rows of train_references.tsv with one of the captions each; and train_words.tsv.

    A model that begins with whole captions soon tells colours, sizes and places, and then reads no digit for a long
    time: they are one word in seven, and its visual features have settled on colours. Begun with single words, it
    reads after a minute.
    """
    rng = np.random.default_rng(seed)
    with (
        (out / "train_references.tsv").open(encoding="utf-8") as rows,
        atomic_write(out / "train.tsv") as captioned,
        atomic_write(out / "train_words.tsv") as words,
    ):
        for row in rows:
            uniq_id, image_id, references, labels, image = row.split("\t")
            caption = str(rng.choice(references.split(REFERENCE_SEPARATOR)))
            captioned.write("\t".join((uniq_id, image_id, caption, labels, image)))
            if REFERENCE_SEPARATOR not in labels:
                words.write("\t".join((uniq_id, image_id, labels.split()[-1], labels, image)))


def _write_vocabulary(out: Path) -> None:
    scenes = read_scenes(out / "scenes_train.jsonl").values()
    train_sentencepiece(vocabulary_texts(scenes), out, VOCABULARY_SIZE)


def _write_contact_sheet(out: Path) -> None:
    scenes = list(read_scenes(out / "scenes_test.jsonl").values())[:CONTACT_SHEET_SCENES]
    texts = [captions(scene)[index % CAPTIONS_PER_SCENE] for index, scene in enumerate(scenes)]
    with atomic_write(out / "contact_sheet.png", "wb") as file:
        contact_sheet([draw(scene) for scene in scenes], texts, columns=6, scale=3).save(file, format="PNG")


def run(args: argparse.Namespace) -> None:
    """Raises ValueError if a split has no scene."""
    counts = {split: getattr(args, split) for split in SPLITS}
    if min(counts.values()) < 1:
        raise ValueError(f"expected at least one scene in each split, got {counts}")
    settings = {"format": FORMAT, "seed": args.seed, **counts}
    make_once(args.out / SETTINGS, settings, lambda: _write_all(args.out, counts, args.seed))


def _write_all(out: Path, counts: Mapping[str, int], seed: int) -> None:
    for split, count in counts.items():
        _write_split(out, split, count, seed)
    _write_single_captions(out, seed)
    _write_vocabulary(out)
    _write_contact_sheet(out)
