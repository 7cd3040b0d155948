"""The public files of VQA v2 (Goyal et al., CVPR 2017) and of Visual Genome's questions (Krishna et al., IJCV 2017)."""

import json
import logging
import re
from collections.abc import Iterable
from pathlib import Path
from sys import intern
from typing import Any, NamedTuple

from .annotation_files import coco_files, expecting, in_entry
from .plan import Picture

logger = logging.getLogger(__name__)

_EXPECTED_QUESTIONS = (
    "VQA questions (v2_OpenEnded_mscoco_train2014_questions.json: questions with question_id, image_id and "
    "question; data_subtype or the file's name tells the split)"
)
_EXPECTED_ANNOTATIONS = (
    "VQA annotations (v2_mscoco_train2014_annotations.json: annotations with question_id and answers)"
)
_EXPECTED_GENOME = "Visual Genome's question_answers.json (a list of pictures with id and qas)"
_EXPECTED_GENOME_IMAGES = (
    "Visual Genome's image_data.json (a list of pictures with image_id, url and coco_id)"
)


class Annotation(NamedTuple):
    """What all annotators of a question answered, and the most frequent of their answers."""

    answers: tuple[str, ...]
    majority: str


class Question(NamedTuple):
    """`split` is train, val or test; `coco_id` tells which pictures of two data sets are the same."""

    question_id: str
    split: str
    picture: Picture
    coco_id: int | None
    text: str
    annotation: Annotation | None


def read_questions(question_files: Iterable[Path], annotation_files: Iterable[Path]) -> list[Question]:
    """The questions of VQA v2; those of the test split need no annotations.

    Raises:
        ValueError: a file of another kind, a question or annotation in two files, or a file of training or
            validation questions none of which is annotated.
    """
    annotations = _read_annotations(annotation_files)
    questions: dict[str, Question] = {}
    for path in question_files:
        with expecting(_EXPECTED_QUESTIONS, path):
            found = _parse_questions(json.loads(path.read_bytes()), path.name, annotations)
        if not any(question.annotation or question.split == "test" for question in found):
            raise ValueError(f"{path}: expected the annotations of these questions among --annotations")
        for question in found:
            if question.question_id in questions:
                raise ValueError(f"{path}: question {question.question_id} was read before: give it once")
            questions[question.question_id] = question
    unused = len(annotations.keys() - questions.keys())
    if unused:
        logger.warning("%d annotations are of questions that were not given", unused)
    return list(questions.values())


def _parse_questions(content: Any, name: str, annotations: dict[str, Annotation]) -> list[Question]:
    subset = re.search(r"(train|val|test)(?:-dev)?(\d*)", content.get("data_subtype") or name)
    if not subset:
        raise ValueError("no split")
    split, year = subset.groups()
    questions = []
    for number, entry in enumerate(content["questions"], 1):
        with in_entry(number):
            question_id, image_id = str(entry["question_id"]), int(entry["image_id"])
            text = entry["question"].strip()
        picture = Picture(str(image_id), coco_files(f"COCO_{split}{year}_{image_id:012}.jpg"))
        questions.append(Question(question_id, split, picture, image_id, text, annotations.get(question_id)))
    return questions


def _read_annotations(files: Iterable[Path]) -> dict[str, Annotation]:
    annotations: dict[str, Annotation] = {}
    for path in files:
        with expecting(_EXPECTED_ANNOTATIONS, path):
            for number, entry in enumerate(json.loads(path.read_bytes())["annotations"], 1):
                with in_entry(number):
                    question_id = str(entry["question_id"])
                    # Interned: millions of answers, most of them the same few.
                    answers = tuple(intern(answer["answer"].strip()) for answer in entry["answers"])
                if question_id in annotations:
                    raise ValueError(f"question {question_id} a second time")
                majority = entry.get("multiple_choice_answer") or max(answers, key=answers.count, default="")
                annotations[question_id] = Annotation(answers, majority)
    return annotations


def read_visual_genome(question_answers: Path, image_data: Path) -> list[Question]:
    """Visual Genome's questions, each with one answer, as training questions; "vg" marks their ids.

    Pictures that are in COCO too may be taken from there. Raises ValueError for files of another kind.
    """
    with expecting(_EXPECTED_GENOME_IMAGES, image_data):
        images = {int(entry["image_id"]): entry for entry in json.loads(image_data.read_bytes())}
        pictures = {image_id: _genome_picture(image_id, entry) for image_id, entry in images.items()}
    with expecting(_EXPECTED_GENOME, question_answers):
        questions = []
        for entry in json.loads(question_answers.read_bytes()):
            image_id = int(entry["id"])
            if image_id not in images:
                raise ValueError(f"picture {image_id}, which {image_data} does not have")
            for pair in entry["qas"]:
                text, answer = pair["question"].strip(), pair["answer"].strip()
                questions.append(
                    Question(
                        f"vg{pair['qa_id']}",
                        "train",
                        pictures[image_id],
                        images[image_id]["coco_id"],
                        text,
                        Annotation((answer,), answer),
                    )
                )
    return questions


def _genome_picture(image_id: int, entry: dict[str, Any]) -> Picture:
    folder, name = entry["url"].split("/")[-2:]  # https://.../VG_100K_2/1.jpg
    files: tuple[str, ...] = (f"{folder}/{name}", name)
    if entry["coco_id"] is not None:
        for subset in ("train2014", "val2014"):
            files += coco_files(f"COCO_{subset}_{entry['coco_id']:012}.jpg")
    return Picture(f"vg{image_id}", files)
