"""Parameter-efficient tuning: adapters, prefix prompts, and which parameters train."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from .attention import KeyValue

# No released option reaches this rate.
PROMPT_DROPOUT = 0.2


class Adapter(nn.Module):
    """Houlsby-style bottleneck with its own residual: `up(relu(down(x))) + x`."""

    def __init__(self, dim: int, bottleneck: int) -> None:
        super().__init__()
        self.down_proj = nn.Linear(dim, bottleneck)
        self.up_proj = nn.Linear(bottleneck, dim)

    def forward(self, x: Tensor) -> Tensor:
        """[..., d] -> [..., d]."""
        return self.up_proj(F.relu(self.down_proj(x))) + x


class PromptEncoder(nn.Module):
    """Learnt keys and values for every layer's self-attention (prefix tuning).

    Args:
        length: number n of prompt positions.
        layers: number L of layers.
        dim: width d of the layers.
        heads: number H of heads.
        projection_dim: width of the hidden layer through which a small table is projected; None: the table
            holds keys and values themselves.
    """

    def __init__(self, length: int, layers: int, dim: int, heads: int, projection_dim: int | None) -> None:
        super().__init__()
        self.layers, self.heads = layers, heads
        out = 2 * layers * dim
        self.embedding = nn.Embedding(length, dim if projection_dim else out)
        self.trans = (
            nn.Sequential(nn.Linear(dim, projection_dim), nn.ReLU(), nn.Linear(projection_dim, out))
            if projection_dim
            else None
        )

    def forward(self) -> list[KeyValue]:
        """Keys and values of each layer, [1, H, n, dh]."""
        table = self.embedding.weight
        table = table if self.trans is None else self.trans(table)
        table = F.dropout(table, PROMPT_DROPOUT, self.training)
        n = len(table)
        blocks = table.view(n, 2 * self.layers, self.heads, -1).permute(1, 2, 0, 3)  # [2L, H, n, dh]
        return [(blocks[2 * i][None], blocks[2 * i + 1][None]) for i in range(self.layers)]


def freeze_all_but_prompts(encoder: nn.Module, decoder: nn.Module) -> None:
    """Prefix tuning trains prompts (and adapters where there are some) and nothing else of both halves."""
    for half in (encoder, decoder):
        for name, parameter in half.named_parameters():
            parameter.requires_grad = "prompt_encoder" in name or "adapter" in name


def train_only_biases(model: nn.Module) -> None:
    """BitFit as released: biases of `*layer_norm*` and `fc*`, overriding every other freezing."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad = "bias" in name and ("layer_norm" in name or "fc" in name)
