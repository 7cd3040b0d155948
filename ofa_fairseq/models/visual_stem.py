"""The visual stem: the first three stages of a ResNet (v1.5), built from torchvision's blocks.

Section 2.1 of the OFA paper: features of a ResNet's third stage stand for image patches of 16 x 16 pixels.
Key names equal torchvision's (`conv1`, `bn1`, `layer1.0.conv1` ...), so ImageNet files load too.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck, ResNet
from torchvision.ops import FrozenBatchNorm2d

from .layers import DropPath, drop_path_rates


class StemSize(NamedTuple):
    """Blocks of each stage, and the inner width of the first stage's bottlenecks (it doubles by stage)."""

    blocks: tuple[int, int, int]
    width: int = 64


# The released "resnet18" and "resnet34" are built of bottlenecks too, so that every stem ends in 1024 channels;
# "resnet_nano" is ours, for the embedded data.
STEMS = {
    "resnet_nano": StemSize((1, 1, 1), width=32),
    "resnet18": StemSize((2, 2, 2)),
    "resnet34": StemSize((3, 4, 6)),
    "resnet50": StemSize((3, 4, 6)),
    "resnet101": StemSize((3, 4, 23)),
    "resnet152": StemSize((3, 8, 36)),
}
STEM_CHANNELS = 1024


class StemBlock(Bottleneck):
    """torchvision's bottleneck with stochastic depth on its residual branch."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        self.drop_path: nn.Module = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, 4 * planes, h / stride, w / stride]."""
        identity = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        return self.relu(self.drop_path(self.bn3(self.conv3(x))) + identity)


def norm_layer(sync: bool, frozen: bool) -> Callable[[int], nn.Module]:
    """The stem's normalisation. `sync` wins over `frozen`, and its epsilon of 1e-3 is the released one."""
    if sync:
        return partial(nn.SyncBatchNorm, eps=1e-3)
    return FrozenBatchNorm2d if frozen else nn.BatchNorm2d


class VisualStem(ResNet):
    """Pictures [B, 3, h, w] -> features [B, 1024, ceil(h / 16), ceil(w / 16)].

    Args:
        resnet_type: a row of `STEMS`.
        drop_path_rate: rate of each stage's last block; the rates grow linearly from 0 within a stage.
        sync_bn: statistics over all devices.
        freeze_bn: fixed statistics, and gains and biases as buffers; convolutions still train (released
            meaning of `--freeze-resnet`).

    Raises:
        ValueError: for an unknown `resnet_type`.
    """

    def __init__(
        self,
        resnet_type: str,
        drop_path_rate: float = 0.0,
        sync_bn: bool = False,
        freeze_bn: bool = False,
    ) -> None:
        if resnet_type not in STEMS:
            raise ValueError(
                f"--resnet-type {resnet_type}: expected one of {', '.join(STEMS)}"
                " (ViT-B/16 was in no released recipe and is not supported)"
            )
        blocks, width = STEMS[resnet_type]
        # torchvision builds four stages; the last, as small as can be, is thrown away.
        super().__init__(
            StemBlock, [*blocks, 1], norm_layer=norm_layer(sync_bn, freeze_bn), width_per_group=width
        )
        del self.layer4, self.avgpool, self.fc
        for stage in (self.layer1, self.layer2, self.layer3):
            for block, rate in zip(stage, drop_path_rates(drop_path_rate, len(stage))):
                block.drop_path = DropPath(rate) if rate > 0 else nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, h, w], normalised -> [B, 1024, ceil(h / 16), ceil(w / 16)]."""
        # Channels-last features are faster on CPUs and tensor cores. Weights keep their layout: fairseq
        # flattens them.
        images = images.to(self.conv1.weight.dtype).contiguous(memory_format=torch.channels_last)
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        return self.layer3(self.layer2(self.layer1(x)))

    def load_pretrained(self, path: str | Path) -> None:
        """Load a state dict of the stem (`--resnet-model-path`); a whole torchvision ResNet's works too."""
        state = torch.load(path, map_location="cpu", weights_only=True)
        state = {k: v for k, v in state.items() if not k.startswith(("layer4.", "fc."))}
        if isinstance(self.bn1, FrozenBatchNorm2d):
            state = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
        self.load_state_dict(state, strict=True)
