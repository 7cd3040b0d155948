"""Turns the public VQA v2 files (and Visual Genome's questions) and their pictures into the TSV files of the vqa task.

Writes vqa_train.tsv (a row for each distinct answer of a question that is in the answer list), vqa_val.tsv and
vqa_test.tsv (a row for each question, all its answers joined by "&&"; none for unannotated test questions) and the
answer list, trainval_ans2label.json. Columns: question-id, image-id, question, answers, object labels (empty),
picture. An answer is written as `0.6|!+cat`: its official soft score and its text, normalised as the official
evaluation does. Questions that give no row are listed with the reason in left_out_rows.txt, pictures that are
missing or can't be read in missing_images.txt.

An interrupted run goes on where it was when it is started again with the same arguments.
"""

import argparse
import hashlib
import json
import logging
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path

from ..data.answer_list import read_answers
from ..data.text_normalize import REFERENCE_SEPARATOR
from ..files import atomic_write
from ..metrics.vqa_accuracy import CONFIDENCE_SEPARATOR, normalise_answer, soft_scores
from . import conversion
from .annotation_files import without_separator
from .plan import Plan, Row
from .vqa_annotations import Question, read_questions, read_visual_genome

logger = logging.getLogger(__name__)

ANSWER_LIST = "trainval_ans2label.json"
# As published: an answer is a class if at least so many questions have it; so many questions validate.
MIN_FREQUENCY = 9
HELD_OUT_QUESTIONS = 10_000


@cache  # most of the millions of answers are the same few
def clean_answer(text: str) -> str:
    return without_separator(normalise_answer(text))


def frequent_answers(questions: Iterable[Question], min_frequency: int) -> list[str]:
    """Answers that are the most frequent one of at least `min_frequency` questions; the most frequent first."""
    majorities = (question.annotation.majority for question in questions if question.annotation)
    counts = Counter(map(clean_answer, majorities))
    chosen = [answer for answer, count in counts.items() if answer and count >= min_frequency]
    return sorted(chosen, key=lambda answer: (-counts[answer], answer))


def hold_out(questions: Iterable[Question], count: int) -> set[str]:
    """Image-ids of validation pictures with `count` questions or a few more, chosen by a hash of the id.

    Whole pictures are held out, so that none is trained on that validates.
    """
    sizes = Counter(question.picture.image_id for question in questions if question.split == "val")
    held_out: set[str] = set()
    total = 0
    for image_id in sorted(sizes, key=lambda image_id: hashlib.sha256(image_id.encode()).digest()):
        if total >= count:
            break
        held_out.add(image_id)
        total += sizes[image_id]
    return held_out


def assign_splits(questions: Sequence[Question], train_on_val: int | None) -> list[Question]:
    """Validation questions but `train_on_val` become training questions; with None they all validate."""
    if train_on_val is None:
        return list(questions)
    held_out = hold_out(questions, train_on_val)
    return [
        question._replace(split="train")
        if question.split == "val" and question.picture.image_id not in held_out
        else question
        for question in questions
    ]


def rated_answers(question: Question) -> dict[str, float]:
    """Soft score of each distinct answer, the best first."""
    given = list(map(clean_answer, question.annotation.answers)) if question.annotation else []
    scores = soft_scores(given)
    return {answer: scores[answer] for answer in sorted(scores, key=lambda key: -scores[key]) if answer}


def _why_left_out(
    question: Question,
    scores: Mapping[str, float],
    answers: Collection[str],
    held_out: Collection[int | None],
) -> str | None:
    if not question.text.strip("? "):
        return "an empty question"
    if question.split != "test" and not scores:
        return "no answer"
    if question.split != "train":
        return None
    if question.coco_id in held_out:
        return "a picture that validates or tests"
    return None if scores.keys() & answers else "no answer in the answer list"


def plan_rows(questions: Sequence[Question], answers: Collection[str]) -> Plan:
    """The rows of questions by their splits; pictures that validate or test are not trained on."""
    plan = Plan()
    held_out = {question.coco_id for question in questions if question.split != "train"}
    for question in questions:
        scores = rated_answers(question)
        reason = _why_left_out(question, scores, answers, held_out)
        if reason:
            plan.leave_out(question.question_id, reason, " / ".join((question.text, *scores)))
            continue
        texts = {
            answer: f"{round(score, 4)}{CONFIDENCE_SEPARATOR}{answer}" for answer, score in scores.items()
        }
        columns = [REFERENCE_SEPARATOR.join(texts.values())]
        if question.split == "train":
            columns = [text for answer, text in texts.items() if answer in answers]
        for column in columns:
            before = (question.question_id, question.picture.image_id, question.text, column, "")
            plan.add(question.picture, Row(f"vqa_{question.split}.tsv", before))
    return plan


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--questions", type=Path, nargs="+", required=True, help="v2_OpenEnded_mscoco_*.json")
    parser.add_argument(
        "--annotations", type=Path, nargs="+", default=[], help="v2_mscoco_*_annotations.json"
    )
    parser.add_argument(
        "--visual-genome",
        type=Path,
        nargs=2,
        metavar=("question_answers.json", "image_data.json"),
        help="more training questions, of Visual Genome's pictures",
    )
    parser.add_argument(
        "--train-on-val",
        type=int,
        nargs="?",
        const=HELD_OUT_QUESTIONS,
        metavar="N",
        help=f"train on the validation questions too, but for about N (default {HELD_OUT_QUESTIONS})",
    )
    parser.add_argument(
        "--answers", type=Path, help="file of the answer list (default: made of the annotations)"
    )
    parser.add_argument(
        "--min-frequency",
        type=int,
        default=MIN_FREQUENCY,
        help=f"questions that an answer of the list has at least (default {MIN_FREQUENCY})",
    )
    conversion.add_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Raises ValueError if a file is of another kind, or no answer, question or picture can be used."""
    questions = read_questions(args.questions, args.annotations)
    answers = read_answers(args.answers) if args.answers else frequent_answers(questions, args.min_frequency)
    if args.visual_genome:
        questions += read_visual_genome(*args.visual_genome)
    questions = assign_splits(questions, args.train_on_val)
    for split, count in Counter(question.split for question in questions).items():
        logger.info("%s: %d questions", split, count)
    logger.info("answer list: %d answers", len(answers))
    if answers:
        args.out.mkdir(parents=True, exist_ok=True)
        with atomic_write(args.out / ANSWER_LIST) as file:
            json.dump({answer: index for index, answer in enumerate(answers)}, file)
    elif any(question.split == "train" for question in questions):
        raise ValueError(
            f"no answer is the most frequent one of {args.min_frequency} questions: see --min-frequency"
        )
    conversion.convert("vqa", plan_rows(questions, set(answers)), args)
