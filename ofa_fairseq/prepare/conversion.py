"""What the converters of public data sets share: writing TSV files from a plan of rows.

Each picture is read and checked once, in parallel, into part files, from which the TSV files are assembled. Started
again with the same arguments, an interrupted run goes on where it was, and one that lacked pictures looks for these.
"""

import argparse
import base64
import hashlib
import json
import logging
import os
import shutil
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import IO

from tqdm import tqdm

from ..data.images import ImageError, decode_image
from ..files import atomic_write
from .parts import UnusableError, make_parts, read_failures, read_rows
from .plan import Picture, Plan, one_line

logger = logging.getLogger(__name__)

MISSING_IMAGES = "missing_images.txt"
LEFT_OUT_ROWS = "left_out_rows.txt"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options that all converters have."""
    parser.add_argument(
        "--images", type=Path, nargs="+", required=True, help="folders of the pictures, or of their folders"
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


def convert(name: str, plan: Plan, args: argparse.Namespace) -> set[str]:
    """Write the TSV files of a plan, missing_images.txt and left_out_rows.txt into `args.out`.

    What is complete already is left alone. While pictures are missing, the same command reads only those parts again
    that lack one; the others are kept until then, and take as much room as the TSV files.

    Args:
        name: of the data set; several conversions may write into one folder under different names.
        args: the options of `add_arguments`.

    Returns:
        The image-ids of pictures that are missing or unusable.

    Raises:
        ValueError: `--images` is no folder, or there is no row or no picture to be used.
    """
    folders, out, embed = [folder.resolve() for folder in args.images], args.out.resolve(), not args.paths
    for folder in args.images:
        if not folder.is_dir():
            raise ValueError(f"--images {folder}: expected a folder of pictures")
    digest = _digest(plan, folders, embed)
    stamp = out / f"{name}_settings.json"
    if stamp.exists() and json.loads(stamp.read_text(encoding="utf-8")) == {"sha256": digest}:
        logger.info("%s is complete already", args.out)
        return set()
    out.mkdir(parents=True, exist_ok=True)
    _report_left_out(plan, out)
    if not plan.pictures:
        raise ValueError(f"no row can be used: see {out / LEFT_OUT_ROWS}")
    parts = out / f".{name}-parts-{digest[:16]}"
    make_row = partial(_read_picture, folders=folders, out=out, embed=embed)
    make_parts(list(plan.pictures.values()), make_row, parts, args.workers, "reading pictures")
    failures = read_failures(parts)
    missing = plan.pictures.keys() - _assemble(parts, len(plan.pictures) - len(failures), plan, out)
    with atomic_write(out / MISSING_IMAGES) as file:
        file.writelines(f"{failure}\n" for failure in failures)
    for folder in out.glob(f".{name}-parts-*"):
        if missing and folder == parts:
            _forget_failures(parts)
        else:
            shutil.rmtree(folder)
    if len(missing) == len(plan.pictures):
        raise ValueError(f"no picture can be used: see {out / MISSING_IMAGES}")
    if missing:
        rows = sum(len(plan.rows[image_id]) for image_id in missing)
        counts = (len(missing), len(plan.pictures), rows, MISSING_IMAGES)
        logger.warning("left out: %d of %d pictures and their %d rows, see %s", *counts)
        if parts.exists():
            size = sum(part.stat().st_size for part in parts.iterdir()) / 1e9
            logger.warning("the same command will go on from %s (%.1f GB); not needed otherwise", parts, size)
    else:
        with atomic_write(stamp) as file:
            json.dump({"sha256": digest}, file)
    return missing


def _forget_failures(parts: Path) -> None:
    """Only parts that lack no picture are kept."""
    for failures in parts.glob("*.failed"):
        if failures.stat().st_size:
            failures.with_suffix(".tsv").unlink()
            failures.unlink()
    if not any(parts.iterdir()):
        parts.rmdir()


def _digest(plan: Plan, folders: Sequence[Path], embed: bool) -> str:
    """Tells conversions with different results apart."""
    digest = hashlib.sha256(repr((list(map(str, folders)), embed)).encode())
    for row in plan.left_out:
        digest.update(repr(row).encode())
    for image_id, picture in plan.pictures.items():
        digest.update(repr((picture, plan.rows[image_id])).encode())
    return digest.hexdigest()


def _report_left_out(plan: Plan, out: Path) -> None:
    with atomic_write(out / LEFT_OUT_ROWS) as file:
        file.writelines("\t".join(row).rstrip("\t") + "\n" for row in plan.left_out)
    for reason, count in Counter(row.reason for row in plan.left_out).most_common():
        logger.warning("left out: %d with %s, see %s", count, reason, LEFT_OUT_ROWS)


def _read_picture(picture: Picture, folders: Sequence[Path], out: Path, embed: bool) -> str:
    """image-id and picture column between tabs."""
    places = (folder / name for name in picture.files for folder in folders)
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        where = ", ".join(map(str, folders))
        raise UnusableError(f"{picture.image_id}\t{picture.files[0]}\tno such file in {where}")
    try:
        value = base64.urlsafe_b64encode(path.read_bytes()).decode() if embed else os.path.relpath(path, out)
        size = decode_image(value, out).size  # as training will
    except (ImageError, OSError) as error:
        raise UnusableError(f"{picture.image_id}\t{path}\t{one_line(str(error))}") from error
    if picture.size not in (None, size):
        sizes = "{} x {} pixels, annotated as {} x {}".format(*size, *(picture.size or ()))
        raise UnusableError(f"{picture.image_id}\t{path}\tanother picture than annotated: {sizes}")
    return f"{picture.image_id}\t{value}"


def _assemble(parts: Path, usable_pictures: int, plan: Plan, out: Path) -> set[str]:
    """The final TSV files from the parts; returns the ids of the pictures in them."""
    usable = set()
    files: dict[str, IO] = {}
    counts: Counter[str] = Counter()
    with ExitStack() as stack:
        for part in tqdm(read_rows(parts), total=usable_pictures, desc="writing rows", unit="picture"):
            image_id, value = part.split("\t")
            usable.add(image_id)
            for row in plan.rows[image_id]:
                if row.file not in files:
                    files[row.file] = stack.enter_context(atomic_write(out / row.file))
                files[row.file].write("\t".join((*row.before, value, *row.after)) + "\n")
                counts[row.file] += 1
    for name, count in counts.items():
        logger.info("%s: %d rows", name, count)
    return usable
