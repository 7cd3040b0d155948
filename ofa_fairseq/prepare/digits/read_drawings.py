"""Scores drawn pictures by reading them: which of the digits, colours and places that a caption names are there.

A reader that has learned from real scenes alone looks for digits in each picture (`drawing_reader.py`). A picture
counts as right in a column if all that its caption names of it is there:

    digit+colour   each digit that is named, in its colour
    digit, colour, size, place    each of these by itself; places and relations only where the caption tells some
    relation       "above", "to the left of", ...
    number         as many digits as are named, and no other shape beside them

The second table is chance: the same pictures with the captions of others that name as many digits. Lines are for kinds
of rows: what stands before the - in their ids, or else how many digits they name. Of several lists (drawings of the
same captions with other seeds) the last table shows how much the first column varies.
"""

import argparse
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from ...data.images import ImageError, decode_image
from ...data.tsv import TsvFile
from ...drawing.drawn_pictures import add_ranks_argument, read_drawn_pictures
from ...metrics.cider import Floats
from .drawing_reader import DrawingReader, FoundDigit
from .reading import Mention, holds, match, parse_caption
from .scenes import DIGIT_WORDS, PICTURE_SIDE, read_scenes
from .scoring_by_kind import table

ID_COLUMN, PICTURE_COLUMN, TEXT_COLUMN = 0, 2, 3  # of a TSV of real pictures
FIRST_COLUMN = "digit+colour"
BATCH_SIZE = 50  # pictures that are reconstructed at once


class CaptionedPicture(NamedTuple):
    """A picture and the text that it should show; `origin` says in errors where it is from."""

    kind: str
    caption: str
    picture: Image.Image
    origin: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--digits", type=Path, required=True, help="folder with the data of `digit_drawings`")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--pictures", type=Path, nargs="+", help="TSV files in which image generation lists its pictures"
    )
    source.add_argument(
        "--real",
        type=Path,
        help="TSV file of real pictures (uniq-id, image-id, picture, text), to see how well the reader reads",
    )
    add_ranks_argument(parser)
    parser.add_argument(
        "--reconstructed-by",
        type=Path,
        metavar="FOLDER",
        help="read real pictures as the image tokenizer in this folder (last.ckpt, model.yaml) restores them",
    )


def drawn_pictures(path: Path, ranks: str) -> Iterator[CaptionedPicture]:
    """The pictures of a list that image generation has written: of rank 0 ("first") or "all".

    Raises ValueError if the list or a picture can't be used or no picture has rank 0, OSError if there is no list.
    """
    listed = read_drawn_pictures(path, ranks)
    if not listed:
        raise ValueError(f"{path}: expected pictures of rank 0, there are none")
    for drawn in listed:
        try:
            kind = kind_of(drawn.id, drawn.caption)
            yield CaptionedPicture(kind, drawn.caption, drawn.load(), str(drawn.path))
        except ImageError as error:
            raise ValueError(f"{drawn.path}: {error}") from error


def real_pictures(path: Path) -> Iterator[CaptionedPicture]:
    """The pictures of a TSV file; raises ValueError (`RowError` for a single row) or OSError."""
    rows = TsvFile(path, [ID_COLUMN, PICTURE_COLUMN, TEXT_COLUMN])
    for number in range(len(rows)):
        name, picture, caption = rows[number]
        try:
            shown = decode_image(picture, rows.path.parent)
            yield CaptionedPicture(kind_of(name, caption), caption, shown, f"{path}, row {number + 1}")
        except ImageError as error:
            raise rows.row_error(number, str(error)) from error


def reconstructed(pictures: Sequence[CaptionedPicture], tokenizer_folder: Path) -> list[CaptionedPicture]:
    """The pictures as an image tokenizer restores them from their codes."""
    import torch

    from ...models.image_tokenizer import ImageTokenizer, picture_input, to_images

    tokenizer = ImageTokenizer.load(tokenizer_folder / "last.ckpt", tokenizer_folder / "model.yaml")
    restored: list[CaptionedPicture] = []
    for start in tqdm(range(0, len(pictures), BATCH_SIZE), desc="reconstructing", unit="batch"):
        batch = pictures[start : start + BATCH_SIZE]
        codes = tokenizer.encode(torch.stack([picture_input(entry.picture, PICTURE_SIDE) for entry in batch]))
        images = to_images(tokenizer.decode(codes))
        restored += [entry._replace(picture=image) for entry, image in zip(batch, images)]
    return restored


def find_digits(pictures: Sequence[CaptionedPicture], reader: DrawingReader) -> list[list[FoundDigit]]:
    """What the reader sees in each picture; raises ValueError for a picture of another size."""
    found = []
    for entry in tqdm(pictures, desc="reading", unit="picture"):
        try:
            found.append(reader.read(entry.picture))
        except ValueError as error:
            raise ValueError(f"{entry.origin}: {error}") from error
    return found


def drawing_scores(captions: Sequence[str], found: Sequence[Sequence[FoundDigit]]) -> dict[str, Floats]:
    """The columns of the table: for each picture 1 or 0, nan where its caption tells nothing of the kind."""
    scores = [_score(caption, digits) for caption, digits in zip(captions, found, strict=True)]
    return {name: np.array([score[name] for score in scores]) for name in scores[0]} if scores else {}


def _score(caption: str, found: Sequence[FoundDigit]) -> dict[str, float]:
    mentions = parse_caption(caption)
    meant = match(mentions, found)
    pairs = [(mention, meant.get(index)) for index, mention in enumerate(mentions)]
    digit = [seen is not None and seen.digit == mention.digit for mention, seen in pairs]
    colour = _agreement(pairs, "colour", "colour")
    relations = [
        holds(relation, seen, meant.get(relation.other))
        for mention, seen in pairs
        for relation in mention.relations
    ]
    return {
        FIRST_COLUMN: _all([*digit, *colour]),
        "digit": _all(digit),
        "colour": _all(colour),
        "size": _all(_agreement(pairs, "size", "size")),
        "place": _all(_agreement(pairs, "place", "quadrant")),
        "relation": _all(relations),
        "number": float(len(found) == len(mentions) and all(seen.digit is not None for seen in found)),
    }


def _agreement(pairs: Sequence[tuple[Mention, FoundDigit | None]], said: str, seen: str) -> list[bool]:
    """Whether an attribute is as it is said, for each mention that says it."""
    return [
        digit is not None and getattr(digit, seen) == getattr(mention, said)
        for mention, digit in pairs
        if getattr(mention, said) is not None
    ]


def _all(right: Sequence[bool]) -> float:
    return float(all(right)) if right else float("nan")


def kind_of(name: str, caption: str) -> str:
    """What stands before the - in a row's id, or else how many digits its caption names."""
    return name.rpartition("-")[0] or number_named(caption)


def number_named(caption: str) -> str:
    """ "one digit", "two digits", ... by how many the caption names."""
    count = len(parse_caption(caption))
    word = DIGIT_WORDS[count] if count < len(DIGIT_WORDS) else str(count)
    return f"{word} digit{'s' * (count != 1)}"


def shuffled(captions: Sequence[str]) -> list[str]:
    """For each caption the next different one that names as many digits, the same one wherever it stands.

    A caption without such another stays.
    """
    texts: dict[str, list[str]] = defaultdict(list)
    for caption in dict.fromkeys(captions):
        texts[number_named(caption)].append(caption)
    following = {text: other for kind in texts.values() for text, other in zip(kind, [*kind[1:], kind[0]])}
    return [following[caption] for caption in captions]


def spread_table(kinds: Sequence[str], score: Floats, lengths: Sequence[int]) -> str:
    """Mean and standard deviation in percent over lists of so many rows, a line for each kind."""
    lines = []
    for kind in sorted(set(kinds)):
        of_kind = np.where(np.array(kinds) == kind, score, np.nan)
        means = [100 * np.nanmean(part) for part in np.split(of_kind, np.cumsum(lengths)[:-1])]
        lines.append(f"{kind:16}{np.mean(means):10.1f} ± {np.std(means, ddof=1):.1f}")
    return "\n".join(lines)


def run(args: argparse.Namespace) -> None:
    """Raises ValueError or OSError for unusable files, pictures, captions without a digit, or flags that don't fit."""
    if args.reconstructed_by and not args.real:
        raise ValueError(
            "--reconstructed-by is for --real pictures; drawn ones come from a tokenizer already"
        )
    lists = [list(drawn_pictures(path, args.ranks)) for path in args.pictures or ()]
    pictures = list(real_pictures(args.real)) if args.real else list(chain(*lists))
    for entry in pictures:
        if not parse_caption(entry.caption):
            raise ValueError(f"{entry.origin}: expected a caption that names digits, got {entry.caption!r}")
    if args.reconstructed_by:
        pictures = reconstructed(pictures, args.reconstructed_by)
    found = find_digits(pictures, training_reader(args.digits))
    captions = [entry.caption for entry in pictures]
    kinds = [entry.kind for entry in pictures]
    scores = drawing_scores(captions, found)
    print(table(kinds, scores))
    print("\nwith the captions of other pictures:")
    print(table(kinds, drawing_scores(shuffled(captions), found)))
    if len(lists) > 1:
        print(f"\n{FIRST_COLUMN} of {len(lists)} lists, mean and standard deviation:")
        print(spread_table(kinds, scores[FIRST_COLUMN], list(map(len, lists))))


def training_reader(digits: Path) -> DrawingReader:
    """The reader that has learned from the training scenes of the command `digit_drawings`.

    Raises ValueError if the folder has none or too few.
    """
    path = digits / "drawings_scenes_train.jsonl"
    if not path.exists():
        raise ValueError(f"{digits}: expected a folder with the data of `digit_drawings`; {path} is missing")
    try:
        return DrawingReader.train(read_scenes(path).values())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
