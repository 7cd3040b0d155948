"""The public annotations of RefCOCO and RefCOCO+ (Yu et al., ECCV 2016) and of RefCOCOg (Mao et al., CVPR 2016):
`refs(*).p` and `instances.json`."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ..data import safe_pickle
from .annotation_files import coco_files, expecting
from .plan import Picture

_SPLITS = ("train", "val", "test", "testA", "testB")

_EXPECTED_REFS = (
    "refs(unc).p, refs(umd).p or refs(google).p: a list of references with ref_id, ann_id, split "
    f"({', '.join(_SPLITS)}) and sentences"
)
_EXPECTED_INSTANCES = (
    "instances.json: images with id, file_name, width and height, annotations with id, image_id and bbox"
)


class Phrase(NamedTuple):
    """A phrase that refers to one object; `box` is x, y, width, height in pixels of the picture."""

    phrase_id: str
    split: str
    picture: Picture
    text: str
    box: tuple[float, float, float, float]


def read_phrases(refs: Path, instances: Path) -> Iterator[Phrase]:
    """One for each sentence of each reference, named `<ref_id>_<number of the sentence from 0>`.

    The pickle is read by `safe_pickle`: it can hold plain containers, numbers and strings only.

    Raises:
        ValueError: a file of another kind, or a reference to an object that `instances` does not have.
    """
    objects = _read_objects(instances)
    with expecting(_EXPECTED_REFS, refs):
        phrases = [phrase for ref in safe_pickle.load(refs) for phrase in _sentences(ref)]
    for phrase_id, split, text, ann_id in phrases:
        if ann_id not in objects:
            raise ValueError(
                f"{instances}: has no object {ann_id}, which phrase {phrase_id} of {refs} refers to; expected the "
                "instances.json of the same data set"
            )
        yield Phrase(phrase_id, split, objects[ann_id][0], text, objects[ann_id][1])


def _sentences(ref: dict[str, Any]) -> Iterator[tuple[str, str, str, int]]:
    """Phrase-id, split, text and object-id of a reference's sentences."""
    if ref["split"] not in _SPLITS:
        raise ValueError(f"split {ref['split']!r} of reference {ref['ref_id']}")
    for index, sentence in enumerate(ref["sentences"]):
        yield f"{ref['ref_id']}_{index}", ref["split"], sentence["sent"].strip(), int(ref["ann_id"])


def _read_objects(path: Path) -> dict[int, tuple[Picture, tuple[float, float, float, float]]]:
    """Picture and box by object-id."""
    with expecting(_EXPECTED_INSTANCES, path):
        content = json.loads(path.read_bytes())
        pictures = {
            image["id"]: Picture(
                str(image["id"]), coco_files(image["file_name"]), (int(image["width"]), int(image["height"]))
            )
            for image in content["images"]
        }
        objects = {}
        for annotation in content["annotations"]:
            x, y, width, height = map(float, annotation["bbox"])
            objects[int(annotation["id"])] = (pictures[annotation["image_id"]], (x, y, width, height))
        return objects
