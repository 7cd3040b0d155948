"""OFA's encoder: image patches and text tokens in one sequence, under disentangled position biases.

Legend: B batch, T text tokens, P patches of all pictures, S = P + T, d width, H heads. Masks are True for
padding. The sequence is second picture, first picture, text.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from fairseq.distributed import fsdp_wrap
from fairseq.models import FairseqEncoder
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .config import Options
from .layers import EncoderLayer, LayerConfig, drop_path_rates
from .positions import PositionTables, absolute_bias, grid_position_ids, interpolate_grid, relative_bias
from .prompts import PromptEncoder
from .visual_stem import STEM_CHANNELS, VisualStem

TEXT_TYPE, IMAGE_TYPE = 0, 1
EncoderOut = dict[str, list[Tensor]]
# Options of the layers that are not given for encoder and decoder apart.
SHARED_LAYER_OPTIONS = (
    "attn_scale_factor",
    "dropout",
    "attention_dropout",
    "activation_dropout",
    "activation_fn",
    "scale_attn",
    "scale_fc",
    "scale_heads",
    "scale_resids",
)


@dataclass
class Patches:
    """One picture of each row, as a part of the source sequence.

    `positions` and `ids` have a first dimension of 1 unless patches were sampled.
    """

    content: Tensor  # [B, P, d] projected features
    positions: Tensor  # [1 or B, P, d] raw absolute position embeddings
    ids: Tensor  # [1 or B, P] position ids
    padding: Tensor  # [B, P]


def layer_config(cfg: Options, half: str) -> LayerConfig:
    """The layers' share of the model's options; `half` is "encoder" or "decoder"."""
    return LayerConfig(
        dim=getattr(cfg, f"{half}_embed_dim"),
        ffn_dim=getattr(cfg, f"{half}_ffn_embed_dim"),
        heads=getattr(cfg, f"{half}_attention_heads"),
        normalize_before=getattr(cfg, f"{half}_normalize_before"),
        adapter_dim=cfg.adapter_dim if cfg.adapter else None,
        **{name: getattr(cfg, name) for name in SHARED_LAYER_OPTIONS},
    )


def wrap_layer(layer: nn.Module, cfg: Options) -> nn.Module:
    """Activation checkpointing and FSDP, where asked for."""
    checkpointed = bool(cfg.checkpoint_activations or cfg.offload_activations)
    if checkpointed:
        layer.forward = partial(_recomputed, layer.forward, cfg.offload_activations)
    return fsdp_wrap(layer, min_num_params=0 if checkpointed else cfg.min_params_to_wrap)


def _recomputed(forward: Callable[..., Any], offload: bool, *inputs: Any) -> Any:
    """`forward`, again in the backward pass; meanwhile its inputs wait, on the CPU if `offload`.

    fairseq's wrapper finds no gradient for layers whose input needs none (frozen embeddings with `--bitfit`), and none
    for inputs inside tuples (prompts); PyTorch's own does.
    """
    with torch.autograd.graph.save_on_cpu() if offload else nullcontext():
        return checkpoint(forward, *inputs, use_reentrant=False)


def build_prompt(cfg: Options, half: str) -> PromptEncoder | None:
    """The prompt encoder of one half, or None."""
    if not getattr(cfg, f"{half}_prompt"):
        return None
    hidden = getattr(cfg, f"{half}_prompt_dim") or 2 * cfg.encoder_embed_dim
    return PromptEncoder(
        length=getattr(cfg, f"{half}_prompt_length"),
        layers=getattr(cfg, f"{half}_layers"),
        dim=getattr(cfg, f"{half}_embed_dim"),
        heads=getattr(cfg, f"{half}_attention_heads"),
        projection_dim=hidden if getattr(cfg, f"{half}_prompt_projection") else None,
    )


def shared_rows(x: Tensor) -> Tensor:
    """[1, ...] for a tensor that was expanded over the batch, x itself otherwise."""
    return x[:1] if x.stride(0) == 0 else x


class OFAEncoder(PositionTables, FairseqEncoder):
    """Pictures and text to states.

    Args:
        cfg: a resolved configuration.
        dictionary: fairseq dictionary (for the padding id).
        embed_tokens: the token matrix [V, d].
    """

    def __init__(self, cfg: Options, dictionary: Any, embed_tokens: nn.Embedding) -> None:
        super().__init__(dictionary)
        dim = embed_tokens.embedding_dim
        self.cfg = cfg
        self.padding_idx: int = dictionary.pad()
        self.register_buffer("version", torch.Tensor([3]))
        self.embed_scale = 1.0 if cfg.no_scale_embedding else math.sqrt(dim)
        self.embed_tokens = embed_tokens
        self.layernorm_embedding = nn.LayerNorm(dim) if cfg.layernorm_embedding else None
        self.type_embedding = nn.Embedding(2, dim) if cfg.add_type_embedding else None
        self.embed_images = VisualStem(
            cfg.resnet_type, cfg.resnet_drop_path_rate, sync_bn=cfg.sync_bn, freeze_bn=cfg.freeze_resnet
        )
        self.image_proj = nn.Linear(STEM_CHANNELS, dim)
        self.patch_layernorm_embedding = nn.LayerNorm(dim) if cfg.patch_layernorm_embedding else None

        self.heads = cfg.encoder_attention_heads
        self.build_position_tables(
            dim=dim,
            heads=self.heads,
            layers=cfg.encoder_layers,
            positions=cfg.max_source_positions,
            token_bucket_size=cfg.token_bucket_size,
            grid=cfg.image_bucket_size,
        )
        self.pos_q_linear = nn.Linear(dim, dim)
        self.pos_k_linear = nn.Linear(dim, dim)
        self.position_scale = (dim // self.heads * cfg.attn_scale_factor) ** -0.5

        shared = layer_config(cfg, "encoder")
        rates = drop_path_rates(cfg.encoder_drop_path_rate, cfg.encoder_layers)
        self.layers = nn.ModuleList(wrap_layer(EncoderLayer(shared, rate), cfg) for rate in rates)
        self.layer_norm = nn.LayerNorm(dim) if cfg.encoder_normalize_before else None
        self.encoder_prompt_encoder = build_prompt(cfg, "encoder")

    def forward(
        self,
        src_tokens: Tensor,
        src_lengths: Tensor | None = None,
        patch_images: Tensor | None = None,
        patch_images_2: Tensor | None = None,
        patch_masks: Tensor | None = None,
        patch_rows: Tensor | None = None,
        code_masks: Tensor | None = None,
        return_all_hiddens: bool = False,
        token_embeddings: Tensor | None = None,
        sample_patch_num: int | None = None,
    ) -> EncoderOut:
        """Encode a batch.

        Args:
            src_tokens: [B, T] ids, right-padded.
            src_lengths: unused.
            patch_images: [B or P, 3, h, w] normalised pictures, or None.
            patch_images_2: second pictures, or None.
            patch_masks: [B] bool, False = this row has no picture (None: all have).
            patch_rows: [B] which of the P pictures is a row's, where rows share them.
            code_masks: [B] bool, handed to the decoder: True = the row's target is image codes.
            return_all_hiddens: also return the embedding output and every layer's.
            token_embeddings: [B, T, d] in place of `embed_tokens(src_tokens)`.
            sample_patch_num: keep this many random patches of each picture.

        Returns:
            lists of tensors, as fairseq's generator wants them: `encoder_out` [S, B, d],
            `encoder_padding_mask` [B, S], `position_embeddings` [B, S, d] (normalised; rows share memory where
            they are equal), `padding_bias` [B, 1, 1, S] (only if something is padded), `code_masks`,
            `encoder_states`.

        Raises:
            ValueError: if the text is longer than its position table.
        """
        if src_tokens.size(1) > self.max_text_length:
            raise ValueError(
                f"a source of {src_tokens.size(1)} tokens, but at most {self.max_text_length} have embeddings"
            )
        pictures = [
            self.embed_patches(images, patch_masks, sample_patch_num, patch_rows)
            for images in (patch_images_2, patch_images)
            if images is not None
        ]
        text_padding = src_tokens.eq(self.padding_idx)
        if token_embeddings is None:
            token_embeddings = self.embed_tokens(src_tokens)
        text_positions = self.embed_positions.weight[: src_tokens.size(1)][None]

        x = torch.cat(
            [self._content(p.content, p.positions, IMAGE_TYPE) for p in pictures]
            + [self._content(token_embeddings, text_positions, TEXT_TYPE)],
            dim=1,
        )
        padding = torch.cat([p.padding for p in pictures] + [text_padding], dim=1)
        positions = _cat_rows(
            [self.image_pos_ln(p.positions) for p in pictures] + [self.pos_ln(text_positions)]
        )
        # The one place where the host looks at the data; without padding all rows share one bias.
        has_padding = torch.compiler.is_compiling() or bool(padding.any())
        padding_bias = None
        if has_padding:
            x = x.masked_fill(padding[..., None], 0.0)
            padding_bias = x.new_zeros(padding.shape).masked_fill_(padding, -math.inf)[:, None, None]

        biases = self._biases(positions, pictures, src_tokens.size(1), padding_bias)
        states = [x.transpose(0, 1)] if return_all_hiddens else []
        prompts = self.encoder_prompt_encoder() if self.encoder_prompt_encoder else None
        for i, layer in enumerate(self.layers):
            x = layer(x, biases(i), None if prompts is None else prompts[i])
            if return_all_hiddens:
                states.append(x.transpose(0, 1))
        if self.layer_norm is not None:
            x = self.layer_norm(x)
        return {
            "encoder_out": [x.transpose(0, 1)],  # B x S x d -> S x B x d
            "encoder_padding_mask": [padding],
            "position_embeddings": [positions.expand(len(x), -1, -1)],
            "padding_bias": [] if padding_bias is None else [padding_bias],
            "code_masks": [] if code_masks is None else [code_masks],
            "encoder_states": states,
            "encoder_embedding": [],
            "src_tokens": [],
            "src_lengths": [],
        }

    def embed_patches(
        self,
        images: Tensor,
        patch_masks: Tensor | None,
        sample_patch_num: int | None = None,
        patch_rows: Tensor | None = None,
    ) -> Patches:
        """Run the stem on [B or P, 3, h, w] and look up the patches' positions.

        Raises:
            ValueError: if the grid of patches is larger than the position table.
        """
        features = self.embed_images(images)  # B x 1024 x rows x columns
        rows, columns = features.shape[-2:]
        if max(rows, columns) > self.grid:
            raise ValueError(
                f"pictures of {images.size(-2)} x {images.size(-1)} pixels give {rows} x {columns} patches;"
                f" at most {self.grid} x {self.grid} fit (--image-bucket-size)"
            )
        features = self.image_proj(features.flatten(2).transpose(1, 2))  # of each picture once
        if patch_rows is not None:
            features = features[patch_rows]
        ids = grid_position_ids(rows, columns, self.grid).to(features.device)[None]
        if patch_masks is None:
            patch_masks = torch.ones(len(features), dtype=torch.bool, device=images.device)
        padding = ~patch_masks.bool()[:, None].expand(-1, rows * columns)
        kept = rows * columns
        if sample_patch_num is not None and sample_patch_num < kept:
            kept = sample_patch_num
            chosen = torch.rand(padding.shape, device=features.device).argsort(dim=1)[:, :kept]
            features = features.gather(1, chosen[..., None].expand(-1, -1, features.size(-1)))
            padding, ids = padding.gather(1, chosen), ids[0][chosen]
        side = self.cfg.orig_patch_image_size // 16
        if self.cfg.interpolate_position and kept > side * side:
            if kept < rows * columns:
                raise ValueError("patch sampling and --interpolate-position exclude each other here")
            original = self.embed_image_positions(
                grid_position_ids(side, side, self.grid).to(features.device)
            ).view(side, side, -1)
            positions = interpolate_grid(original, rows, columns)[None]
        else:
            positions = self.embed_image_positions(ids)
        return Patches(features, positions, ids, padding)

    def _content(self, x: Tensor, positions: Tensor, kind: int) -> Tensor:
        """Scale, optional entangled positions, type vector, norm, dropout; [B, n, d] -> [B, n, d]."""
        x = x * self.embed_scale
        if self.cfg.entangle_position_embedding:
            x = x + positions
        if self.type_embedding is not None:
            x = x + self.type_embedding.weight[kind]
        norm = self.layernorm_embedding if kind == TEXT_TYPE else self.patch_layernorm_embedding
        return F.dropout(x if norm is None else norm(x), self.cfg.dropout, self.training)

    def _biases(
        self, positions: Tensor, pictures: list[Patches], text_length: int, padding_bias: Tensor | None
    ) -> LayerBiases:
        """The attention bias of every layer, [1 or B, H, S, S]; see `positions`."""
        shared = absolute_bias(
            self.pos_q_linear(positions), self.pos_k_linear(positions), self.heads, self.position_scale
        )
        if padding_bias is not None:
            shared = shared + padding_bias
        blocks = [(self.image_rel_pos_table_list, self.image_buckets_of(p.ids, p.ids)) for p in pictures]
        blocks.append((self.token_rel_pos_table_list, self.token_rp_bucket[:text_length, :text_length]))
        prompt_length = self.cfg.encoder_prompt_length if self.encoder_prompt_encoder else 0
        return LayerBiases(shared, blocks, prompt_length)

    def reorder_encoder_out(self, encoder_out: EncoderOut, new_order: Tensor) -> EncoderOut:
        """Rows of every tensor follow `new_order` [N]."""
        batch_dimension = {"encoder_out": 1, "encoder_states": 1}
        return {
            key: [_reordered(x, new_order, batch_dimension.get(key, 0)) for x in values]
            for key, values in encoder_out.items()
        }

    def max_positions(self) -> int:
        """Longest text source."""
        return self.cfg.max_source_positions


@dataclass
class LayerBiases:
    """Biases by layer: a shared absolute part, and relative parts on the diagonal blocks of each modality."""

    shared: Tensor  # [1 or B, H, S, S]
    blocks: list[tuple[nn.ModuleList, Tensor]]  # tables by layer, buckets [n, n] or [1 or B, n, n]
    prompt_length: int

    def __call__(self, layer: int) -> Tensor:
        """[1 or B, H, S, prompt + S]. Blocks between modalities, and prompt keys, get nothing relative."""
        relative = [relative_bias(tables[layer], buckets) for tables, buckets in self.blocks]
        bias = self.shared
        if len(bias) < max(len(r) for r in relative):  # sampled patches: every row has its own grid
            bias = bias.expand(max(len(r) for r in relative), -1, -1, -1)
        bias = bias.to(torch.promote_types(bias.dtype, relative[0].dtype), copy=True)
        start = 0
        for block in relative:
            end = start + block.size(-1)
            bias[..., start:end, start:end] += block
            start = end
        return F.pad(bias, (self.prompt_length, 0)) if self.prompt_length else bias


def _cat_rows(parts: list[Tensor]) -> Tensor:
    """Concatenate [1 or B, n, d] along n, expanding where one part differs by row."""
    rows = max(len(p) for p in parts)
    return torch.cat([p.expand(rows, -1, -1) for p in parts], dim=1)


def _reordered(x: Tensor, new_order: Tensor, dimension: int) -> Tensor:
    if dimension == 0 and x.stride(0) == 0:
        return x[:1].expand(len(new_order), *x.shape[1:])
    return x.index_select(dimension, new_order)
