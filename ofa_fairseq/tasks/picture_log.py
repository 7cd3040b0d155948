"""A grid of validation pictures with what the model says of them, in TensorBoard."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..data.drawing import contact_sheet
from ..data.example import Batch
from ..data.image_transforms import SquareResize

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
        self._wanted = 0
        self._pictures: list[Image.Image] = []
        self._texts: list[str] = []

    def begin(self) -> None:
        """A new validation starts."""
        self._wanted = GRID[0] * GRID[1] if self.folder else 0
        self._pictures, self._texts = [], []

    def add(self, sample: Batch, texts: Sequence[str], transform: SquareResize) -> None:
        """Take what is still wanted of a batch."""
        wanted = self._wanted - len(self._pictures)
        if wanted <= 0 or "patch_images" not in sample["net_input"]:
            return
        inputs = sample["net_input"]
        images, rows = inputs["patch_images"], inputs.get("patch_rows")
        images = (images if rows is None else images[rows[:wanted]])[:wanted].float().cpu()
        self._pictures += [transform.picture(image) for image in images]
        self._texts += texts[:wanted]

    def write(self, step: int) -> None:
        """The validation has ended after `step` updates."""
        if not self._pictures:
            return
        from torch.utils.tensorboard import SummaryWriter

        side = self._pictures[0].width
        sheet = contact_sheet(self._pictures, self._texts, columns=GRID[1], scale=max(1, 160 // side))
        with SummaryWriter(str(Path(self.folder) / "valid_pictures")) as writer:
            writer.add_image("pictures", np.asarray(sheet), step, dataformats="HWC")
