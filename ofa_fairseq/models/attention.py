"""Multi-head attention with an additive position bias and head scaling (NormFormer), on PyTorch's SDPA."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

KeyValue = tuple[Tensor, Tensor]  # keys and values, each [B, H, s, dh]


class MultiheadAttention(nn.Module):
    """Attention whose logits are `(q . k) * (dh * attn_scale_factor)^-0.5 + bias`.

    The scale is smaller than usual because content is one of `attn_scale_factor` = 2 terms in the sum (content
    and absolute position).

    Args:
        dim: width d of queries and outputs.
        heads: number H of heads.
        key_dim: width of what keys and values are projected from (None: d).
        attn_scale_factor: number of terms that share the logits.
        dropout: on the attention weights.
        scale_heads: multiply each head's output by a learnt number (`c_attn`).
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        key_dim: int | None = None,
        attn_scale_factor: float = 2.0,
        dropout: float = 0.0,
        scale_heads: bool = False,
    ) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"the width {dim} is not a multiple of the number of heads {heads}")
        self.heads, self.dropout = heads, dropout
        self.scale = (dim // heads * attn_scale_factor) ** -0.5
        self.q_proj = nn.Linear(dim, dim)
        self.k_proj = nn.Linear(key_dim or dim, dim)
        self.v_proj = nn.Linear(key_dim or dim, dim)
        self.out_proj = nn.Linear(dim, dim)
        self.c_attn = nn.Parameter(torch.ones(heads)) if scale_heads else None

    def _split_heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [B, s, d] -> [B, H, s, dh]

    def key_value(self, x: Tensor) -> KeyValue:
        """Project [B, s, d] to keys and values, each [B, H, s, dh]."""
        return self._split_heads(self.k_proj(x)), self._split_heads(self.v_proj(x))

    def forward(self, query: Tensor, key_value: KeyValue, bias: Tensor | None) -> Tensor:
        """Attend.

        Args:
            query: [N, t, d].
            key_value: projections of `key_value`, [B, H, s, dh]. N may be a multiple of B: then each picture's
                keys serve N / B consecutive rows (the beams of one sentence) without being copied.
            bias: additive mask [1 or B, H or 1, t, s], or None.

        Returns:
            [N, t, d].
        """
        keys, values = key_value
        q = self._split_heads(self.q_proj(query))
        group = len(q) // len(keys)
        if group > 1:
            q, bias = _fold_beams(q, group), _repeat_rows(bias, group)
        out = F.scaled_dot_product_attention(
            q,
            keys,
            values,
            attn_mask=None if bias is None else bias.to(q.dtype).expand(len(q), self.heads, -1, -1),
            dropout_p=self.dropout if self.training else 0.0,
            scale=self.scale,
        )
        if group > 1:
            out = _unfold_beams(out, group)
        if self.c_attn is not None:
            out = out * self.c_attn.to(out.dtype)[:, None, None]
        return self.out_proj(out.transpose(1, 2).flatten(2))

    def weights(self, query: Tensor, key_value: KeyValue, bias: Tensor | None) -> Tensor:
        """Attention probabilities in float32, [N, H, t, s]: what `forward` uses but never keeps."""
        keys = key_value[0]
        q = self._split_heads(self.q_proj(query))
        group = len(q) // len(keys)
        logits = (q * self.scale) @ keys.repeat_interleave(group, 0).transpose(-1, -2)
        if bias is not None:
            logits = logits + (bias if len(bias) == 1 else bias.repeat_interleave(group, 0))
        return torch.softmax(logits.float(), dim=-1)


def _fold_beams(q: Tensor, group: int) -> Tensor:
    """[B * group, H, t, dh] -> [B, H, group * t, dh]: beams become queries of their picture."""
    return q.unflatten(0, (-1, group)).transpose(1, 2).flatten(2, 3)


def _unfold_beams(x: Tensor, group: int) -> Tensor:
    return x.unflatten(2, (group, -1)).transpose(1, 2).flatten(0, 1)


def _repeat_rows(bias: Tensor | None, group: int) -> Tensor | None:
    """The bias of t rows for `group` beams, in the order of `_fold_beams`."""
    return None if bias is None else bias.repeat(1, 1, group, 1)
