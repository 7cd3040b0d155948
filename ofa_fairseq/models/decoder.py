"""OFA's decoder: text or image codes, under disentangled position biases, with fast generation.

A row's target is text or a grid of image codes (`code_masks`); the two kinds differ in their position tables
and embedding norms, and may stand in one batch.

Legend: N decoder rows, B encoder rows (N is a multiple of B during beam search), t positions, S source length,
d width, H heads. "Kind" is True for image codes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from fairseq.models import FairseqIncrementalDecoder
from torch import Tensor, nn

from .config import Options
from .encoder import EncoderOut, build_prompt, layer_config, shared_rows, wrap_layer
from .layers import DecoderLayer, LayerCache, drop_path_rates
from .positions import (
    PositionTables,
    absolute_bias,
    code_position_ids,
    relative_bias,
)

# During generation, biases are computed for this many positions at a time.
BIAS_CHUNK = 32
STATE_KEY = "ofa_decoder"


@dataclass
class Biases:
    """Attention biases of positions [start, end) against positions [0, end), and against the source."""

    self_attn: list[Tensor]  # per layer, [1, H, end - start, end]
    cross_attn: Tensor | None  # [1 or B, H, end - start, S]


@dataclass
class DecoderState:
    """What generation keeps between steps."""

    caches: list[LayerCache]
    length: int = 0
    chunk_start: int = 0
    chunks: dict[bool, Biases] = field(default_factory=dict)  # by kind
    code_masks: Tensor | None = None  # [B]

    def reorder(self, new_order: Tensor) -> None:
        """Rows follow `new_order` [N'], as fairseq's generators ask after every step.

        Where several rows share a picture, `new_order` must keep the rows of a picture together and in the
        pictures' order, as beam search does.
        """
        first = self.caches[0]
        rows = 0 if first.keys is None else len(first.keys)
        pictures = rows if first.cross_attn is None else len(first.cross_attn[0])
        group = rows // max(pictures, 1)
        for cache in self.caches:
            cache.reorder(new_order)
        if group > 1 and len(new_order) == rows:
            return  # rows moved within their pictures
        picture_order = new_order[:: max(group, 1)] // max(group, 1)
        for cache in self.caches:
            if cache.cross_attn is not None:
                key, value = cache.cross_attn
                cache.cross_attn = key.index_select(0, picture_order), value.index_select(0, picture_order)
        if self.code_masks is not None:
            self.code_masks = self.code_masks.index_select(0, picture_order)
        for biases in self.chunks.values():
            if biases.cross_attn is not None and len(biases.cross_attn) > 1:
                biases.cross_attn = biases.cross_attn.index_select(0, picture_order)

    def expanded(self, times: int) -> DecoderState:
        """A copy that can go on alone, with every row `times` times."""
        return replace(
            self, caches=[cache.expanded(times) for cache in self.caches], chunks=dict(self.chunks)
        )


class OFADecoder(PositionTables, FairseqIncrementalDecoder):
    """States to token logits.

    Args:
        cfg: a resolved configuration.
        dictionary: fairseq dictionary (for the padding id and the vocabulary size).
        embed_tokens: the token matrix [V, d].
    """

    image_position_idx: Tensor

    def __init__(self, cfg: Options, dictionary: Any, embed_tokens: nn.Embedding) -> None:
        super().__init__(dictionary)
        dim = cfg.decoder_embed_dim
        self.cfg = cfg
        self.padding_idx: int = dictionary.pad()
        self.register_buffer("version", torch.Tensor([3]))
        self.embed_scale = 1.0 if cfg.no_scale_embedding else math.sqrt(dim)
        self.embed_tokens = embed_tokens
        self.layernorm_embedding = nn.LayerNorm(dim) if cfg.layernorm_embedding else None
        self.code_layernorm_embedding = nn.LayerNorm(dim) if cfg.code_layernorm_embedding else None

        self.heads = cfg.decoder_attention_heads
        self.build_position_tables(
            dim=dim,
            heads=self.heads,
            layers=cfg.decoder_layers,
            positions=cfg.max_target_positions,
            token_bucket_size=cfg.token_bucket_size,
            grid=cfg.image_bucket_size,
        )
        side = cfg.code_image_size // 8
        if side > cfg.image_bucket_size:
            raise ValueError(
                f"--code-image-size {cfg.code_image_size} makes {side} x {side} codes;"
                f" at most {cfg.image_bucket_size} x {cfg.image_bucket_size} fit (--image-bucket-size)"
            )
        self.register_buffer("image_position_idx", code_position_ids(side, cfg.image_bucket_size))
        self.self_pos_q_linear = nn.Linear(dim, dim)
        self.self_pos_k_linear = nn.Linear(dim, dim)
        self.cross_pos_q_linear = nn.Linear(dim, dim)
        self.cross_pos_k_linear = nn.Linear(dim, dim)
        self.position_scale = (dim // self.heads * cfg.attn_scale_factor) ** -0.5

        shared = layer_config(cfg, "decoder")
        rates = drop_path_rates(cfg.decoder_drop_path_rate, cfg.decoder_layers)
        self.layers = nn.ModuleList(
            wrap_layer(DecoderLayer(shared, rate, cfg.encoder_embed_dim), cfg) for rate in rates
        )
        self.layer_norm = nn.LayerNorm(dim) if cfg.decoder_normalize_before else None
        self.output_projection = nn.Linear(dim, len(dictionary), bias=False)
        if cfg.share_decoder_input_output_embed:
            self.output_projection.weight = embed_tokens.weight
        self.decoder_prompt_encoder = build_prompt(cfg, "decoder")

    def forward(
        self,
        prev_output_tokens: Tensor,
        encoder_out: EncoderOut | None = None,
        code_masks: Tensor | None = None,
        incremental_state: dict[str, Any] | None = None,
        features_only: bool = False,
        output_positions: Tensor | None = None,
        alignment_layer: int | None = None,
        alignment_heads: int | None = None,
        src_lengths: Tensor | None = None,
        return_all_hiddens: bool = False,
        full_context_alignment: bool = False,
    ) -> tuple[Tensor, dict[str, list[Any]]]:
        """Logits of the next token at every position, or at some.

        Args:
            prev_output_tokens: [N, t] ids that start with `<s>`. With an incremental state the whole prefix is
                given too, and only positions that the state has not seen are computed and returned.
            encoder_out: the encoder's result for B rows, N a multiple of B.
            code_masks: [B] bool, True = the target is image codes; None: what travels in `encoder_out`, or text.
            incremental_state: a dictionary that generation passes from step to step.
            features_only: leave out the output projection.
            output_positions: [M] the only positions whose output is asked for, row * t + position; not with an
                incremental state.
            alignment_layer: also return the attention of this layer to the source.
            alignment_heads: average it over this many first heads (None: all).
            src_lengths: unused.
            return_all_hiddens: also return the embedding output and every layer's.
            full_context_alignment: no causal mask.

        Returns:
            logits [N, t, V] or features [N, t, d], [M, V] or [M, d] with `output_positions`; and
            `{"attn": [[N, t, S] or None], "inner_states": [[t, N, d], ...]}`.
        """
        x, extra = self.extract_features(
            prev_output_tokens,
            encoder_out,
            code_masks,
            incremental_state,
            alignment_layer,
            alignment_heads,
            return_all_hiddens,
            full_context_alignment,
        )
        if output_positions is not None:  # the projection to a large vocabulary costs more than a layer
            x = x.flatten(0, 1).index_select(0, output_positions)
        return x if features_only else self.output_layer(x), extra

    def extract_features(
        self,
        prev_output_tokens: Tensor,
        encoder_out: EncoderOut | None = None,
        code_masks: Tensor | None = None,
        incremental_state: dict[str, Any] | None = None,
        alignment_layer: int | None = None,
        alignment_heads: int | None = None,
        return_all_hiddens: bool = False,
        full_context_alignment: bool = False,
    ) -> tuple[Tensor, dict[str, list[Any]]]:
        """`forward` without the output projection."""
        if code_masks is None and encoder_out is not None and encoder_out.get("code_masks"):
            code_masks = encoder_out["code_masks"][0]
        kinds = self._kinds(code_masks, incremental_state, prev_output_tokens.size(1))
        source = encoder_out["encoder_out"][0].transpose(0, 1) if encoder_out is not None else None
        state = None
        if incremental_state is not None:
            state = self._state(incremental_state, code_masks)
            code_masks = state.code_masks
        start, end = (0 if state is None else state.length), prev_output_tokens.size(1)
        if start >= end:
            raise ValueError(f"the incremental state has seen {start} positions, the prefix has {end}")

        biases = self._biases(kinds, start, end, encoder_out, state)
        self_bias, cross_bias = self._attention_masks(
            biases, prev_output_tokens, start, code_masks, encoder_out, state is None, full_context_alignment
        )
        x = self._embed(prev_output_tokens[:, start:], kinds, start, code_masks)

        prompts = self.decoder_prompt_encoder() if self.decoder_prompt_encoder else None
        inner_states = [x.transpose(0, 1)] if return_all_hiddens else []
        attn = None
        for i, layer in enumerate(self.layers):
            bias = self_bias(i)
            if prompts is not None:
                bias = F.pad(bias, (self.cfg.decoder_prompt_length, 0))
            x, layer_attn = layer(
                x,
                bias,
                source,
                cross_bias,
                None if prompts is None else prompts[i],
                None if state is None else state.caches[i],
                i == alignment_layer,
            )
            if return_all_hiddens:
                inner_states.append(x.transpose(0, 1))
            if layer_attn is not None:
                attn = layer_attn[:, :alignment_heads].mean(dim=1)
        if state is not None:
            state.length = end
        if self.layer_norm is not None:
            x = self.layer_norm(x)
        return x, {"attn": [attn], "inner_states": inner_states}

    def output_layer(self, features: Tensor) -> Tensor:
        """[..., d] -> logits [..., V]."""
        return self.output_projection(features)

    # -- what a batch needs ------------------------------------------------------------------------

    def _kinds(
        self, code_masks: Tensor | None, incremental_state: dict[str, Any] | None, length: int
    ) -> list[bool]:
        """The kinds of targets in the batch: [False], [True] or both. Looks at the data once per generation."""
        if incremental_state is not None and STATE_KEY in incremental_state:
            return list(incremental_state[STATE_KEY].chunks)
        if code_masks is None:
            return [False]
        if torch.compiler.is_compiling():  # a graph for whatever the masks say; long targets must be codes
            return [True] if length > self.max_text_length else [False, True]
        return [kind for kind in (False, True) if bool((code_masks == kind).any())]

    def _state(self, incremental_state: dict[str, Any], code_masks: Tensor | None) -> DecoderState:
        if STATE_KEY not in incremental_state:
            caches = [LayerCache() for _ in self.layers]
            incremental_state[STATE_KEY] = DecoderState(caches, code_masks=code_masks)
        return incremental_state[STATE_KEY]

    def _embed(self, tokens: Tensor, kinds: list[bool], start: int, code_masks: Tensor | None) -> Tensor:
        """Tokens [N, n] at positions start ... -> [N, n, d]."""
        tokens_embedded = self.embed_tokens(tokens) * self.embed_scale

        def embed(kind: bool) -> Tensor:
            x = tokens_embedded
            if not self.cfg.disable_entangle:
                x = x + self._positions(kind, start, start + tokens.size(1))
            norm = self.layernorm_embedding
            if kind and self.code_layernorm_embedding is not None:
                norm = self.code_layernorm_embedding
            return x if norm is None else norm(x)

        x = _by_kind(kinds, code_masks, embed, len(tokens))
        return F.dropout(x, self.cfg.dropout, self.training)

    # -- positions ---------------------------------------------------------------------------------

    def _length_limit(self, kind: bool) -> int:
        return len(self.image_position_idx) if kind else self.max_text_length

    def _positions(self, kind: bool, start: int, end: int) -> Tensor:
        """Raw position embeddings of target positions [start, end), [1, n, d]."""
        if kind:
            return self.embed_image_positions(self.image_position_idx[start:end])[None]
        return self.embed_positions.weight[start:end][None]

    def _position_biases(self, kind: bool, start: int, end: int, source_positions: Tensor | None) -> Biases:
        """Biases of rows [start, end); `source_positions` [1 or B, S, d] are the encoder's."""
        norm = self.image_pos_ln if kind else self.pos_ln
        positions = norm(self._positions(kind, 0, end))
        rows = positions[:, start:]
        shared = absolute_bias(
            self.self_pos_q_linear(rows), self.self_pos_k_linear(positions), self.heads, self.position_scale
        )
        if kind:
            ids = self.image_position_idx
            buckets, tables = self.image_buckets_of(ids[start:end], ids[:end]), self.image_rel_pos_table_list
        else:
            buckets, tables = self.token_rp_bucket[start:end, :end], self.token_rel_pos_table_list
        cross = None
        if source_positions is not None:
            cross = absolute_bias(
                self.cross_pos_q_linear(rows),
                self.cross_pos_k_linear(source_positions),
                self.heads,
                self.position_scale,
            )
        return Biases([shared + relative_bias(table, buckets) for table in tables], cross)

    def _biases(
        self,
        kinds: list[bool],
        start: int,
        end: int,
        encoder_out: EncoderOut | None,
        state: DecoderState | None,
    ) -> dict[bool, Biases]:
        """Biases of rows [start, end) by kind; during generation sliced from chunks of several positions.

        Raises:
            ValueError: if the target is longer than its position table.
        """
        limit = min(self._length_limit(kind) for kind in kinds)
        if end > limit:
            raise ValueError(f"a target of {end} positions, but at most {limit} have embeddings")
        source_positions = None
        if encoder_out is not None:
            source_positions = shared_rows(encoder_out["position_embeddings"][0])
        if state is None:
            return {kind: self._position_biases(kind, start, end, source_positions) for kind in kinds}
        chunk_end = (
            state.chunk_start + next(iter(state.chunks.values())).self_attn[0].size(2) if state.chunks else 0
        )
        if end > chunk_end:
            state.chunk_start, chunk_end = start, min(limit, max(end, start + BIAS_CHUNK))
            state.chunks = {
                kind: self._position_biases(kind, start, chunk_end, source_positions) for kind in kinds
            }
        rows = slice(start - state.chunk_start, end - state.chunk_start)
        return {
            kind: Biases(
                [bias[:, :, rows, :end] for bias in biases.self_attn],
                None if biases.cross_attn is None else biases.cross_attn[:, :, rows],
            )
            for kind, biases in state.chunks.items()
        }

    def _attention_masks(
        self,
        biases: dict[bool, Biases],
        tokens: Tensor,
        start: int,
        code_masks: Tensor | None,
        encoder_out: EncoderOut | None,
        mask_padding: bool,
        full_context: bool,
    ) -> tuple[Any, Tensor | None]:
        """Biases with masks in them: a function of the layer, [1 or N, H, n, end], and [1 or B, H, n, S]."""
        rows, end = tokens.shape
        mask = None
        if not full_context and end - start > 1:
            future = torch.ones(end - start, end, dtype=torch.bool, device=tokens.device).triu_(start + 1)
            mask = future[None, None]
        if mask_padding:
            padded = tokens.eq(self.padding_idx)
            if torch.compiler.is_compiling() or bool(padded.any()):
                mask = padded[:, None, None] if mask is None else mask | padded[:, None, None]
        kinds = list(biases)

        def self_bias(layer: int) -> Tensor:
            bias = _by_kind(kinds, code_masks, lambda kind: biases[kind].self_attn[layer], rows)
            return bias if mask is None else bias.masked_fill(mask, -math.inf)

        if encoder_out is None:
            return self_bias, None
        pictures = encoder_out["encoder_out"][0].size(1)
        cross_bias = _by_kind(kinds, code_masks, lambda kind: biases[kind].cross_attn, pictures)
        if encoder_out.get("padding_bias"):
            cross_bias = cross_bias + encoder_out["padding_bias"][0]
        return self_bias, cross_bias

    # -- fairseq's interface -----------------------------------------------------------------------

    def reorder_incremental_state_scripting(
        self, incremental_state: dict[str, Any], new_order: Tensor
    ) -> None:
        """Called by fairseq's generators: rows of the state follow `new_order`."""
        if STATE_KEY in incremental_state:
            incremental_state[STATE_KEY].reorder(new_order)

    reorder_incremental_state = reorder_incremental_state_scripting

    def expanded_state(self, incremental_state: dict[str, Any], times: int) -> dict[str, Any]:
        """A copy of a state with every row `times` times, side by side; the rows share their picture."""
        return {**incremental_state, STATE_KEY: incremental_state[STATE_KEY].expanded(times)}

    def max_positions(self) -> int:
        """Longest target."""
        return self.cfg.max_target_positions


def _by_kind(kinds: list[bool], code_masks: Tensor | None, value: Any, rows: int) -> Tensor:
    """`value(kind)` for a batch of one kind; rows chosen by `code_masks` [B] for a mixed batch, [rows, ...]."""
    if len(kinds) == 1:
        return value(kinds[0])
    assert code_masks is not None
    mask = code_masks.repeat_interleave(rows // len(code_masks))
    text, code = value(False), value(True)
    return torch.where(mask.view(-1, *(1,) * (text.dim() - 1)), code, text)
