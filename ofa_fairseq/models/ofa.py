"""OFA: one sequence-to-sequence Transformer for pictures, text, boxes and image codes.

Wang et al., "OFA: Unifying Architectures, Tasks, and Modalities Through a Simple
Sequence-to-Sequence Learning Framework", ICML 2022.
"""

from __future__ import annotations

import logging
from argparse import Namespace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from fairseq import utils
from fairseq.models import FairseqEncoderDecoderModel, register_model, register_model_architecture
from omegaconf import DictConfig
from torch import Tensor, nn

from . import checkpoint
from .config import PRESETS, OFAModelConfig, Options, apply_preset, describe, resolve
from .decoder import OFADecoder
from .encoder import EncoderOut, OFAEncoder
from .prompts import freeze_all_but_prompts, train_only_biases

logger = logging.getLogger(__name__)


@register_model("ofa", dataclass=OFAModelConfig)
class OFAModel(FairseqEncoderDecoderModel):
    """Encoder, decoder, and any number of classification heads."""

    encoder: OFAEncoder
    decoder: OFADecoder

    def __init__(self, cfg: Options, encoder: OFAEncoder, decoder: OFADecoder) -> None:
        super().__init__(encoder, decoder)
        self.cfg = cfg
        self.supports_align_args = True
        self.classification_heads = nn.ModuleDict()
        self.apply(partial(init_weights, std=cfg.init_std))
        # The tied matrix is drawn as the output layer's: its padding row is not zero.
        nn.init.normal_(self.decoder.output_projection.weight, std=cfg.init_std)
        if cfg.resnet_model_path:
            encoder.embed_images.load_pretrained(cfg.resnet_model_path)
        self._freeze()
        for module in (*encoder.modules(), *decoder.modules()):
            if isinstance(module, nn.Linear) and module is not decoder.output_projection:
                module.weight.is_matrix = True  # type: ignore[attr-defined]  # for --optimizer muon

    @classmethod
    def build_model(cls, cfg: Namespace | DictConfig, task: Any) -> OFAModel:
        """Build from fairseq's configuration; `task` gives the dictionaries."""
        resolved = resolve(cfg)
        source, target = task.source_dictionary, task.target_dictionary
        embed = nn.Embedding(len(source), resolved.encoder_embed_dim, source.pad())
        if resolved.share_all_embeddings:
            if source is not target and source != target:
                raise ValueError("--share-all-embeddings needs one dictionary for source and target")
            decoder_embed = embed
        else:
            decoder_embed = nn.Embedding(len(target), resolved.decoder_embed_dim, target.pad())
        logger.info("OFA options: %s", describe(resolved))
        return cls(
            resolved,
            OFAEncoder(resolved, source, embed),
            OFADecoder(resolved, target, decoder_embed),
        )

    def _freeze(self) -> None:
        cfg = self.cfg
        if cfg.freeze_encoder_embedding or cfg.encoder_prompt or cfg.adapter:
            self.encoder.embed_tokens.weight.requires_grad = False
        if cfg.freeze_decoder_embedding or cfg.decoder_prompt or cfg.adapter:
            self.decoder.embed_tokens.weight.requires_grad = False
        if cfg.encoder_prompt or cfg.decoder_prompt:
            freeze_all_but_prompts(self.encoder, self.decoder)
        if cfg.bitfit:
            train_only_biases(self)

    def forward(
        self,
        src_tokens: Tensor,
        src_lengths: Tensor | None,
        prev_output_tokens: Tensor,
        patch_images: Tensor | None = None,
        patch_images_2: Tensor | None = None,
        patch_masks: Tensor | None = None,
        patch_rows: Tensor | None = None,
        code_masks: Tensor | None = None,
        sample_patch_num: int | None = None,
        features_only: bool = False,
        output_positions: Tensor | None = None,
        classification_head_name: str | None = None,
        token_embeddings: Tensor | None = None,
        return_all_hiddens: bool = False,
        alignment_layer: int | None = None,
        alignment_heads: int | None = None,
        encoder_out: EncoderOut | None = None,
    ) -> tuple[Tensor, dict[str, list[Any]]]:
        """Logits of every target position, or of some, teacher-forced.

        Args: see `OFAEncoder.forward` and `OFADecoder.forward`. `classification_head_name` applies a
            registered head to the feature of the last position that is not padding (so not with
            `output_positions`). `encoder_out` is what the
            encoder has made of these inputs before: it does not run again.

        Returns:
            logits [B, t, V], features [B, t, d] (`features_only`) or head output [B, classes]; with
            `output_positions` logits [M, V] or features [M, d]; and the decoder's extras.
        """
        if encoder_out is None:
            encoder_out = self.encoder(
                src_tokens,
                src_lengths,
                patch_images=patch_images,
                patch_images_2=patch_images_2,
                patch_masks=patch_masks,
                patch_rows=patch_rows,
                return_all_hiddens=return_all_hiddens,
                token_embeddings=token_embeddings,
                sample_patch_num=sample_patch_num,
            )
        x, extra = self.decoder(
            prev_output_tokens,
            encoder_out=encoder_out,
            code_masks=code_masks,
            features_only=features_only or classification_head_name is not None,
            output_positions=output_positions,
            alignment_layer=alignment_layer,
            alignment_heads=alignment_heads,
            return_all_hiddens=return_all_hiddens,
        )
        if classification_head_name is not None:
            x = self.classification_heads[classification_head_name](
                last_features(x, prev_output_tokens, self.decoder.padding_idx)
            )
        return x, extra

    def get_normalized_probs_scriptable(
        self, net_output: tuple[Tensor, Any], log_probs: bool, sample: dict[str, Any] | None = None
    ) -> Tensor:
        """(Log-)softmax of the logits in float32, [..., V]."""
        normalise = F.log_softmax if log_probs else F.softmax
        return normalise(net_output[0].float(), dim=-1)

    def max_decoder_positions(self) -> int:
        """Longest target a generator may make, one more than fairseq's own clamp leaves for the end."""
        return max(self.decoder.max_positions(), len(self.decoder.image_position_idx))

    def register_classification_head(
        self, name: str, num_classes: int, inner_dim: int | None = None, use_two_images: bool = False
    ) -> None:
        """Add a head over the decoder's last feature; registering a name again replaces the head."""
        cfg = self.cfg
        if name in self.classification_heads:
            logger.warning("classification head %s is replaced", name)
        self.classification_heads[name] = ClassificationHead(
            cfg.decoder_embed_dim * (2 if use_two_images else 1),
            inner_dim or cfg.decoder_embed_dim,
            num_classes,
            kind=cfg.pooler_classifier,
            activation_fn=cfg.pooler_activation_fn,
            dropout=cfg.pooler_dropout,
            spectral_norm=bool(cfg.spectral_norm_classification_head),
            rows_per_input=2 if use_two_images else 1,
        )

    def upgrade_state_dict_named(self, state_dict: dict[str, Tensor], name: str) -> None:
        """See `checkpoint.upgrade`; called by fairseq before loading."""
        super().upgrade_state_dict_named(state_dict, name)
        checkpoint.upgrade(state_dict, self)


class ClassificationHead(nn.Module):
    """Classes from one feature per row (`mlp`: a hidden layer; `linear`: none)."""

    def __init__(
        self,
        input_dim: int,
        inner_dim: int,
        num_classes: int,
        *,
        kind: str = "mlp",
        activation_fn: str = "tanh",
        dropout: float = 0.0,
        spectral_norm: bool = False,
        rows_per_input: int = 1,
    ) -> None:
        super().__init__()
        if kind not in ("mlp", "linear"):
            raise ValueError(f"--pooler-classifier {kind}: expected mlp or linear")
        self.rows_per_input = rows_per_input
        self.dropout = nn.Dropout(dropout)
        self.dense = nn.Linear(input_dim, inner_dim) if kind == "mlp" else None
        self.activation = utils.get_activation_fn(activation_fn)
        self.out_proj = nn.Linear(inner_dim if kind == "mlp" else input_dim, num_classes)
        if spectral_norm:
            self.out_proj = nn.utils.spectral_norm(self.out_proj)

    def forward(self, features: Tensor) -> Tensor:
        """[B * rows_per_input, d] -> [B, classes]; the rows of one input stand beside each other."""
        x = self.dropout(features.reshape(-1, features.size(-1) * self.rows_per_input))
        if self.dense is not None:
            x = self.dropout(self.activation(self.dense(x)))
        return self.out_proj(x)


def last_features(features: Tensor, tokens: Tensor, padding_idx: int) -> Tensor:
    """Features [B, t, d] at each row's last position that is not padding -> [B, d]."""
    last = tokens.ne(padding_idx).sum(dim=1) - 1
    return features[torch.arange(len(features), device=features.device), last]


def init_weights(module: nn.Module, std: float) -> None:
    """BERT-style initialisation, over what the constructors did; convolutions keep ResNet's own."""
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=std)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=std)
        if module.padding_idx is not None:
            nn.init.zeros_(module.weight[module.padding_idx])


for _name in PRESETS:
    register_model_architecture("ofa", _name)(partial(apply_preset, _name))
