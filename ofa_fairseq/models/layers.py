"""Encoder and decoder layers: NormFormer blocks around attention and a feed-forward network.

Inside the layers everything is batch-first: B batch, t target or s source positions, d width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from fairseq import utils
from torch import Tensor, nn

from .attention import KeyValue, MultiheadAttention
from .prompts import Adapter


def drop_path(x: Tensor, rate: float, training: bool) -> Tensor:
    """Stochastic depth: drop the whole branch of a sample (first dimension) with probability `rate`."""
    if rate == 0.0 or not training:
        return x
    keep = x.new_empty((len(x),) + (1,) * (x.dim() - 1)).bernoulli_(1 - rate)
    return x * keep / (1 - rate)


def drop_path_rates(rate: float, depth: int) -> list[float]:
    """Rates that grow linearly from 0 in the first layer to `rate` in the last."""
    return [rate * i / max(depth - 1, 1) for i in range(depth)]


class DropPath(nn.Module):
    """`drop_path` with a fixed rate."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        return drop_path(x, self.rate, self.training)

    def extra_repr(self) -> str:
        return f"rate={self.rate:.3f}"


@dataclass(frozen=True, kw_only=True)
class LayerConfig:
    """What the layers of one half share."""

    dim: int
    ffn_dim: int
    heads: int
    attn_scale_factor: float = 2.0
    dropout: float = 0.0
    attention_dropout: float = 0.0
    activation_dropout: float = 0.0
    activation_fn: str = "gelu"
    normalize_before: bool = True
    scale_attn: bool = False
    scale_fc: bool = False
    scale_heads: bool = False
    scale_resids: bool = False
    adapter_dim: int | None = None


class Layer(nn.Module):
    """What encoder and decoder layers share: residual branches and the feed-forward network."""

    def __init__(self, cfg: LayerConfig, drop_path_rate: float) -> None:
        super().__init__()
        self.cfg = cfg
        self.activation: Callable[[Tensor], Tensor] = utils.get_activation_fn(cfg.activation_fn)
        self.drop_path = DropPath(drop_path_rate) if drop_path_rate > 0 else nn.Identity()
        self.self_attn = self._attention()
        self.self_attn_layer_norm = nn.LayerNorm(cfg.dim)
        self.fc1 = nn.Linear(cfg.dim, cfg.ffn_dim)
        self.fc2 = nn.Linear(cfg.ffn_dim, cfg.dim)
        self.ffn_layernorm = nn.LayerNorm(cfg.ffn_dim) if cfg.scale_fc else None
        self.final_layer_norm = nn.LayerNorm(cfg.dim)
        self.w_resid = nn.Parameter(torch.ones(cfg.dim)) if cfg.scale_resids else None
        self.adapter = Adapter(cfg.dim, cfg.adapter_dim) if cfg.adapter_dim else None

    def _attention(self, key_dim: int | None = None) -> MultiheadAttention:
        cfg = self.cfg
        return MultiheadAttention(
            cfg.dim,
            cfg.heads,
            key_dim=key_dim,
            attn_scale_factor=cfg.attn_scale_factor,
            dropout=cfg.attention_dropout,
            scale_heads=cfg.scale_heads,
        )

    def _scale_norm(self) -> nn.Module | None:
        """NormFormer's norm after an attention's output projection."""
        return nn.LayerNorm(self.cfg.dim) if self.cfg.scale_attn else None

    def _branch(
        self,
        x: Tensor,
        norm: nn.Module,
        function: Callable[[Tensor], Tensor],
        scale_norm: nn.Module | None = None,
    ) -> Tensor:
        """An attention's residual branch, pre-norm or post-norm."""
        y = function(norm(x) if self.cfg.normalize_before else x)
        y = y if scale_norm is None else scale_norm(y)
        x = x + self.drop_path(F.dropout(y, self.cfg.dropout, self.training))
        return x if self.cfg.normalize_before else norm(x)

    def _feed_forward(self, x: Tensor) -> Tensor:
        """The feed-forward branch; adapter and residual scale act in this branch only."""
        cfg = self.cfg
        y = self.final_layer_norm(x) if cfg.normalize_before else x
        y = F.dropout(self.activation(self.fc1(y)), cfg.activation_dropout, self.training)
        y = y if self.ffn_layernorm is None else self.ffn_layernorm(y)
        y = F.dropout(self.fc2(y), cfg.dropout, self.training)
        y = y if self.adapter is None else self.adapter(y)
        x = (x if self.w_resid is None else x * self.w_resid) + self.drop_path(y)
        return x if cfg.normalize_before else self.final_layer_norm(x)


class EncoderLayer(Layer):
    """Self-attention, then feed-forward."""

    def __init__(self, cfg: LayerConfig, drop_path_rate: float = 0.0) -> None:
        super().__init__(cfg, drop_path_rate)
        self.attn_ln = self._scale_norm()

    def forward(self, x: Tensor, bias: Tensor, prompt: KeyValue | None = None) -> Tensor:
        """x [B, s, d], bias [1 or B, H, s, s (+ prompt length)] -> [B, s, d]."""

        def attend(y: Tensor) -> Tensor:
            return self.self_attn(y, _with_prompt(self.self_attn.key_value(y), prompt), bias)

        x = self._branch(x, self.self_attn_layer_norm, attend, self.attn_ln)
        return self._feed_forward(x)


@dataclass
class LayerCache:
    """Keys and values of one decoder layer during generation.

    `self_attn` grows in place in a buffer of doubling length; `cross_attn` is computed once per picture and shared
    by its beams.
    """

    keys: Tensor | None = None
    values: Tensor | None = None
    length: int = 0
    cross_attn: KeyValue | None = None

    def append(self, key_value: KeyValue) -> KeyValue:
        """Add keys and values of new positions, [N, H, new, dh]; returns all, [N, H, length, dh]."""
        key, value = key_value
        end = self.length + key.size(2)
        if self.keys is None or self.values is None or end > self.keys.size(2):
            self.keys, self.values = (
                self._grown(old, new, end) for old, new in ((self.keys, key), (self.values, value))
            )
        self.keys[:, :, self.length : end] = key
        self.values[:, :, self.length : end] = value
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def _grown(self, old: Tensor | None, new: Tensor, end: int) -> Tensor:
        rows, heads, _, dim = new.shape
        buffer = new.new_empty(rows, heads, max(16, 2 * end), dim)
        if old is not None:
            buffer[:, :, : self.length] = old[:, :, : self.length]
        return buffer

    def reorder(self, new_order: Tensor) -> None:
        """Rows for `append` follow `new_order`; only what is in use is copied."""
        if self.keys is not None and self.values is not None:
            self.keys = self._selected(self.keys, new_order)
            self.values = self._selected(self.values, new_order)

    def expanded(self, times: int) -> LayerCache:
        """A copy with every row `times` times; the picture's keys and values are shared."""
        copy = LayerCache(None, None, self.length, self.cross_attn)
        if self.keys is not None and self.values is not None:
            used = slice(self.length)
            copy.keys = self.keys[:, :, used].repeat_interleave(times, dim=0)
            copy.values = self.values[:, :, used].repeat_interleave(times, dim=0)
        return copy

    def _selected(self, buffer: Tensor, new_order: Tensor) -> Tensor:
        if len(new_order) == len(buffer):
            buffer[:, :, : self.length] = buffer[:, :, : self.length].index_select(0, new_order)
            return buffer
        return buffer.index_select(0, new_order)


class DecoderLayer(Layer):
    """Self-attention, attention to the encoder, feed-forward."""

    def __init__(self, cfg: LayerConfig, drop_path_rate: float = 0.0, encoder_dim: int | None = None) -> None:
        super().__init__(cfg, drop_path_rate)
        self.self_attn_ln = self._scale_norm()
        self.encoder_attn = self._attention(encoder_dim)
        self.encoder_attn_layer_norm = nn.LayerNorm(cfg.dim)
        self.cross_attn_ln = self._scale_norm()

    def forward(
        self,
        x: Tensor,
        self_bias: Tensor,
        encoder_out: Tensor | None,
        cross_bias: Tensor | None,
        prompt: KeyValue | None = None,
        cache: LayerCache | None = None,
        need_attn: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """One layer.

        Args:
            x: [N, t, d]; with a cache only the newest t positions.
            self_bias: [1 or N, H, t, s] with the causal mask in it.
            encoder_out: [B, S, d], N a multiple of B; None leaves out the attention to the encoder.
            cross_bias: [1 or B, H, t, S].
            prompt: learnt keys and values in front of the self-attention's.
            cache: filled during generation.
            need_attn: also return the attention to the encoder.

        Returns:
            x [N, t, d], and attention probabilities [N, H, t, S] or None.
        """

        def self_attend(y: Tensor) -> Tensor:
            key_value = self.self_attn.key_value(y)
            if cache is not None:
                key_value = cache.append(key_value)
            return self.self_attn(y, _with_prompt(key_value, prompt), self_bias)

        x = self._branch(x, self.self_attn_layer_norm, self_attend, self.self_attn_ln)
        attn = None
        if encoder_out is not None:
            key_value = self._cross_key_value(encoder_out, cache)
            if need_attn:
                query = self.encoder_attn_layer_norm(x) if self.cfg.normalize_before else x
                attn = self.encoder_attn.weights(query, key_value, cross_bias)
            x = self._branch(
                x,
                self.encoder_attn_layer_norm,
                lambda y: self.encoder_attn(y, key_value, cross_bias),
                self.cross_attn_ln,
            )
        return self._feed_forward(x), attn

    def _cross_key_value(self, encoder_out: Tensor, cache: LayerCache | None) -> KeyValue:
        if cache is None:
            return self.encoder_attn.key_value(encoder_out)
        if cache.cross_attn is None:
            cache.cross_attn = self.encoder_attn.key_value(encoder_out)
        return cache.cross_attn


def _with_prompt(key_value: KeyValue, prompt: KeyValue | None) -> KeyValue:
    """Put a prompt's keys and values in front; they are never stored with the cache."""
    if prompt is None:
        return key_value
    rows = len(key_value[0])
    return (
        torch.cat([prompt[0].expand(rows, -1, -1, -1), key_value[0]], dim=2),
        torch.cat([prompt[1].expand(rows, -1, -1, -1), key_value[1]], dim=2),
    )
