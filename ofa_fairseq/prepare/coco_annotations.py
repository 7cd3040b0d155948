"""The public caption annotations: COCO's own files and the split file of Karpathy and Fei-Fei (CVPR 2015)."""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class AnnotatedPicture:
    """`split` is train, val or test; `files` are the places, in the picture folder, where it may lie."""

    image_id: str
    split: str
    files: tuple[str, ...]
    captions: tuple[str, ...]


# The split file's names; the published models train on "restval" too.
_SPLITS = {"train": "train", "restval": "train", "val": "val", "test": "test"}

_EXPECTED = (
    "expected COCO captions (captions_train2014.json: images with id and file_name, annotations with image_id and "
    "caption) or a Karpathy split file (dataset_coco.json: images with filename, split and sentences)"
)


def read_annotations(files: Iterable[Path], split_file: Path | None = None) -> list[AnnotatedPicture]:
    """All pictures of the files, which may be of both kinds, in their order.

    The pictures of an official file are all in the split that the file's name tells, train or val. A split file puts
    them where it says, and leaves out those that it does not name; given alone, it is the annotation file too.

    Raises:
        ValueError: a file of another kind, a picture in two files, or an official file with no split in its name.
    """
    split_pictures = _read(split_file) if split_file else []
    pictures = [picture for file in files for picture in _read(file)] or split_pictures
    if split_file:
        split_of = {picture.image_id: picture.split for picture in split_pictures}
        pictures = [
            replace(picture, split=split_of[picture.image_id])
            for picture in pictures
            if picture.image_id in split_of
        ]
    seen: set[str] = set()
    for picture in pictures:
        if picture.image_id in seen:
            raise ValueError(
                f"image {picture.image_id} is in the annotation files twice: give each file once"
            )
        seen.add(picture.image_id)
    return pictures


def _read(path: Path) -> list[AnnotatedPicture]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return _read_official(content, path) if "annotations" in content else _read_karpathy(content)
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: {_EXPECTED}; got {error!r}") from error


def _read_karpathy(content: dict[str, Any]) -> list[AnnotatedPicture]:
    pictures = []
    for image in content["images"]:
        # The split files of other data sets have no folder and no COCO id.
        folder, name = image.get("filepath"), image["filename"]
        pictures.append(
            AnnotatedPicture(
                image_id=str(image.get("cocoid", image.get("imgid", name))),
                split=_SPLITS[image["split"]],
                files=(f"{folder}/{name}", name) if folder else (name,),
                captions=tuple(sentence["raw"] for sentence in image["sentences"]),
            )
        )
    return pictures


def _read_official(content: dict[str, Any], path: Path) -> list[AnnotatedPicture]:
    part = re.search(r"(train|val)(\d*)", path.name)
    if not part:
        raise ValueError(
            f"{path}: expected a file name that tells the split, such as captions_train2014.json"
        )
    captions: dict[Any, list[str]] = {image["id"]: [] for image in content["images"]}
    for annotation in content["annotations"]:
        captions[annotation["image_id"]].append(annotation["caption"])
    return [
        AnnotatedPicture(
            image_id=str(image["id"]),
            split=part[1],
            files=(f"{part[0]}/{image['file_name']}", image["file_name"]),
            captions=tuple(captions[image["id"]]),
        )
        for image in content["images"]
    ]
