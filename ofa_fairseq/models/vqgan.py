"""Encoder and decoder of the VQGAN image tokenizer (Esser et al. 2021), with the state-dict keys of its public release.

Levels are counted from the finest: level i works at side / 2^i. Both halves are fully convolutional.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

EPSILON = 1e-6
NORM_GROUPS = 32
NORMS = ("group", "position")


@dataclass(frozen=True)
class Architecture:
    """The sizes that encoder and decoder share; the names are those of the released YAML's `ddconfig`.

    The last three are additions for small tokenizers. With a patch size above 1 the network sees squares of that many
    pixels along a side as the channels of one position, so that no layer works at the full size. The norm "position"
    is over the channels of each position alone, so that a part of a picture looks the same wherever it is cut out.
    Without the middle there is no attention at the coarsest level.

    Raises ValueError for another norm, or channels that the 32 groups of the norm "group" can't share.
    """

    ch: int
    ch_mult: tuple[int, ...]
    num_res_blocks: int
    z_channels: int
    resolution: int
    attn_resolutions: tuple[int, ...] = ()
    patch_size: int = 1
    norm: str = "group"
    middle: bool = True

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise ValueError(f"norm {self.norm!r}: expected one of {', '.join(NORMS)}")
        if self.norm == "group" and self.ch % NORM_GROUPS:
            raise ValueError(f"ch {self.ch}: expected a multiple of {NORM_GROUPS} with the norm 'group'")

    @property
    def channels(self) -> list[int]:
        """Of each level."""
        return [self.ch * multiple for multiple in self.ch_mult]

    @property
    def factor(self) -> int:
        """Pixels per position of the coarsest level, along a side."""
        return self.patch_size * 2 ** (len(self.ch_mult) - 1)

    def has_attention(self, level: int) -> bool:
        return self.resolution // self.patch_size // 2**level in self.attn_resolutions

    def build_norm(self, channels: int) -> nn.Module:
        if self.norm == "position":
            return PositionNorm(channels, eps=EPSILON)
        return nn.GroupNorm(NORM_GROUPS, channels, eps=EPSILON)

    def build_middle(self, channels: int) -> nn.Module:
        return Middle(self, channels) if self.middle else nn.Identity()


class PositionNorm(nn.LayerNorm):
    """Over the channels of each position of [B, C, H, W]."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class ResidualBlock(nn.Module):
    def __init__(self, arch: Architecture, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm1 = arch.build_norm(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2 = arch.build_norm(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        if inputs != outputs:
            self.nin_shortcut = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class AttentionBlock(nn.Module):
    """One head over all positions."""

    def __init__(self, arch: Architecture, channels: int) -> None:
        super().__init__()
        self.norm = arch.build_norm(channels)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (project(h).flatten(2).mT.unsqueeze(1) for project in (self.q, self.k, self.v))
        h = F.scaled_dot_product_attention(q, k, v).squeeze(1).mT.reshape(x.shape)
        return x + self.proj_out(h)


class Downsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))  # zeros at the right and below only


class Upsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """Residual blocks at one size, each with attention behind it where the level has that; then another size, maybe."""

    downsample: Downsample
    upsample: Upsample

    def __init__(self, arch: Architecture, channels: Sequence[int], attention: bool) -> None:
        super().__init__()
        self.block = nn.ModuleList(ResidualBlock(arch, before, after) for before, after in pairwise(channels))
        self.attn = nn.ModuleList(AttentionBlock(arch, after) for after in channels[1:] if attention)

    def forward(self, x: Tensor) -> Tensor:
        for number, block in enumerate(self.block):
            x = block(x)
            if self.attn:
                x = self.attn[number](x)
        if hasattr(self, "downsample"):
            return self.downsample(x)
        return self.upsample(x) if hasattr(self, "upsample") else x


class Middle(nn.Module):
    def __init__(self, arch: Architecture, channels: int) -> None:
        super().__init__()
        self.block_1 = ResidualBlock(arch, channels, channels)
        self.attn_1 = AttentionBlock(arch, channels)
        self.block_2 = ResidualBlock(arch, channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class Encoder(nn.Module):
    """Pictures [B, 3, H, W] -> features [B, z_channels, H / factor, W / factor]."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.patch_size = arch.patch_size
        widths, last = arch.channels, len(arch.channels) - 1
        self.conv_in = nn.Conv2d(3 * arch.patch_size**2, arch.ch, 3, padding=1)
        self.down = nn.ModuleList()
        for i, (before, width) in enumerate(zip([arch.ch, *widths], widths)):
            level = Level(arch, [before] + [width] * arch.num_res_blocks, arch.has_attention(i))
            if i < last:
                level.downsample = Downsample(width)
            self.down.append(level)
        self.mid = arch.build_middle(widths[-1])
        self.norm_out = arch.build_norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], arch.z_channels, 3, padding=1)

    def forward(self, pictures: Tensor) -> Tensor:
        x = self.conv_in(F.pixel_unshuffle(pictures, self.patch_size))
        for level in self.down:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    """Features [B, z_channels, h, w] -> pictures [B, 3, factor h, factor w], about -1 to 1."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.patch_size = arch.patch_size
        widths = arch.channels
        self.conv_in = nn.Conv2d(arch.z_channels, widths[-1], 3, padding=1)
        self.mid = arch.build_middle(widths[-1])
        self.up = nn.ModuleList()
        for i, (width, before) in enumerate(zip(widths, [*widths[1:], widths[-1]])):
            level = Level(arch, [before] + [width] * (arch.num_res_blocks + 1), arch.has_attention(i))
            if i > 0:
                level.upsample = Upsample(width)
            self.up.append(level)
        self.norm_out = arch.build_norm(widths[0])
        self.conv_out = nn.Conv2d(widths[0], 3 * arch.patch_size**2, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            x = level(x)
        return F.pixel_shuffle(self.conv_out(F.silu(self.norm_out(x))), self.patch_size)
