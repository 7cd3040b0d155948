"""What the text vocabulary of the embedded data is learned from.

A model that was trained on captions is the start for the other tasks on these scenes, so the words of their
prompts, questions and answers are in its vocabulary from the beginning. All other words are encoded in
smaller pieces.
"""

from collections.abc import Iterable, Iterator

from ...instruction import RELEASED, parse
from .captions import captions
from .scenes import COLOURS, DIGIT_WORDS, QUADRANTS, SIZES, Scene

_QUESTIONS_AND_ANSWERS = (
    "how many digits are there in the picture",
    "how many red digits does the image show",
    "which digit is at the top left",
    "which is larger or smaller than the other",
    "what colour is the seven",
    "what is above the green seven and what is below it",
    "where is the small blue three",
    "is there a red seven",
    "is it large or small",
    "describe the seven",
    "the three left of the green seven",
    "the one right of it next to the other",
    "the digit in the corner on the left side",
    "no digit is red but all are small",
    "some have the same colour and others a different size",
    "at least two most three more fewer than four",
    "every each both another not none nothing only exactly between",
    "yes no maybe true false",
    "the sum of the digits is ten eleven twelve",
    "entailment neutral contradiction",
    "anna wrote every red digit and ben every blue digit",
    "the seven was written by eva but not by tom",
)


def vocabulary_texts(scenes: Iterable[Scene]) -> Iterator[str]:
    """Every text that the text vocabulary should encode in whole words."""
    for scene in scenes:
        yield from captions(scene)
    for line in RELEASED.values():
        yield from (part for part in parse(line).source if isinstance(part, str))
    yield from _QUESTIONS_AND_ANSWERS
    yield from (*DIGIT_WORDS, *COLOURS, *SIZES, *QUADRANTS, *map(str, range(10)))
