"""From drawn tokens to pictures, and their order."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from ..models.image_tokenizer import ImageTokenizer, to_images
from ..vocabulary import Vocabulary
from .picture_scorers import PictureScorer

# At a time, which bounds the memory of the tokenizer: 4 pictures of 256 x 256, 64 of 64 x 64.
DECODED_CODES = 4096


class DrawnSample(NamedTuple):
    """One of the samples for a caption."""

    hypothesis: dict[str, Tensor]  # as fairseq's generators return it
    picture: Image.Image
    score: float  # what it is ranked by; nan: not ranked


class Drawer:
    """Shows what outputs look like, and ranks them.

    Args:
        tokenizer: of the model's image codes.
        vocabulary: of the outputs.
        side: codes along a side of a picture.
        scorer: says how well pictures fit texts; None: nothing is ranked.
        compares_pictures: the scorer compares with the pictures that rows show (`--eval-clip-method ii_sim`).

    Raises:
        ValueError: if the tokenizer has other codes than the vocabulary.
    """

    def __init__(
        self,
        tokenizer: ImageTokenizer,
        vocabulary: Vocabulary,
        side: int,
        scorer: PictureScorer | None = None,
        compares_pictures: bool = False,
    ) -> None:
        if tokenizer.num_codes != vocabulary.num_codes:
            raise ValueError(
                f"the image tokenizer has {tokenizer.num_codes} codes, the vocabulary {vocabulary.num_codes}"
                " (--code-dict-size)"
            )
        self.tokenizer, self.vocabulary, self.side = tokenizer, vocabulary, side
        self.scorer, self.compares_pictures = scorer, compares_pictures

    @torch.no_grad()
    def pictures(self, outputs: Sequence[Tensor]) -> list[Image.Image]:
        """What outputs show, each side * side token ids of codes and `</s>`."""
        shown: list[Image.Image] = []
        at_a_time = max(1, DECODED_CODES // self.side**2)
        for start in range(0, len(outputs), at_a_time):
            tokens = torch.stack([output[:-1] for output in outputs[start : start + at_a_time]])
            codes = (tokens - self.vocabulary.code_range[0]).view(-1, self.side, self.side)
            # A reward is asked for in the middle of a training step, which may be in mixed precision.
            with torch.autocast(codes.device.type, enabled=False):
                shown += to_images(self.tokenizer.to(codes.device).decode(codes))
        return shown

    def ranked(
        self, hypotheses: Sequence[Sequence[dict[str, Tensor]]], sample: Mapping[str, Any]
    ) -> list[list[DrawnSample]]:
        """The samples of each row of a batch, best first; in the order given where nothing is ranked."""
        counts = [len(of_row) for of_row in hypotheses]
        flat = [hypothesis for of_row in hypotheses for hypothesis in of_row]
        pictures = self.pictures([hypothesis["tokens"] for hypothesis in flat])
        targets = sample["shown"] if self.compares_pictures else [texts[0] for texts in sample["references"]]
        scores = [math.nan] * len(flat)
        if self.scorer is not None:
            repeated = [target for target, count in zip(targets, counts) for _ in range(count)]
            scores = self.scorer(pictures, repeated).tolist()
        samples = iter(map(DrawnSample, flat, pictures, scores))
        rows = [[next(samples) for _ in range(count)] for count in counts]
        if self.scorer is None:
            return rows
        return [sorted(row, key=lambda s: s.score, reverse=True) for row in rows]
