"""A grid of validation pictures with what the model says of them, in TensorBoard."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..data.drawing import contact_sheet

GRID = (3, 4)  # rows, columns


class PictureLog:
    """Collects the first pictures of a validation and writes them once.

    Args:
        root: the run's configuration; nothing is written without `--tensorboard-logdir`, or on other ranks than 0.
    """

    def __init__(self, root: Any) -> None:
        common = None if root is None else root.common
        self.folder = "" if common is None else common.tensorboard_logdir or ""
        if self.folder and root.distributed_training.distributed_rank != 0:
            self.folder = ""
        self._size = 0
        self._pictures: list[Image.Image] = []
        self._texts: list[str] = []

    def begin(self) -> None:
        """A new validation starts."""
        self._size = GRID[0] * GRID[1] if self.folder else 0
        self._pictures, self._texts = [], []

    @property
    def wanted(self) -> int:
        """How many pictures are still wanted."""
        return self._size - len(self._pictures)

    def add(self, pictures: Sequence[Image.Image], texts: Sequence[str]) -> None:
        """Take what is still wanted of these pictures and as many texts."""
        wanted = self.wanted
        self._pictures += pictures[:wanted]
        self._texts += texts[: min(wanted, len(pictures))]

    def write(self, step: int) -> None:
        """The validation has ended after `step` updates."""
        if not self._pictures:
            return
        from torch.utils.tensorboard import SummaryWriter

        side = self._pictures[0].width
        sheet = contact_sheet(self._pictures, self._texts, columns=GRID[1], scale=max(1, 160 // side))
        with SummaryWriter(str(Path(self.folder) / "valid_pictures")) as writer:
            writer.add_image("pictures", np.asarray(sheet), step, dataformats="HWC")
