"""Examples, the dataset over them, and the one collater.

An `Example` is all that anything after it knows of a row: the criterion, the generator and the metric never ask which
task it came from.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from fairseq.data import FairseqDataset
from fairseq.data.data_utils import collate_tokens
from PIL import Image
from torch import Tensor

from ..generation.answer_space import AnswerSpace
from .bad_rows import BadRows
from .images import ImageError
from .tsv import RowError, TsvFile

logger = logging.getLogger(__name__)

# For `fairseq-generate` without --batch-size; fairseq's own fallback counts tokens, and pictures have none.
DEFAULT_BATCH_SIZE = 16
# A file that has begun with so many bad rows is not what the task expects.
ROWS_TRIED = 1000


@dataclass(kw_only=True)
class Example:
    """One row as the model sees it. T source tokens, t target tokens, S side of the picture in pixels."""

    id: str
    source: Tensor  # [T], <s> ... </s>
    target: Tensor  # [t], ends with </s>; padding where nothing is learnt
    prev_output: Tensor  # [t], starts with <s>
    image: Tensor | None = None  # [3, S, S], normalised
    image_2: Tensor | None = None
    code_target: bool = False  # the target is image codes
    prompt: Tensor | None = None  # tokens that generation is forced to start with, after <s>
    weight: float = 1.0  # of this row in the loss
    references: Sequence[str] = field(default_factory=tuple)  # texts that an output is scored against
    answers: AnswerSpace | None = None  # what the output may be; one object for all rows of a batch
    shown: Image.Image | None = None  # the picture that a drawing is compared with


Batch = dict[str, Any]


def collate(examples: Sequence[Example], pad: int) -> Batch:
    """Batch examples as fairseq's criterions and generators take them.

    Everything is right-padded. Rows of one picture share it: `patch_images` has each once then, and `patch_rows` [B]
    says which is whose. A row without a picture in a batch with pictures gets zeros and a False in
    `patch_masks`; a batch without pictures has neither key, and likewise for codes, prompts and weights.

    Returns:
        `id` (numpy array of strings), `nsentences`, `ntokens` (of targets), `net_input` (arguments of the model),
        `target` [B, t], `references` (list of lists), and where a row has them `conf` [B], `prefix_tokens` [B, n],
        `answer_space`, `shown` (list).
    """
    source = collate_tokens([e.source for e in examples], pad)
    target = collate_tokens([e.target for e in examples], pad)
    net_input = {
        "src_tokens": source,
        "src_lengths": source.ne(pad).sum(dim=1),
        "prev_output_tokens": collate_tokens([e.prev_output for e in examples], pad),
    }
    net_input |= _pictures(examples)
    if any(e.code_target for e in examples):
        net_input["code_masks"] = torch.tensor([e.code_target for e in examples])
    batch: Batch = {
        "id": np.array([e.id for e in examples]),
        "nsentences": len(examples),
        "ntokens": int(target.ne(pad).sum()),
        "net_input": net_input,
        "target": target,
        "references": [list(e.references) for e in examples],
    }
    if any(e.weight != 1.0 for e in examples):
        batch["conf"] = torch.tensor([e.weight for e in examples])
    if any(e.prompt is not None for e in examples):
        nothing = torch.tensor([], dtype=torch.long)
        batch["prefix_tokens"] = collate_tokens(
            [nothing if e.prompt is None else e.prompt for e in examples], pad
        )
    if examples[0].shown is not None:
        batch["shown"] = [e.shown for e in examples]
    if examples[0].answers is not None:
        batch["answer_space"] = examples[0].answers
    return batch


def _pictures(examples: Sequence[Example]) -> dict[str, Tensor]:
    """`patch_images`, `patch_masks`, and where rows have them `patch_images_2`, or where they share them `patch_rows`.

    Rows share a picture whose tensor is one object.
    """
    images = _without_gaps([e.image for e in examples])
    images_2 = _without_gaps([e.image_2 for e in examples])
    batched: dict[str, Tensor] = {}
    if images_2:
        batched["patch_images_2"] = torch.stack(images_2)
    elif images:
        place: dict[int, int] = {}
        rows = [place.setdefault(id(image), len(place)) for image in images]
        if len(place) < len(rows):
            images = [images[rows.index(i)] for i in range(len(place))]
            batched["patch_rows"] = torch.tensor(rows)
    if images:
        batched["patch_images"] = torch.stack(images)
        batched["patch_masks"] = torch.tensor([e.image is not None for e in examples])
    return batched


def _without_gaps(images: Sequence[Tensor | None]) -> list[Tensor]:
    """Zeros for what is missing; nothing at all if all are."""
    present = [image for image in images if image is not None]
    if not present:
        return []
    blank = torch.zeros_like(present[0])
    return [blank if image is None else image for image in images]


class ExampleDataset(FairseqDataset):
    """Rows of a TSV file as examples, by random access.

    A row that can't be used is left out of its batch, counted, and listed by `bad_rows`.

    Args:
        rows: the file.
        build: makes an example of a row; raises ValueError (or a subclass) for one that can't be used.
        pad: id of the padding token.
        shuffle: another order in every epoch, from fairseq's seed and the epoch's number.
        block: shuffling keeps so many consecutive rows together (those of a picture).
        bad_rows: where unusable rows go; may raise to stop at the first.

    Raises:
        ValueError: if none of the first `ROWS_TRIED` rows can be used.
    """

    def __init__(
        self,
        rows: TsvFile,
        build: Callable[[list[str]], Example],
        pad: int,
        shuffle: bool,
        bad_rows: BadRows,
        block: int = 1,
    ) -> None:
        self.rows, self.build, self.pad, self.shuffle, self.bad_rows = rows, build, pad, shuffle, bad_rows
        self.block = block
        self._stand_in = self._first_usable()

    def _first_usable(self) -> Example:
        """Also what an all-bad batch is made of, with nothing to learn: fairseq needs a batch of the right form."""
        tried = min(len(self.rows), ROWS_TRIED)
        for i in range(tried):
            example = self[i]
            if example is not None:
                return example
        raise ValueError(
            f"{self.rows.path}: of its {len(self.rows)} rows none of the first {tried} can be used (do"
            f" --selected-cols name the right columns?). {self.bad_rows.summary()}"
        )

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Example | None:
        try:
            return self.build(self.rows[index])
        except RowError as error:
            self.bad_rows.add(error)
        except (ImageError, ValueError) as error:
            self.bad_rows.add(self.rows.row_error(index, str(error)))
        return None

    def collater(self, samples: Sequence[Example | None]) -> Batch:
        """Batch what is usable; `skipped_rows` counts the rest."""
        if not samples:
            return {}
        examples = [s for s in samples if s is not None]
        if examples:
            batch = collate(examples, self.pad)
        else:
            batch = collate([self._stand_in], self.pad)
            batch["target"] = torch.full_like(batch["target"], self.pad)
            batch |= {"id": batch["id"][:0], "nsentences": 0, "ntokens": 0, "references": [[]]}
        batch["skipped_rows"] = len(samples) - len(examples)
        return batch

    def ordered_indices(self) -> np.ndarray:
        """Row numbers in the order of the epoch; fairseq seeds numpy with seed + epoch around this call."""
        rows = np.arange(len(self))
        if not self.shuffle:
            return rows
        blocks = np.random.permutation(-(-len(self) // self.block))
        order = (blocks[:, None] * self.block + np.arange(self.block)).ravel()
        return order[order < len(self)]

    def batch_by_size(
        self,
        indices: Sequence[int],
        max_tokens: int | None = None,
        max_sentences: int | None = None,
        required_batch_size_multiple: int = 1,
    ) -> list[np.ndarray]:
        """Batches of exactly `max_sentences` consecutive rows (lengths are not known before pictures are read)."""
        size = max_sentences or DEFAULT_BATCH_SIZE
        return [np.asarray(indices[i : i + size]) for i in range(0, len(indices), size)]

    def filter_indices_by_size(self, indices: np.ndarray, max_sizes: Any) -> tuple[np.ndarray, list[int]]:
        """Nothing is filtered: sources and targets are cut when they are made."""
        return indices, []

    def num_tokens(self, index: int) -> int:
        """A constant: the length of a row is not known before it is read."""
        return 1

    size = num_tokens

    @property
    def can_reuse_epoch_itr_across_epochs(self) -> bool:
        """Every epoch has its own order."""
        return not self.shuffle
