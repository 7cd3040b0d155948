"""Options of the model, and the table of presets.

Every option is None until a preset or the user sets it. Released command lines name switches such as
`--scale-attn` without a value, and fairseq would turn a switch whose default is True OFF when it is named; so
no switch here defaults to True, and `DEFAULTS` says what an unset option becomes.
"""

from argparse import Namespace
from contextlib import nullcontext
from dataclasses import dataclass, field, fields
from types import SimpleNamespace
from typing import Any, NamedTuple, Optional

from fairseq.dataclass import FairseqDataclass
from omegaconf import II, DictConfig, open_dict


def _option(help_text: str, **metadata: Any) -> Any:
    return field(default=None, metadata={"help": help_text, **metadata})


@dataclass
class OFAModelConfig(FairseqDataclass):
    """Model options under their released names; None means: as the preset or `DEFAULTS` says."""

    activation_fn: Optional[str] = _option("activation of the feed-forward networks")
    dropout: Optional[float] = _option("dropout probability")
    attention_dropout: Optional[float] = _option("dropout on attention weights")
    activation_dropout: Optional[float] = _option(
        "dropout after the feed-forward activation", argparse_alias="--relu-dropout"
    )

    encoder_embed_dim: Optional[int] = _option("encoder width")
    encoder_ffn_embed_dim: Optional[int] = _option("encoder feed-forward width")
    encoder_layers: Optional[int] = _option("number of encoder layers")
    encoder_attention_heads: Optional[int] = _option("number of encoder attention heads")
    encoder_normalize_before: Optional[bool] = _option("norms before each encoder block (always in releases)")
    encoder_learned_pos: Optional[bool] = _option("accepted, no effect: positions are always learnt")
    encoder_drop_path_rate: Optional[float] = _option("stochastic depth of the last encoder layer")
    decoder_embed_dim: Optional[int] = _option("decoder width")
    decoder_ffn_embed_dim: Optional[int] = _option("decoder feed-forward width")
    decoder_layers: Optional[int] = _option("number of decoder layers")
    decoder_attention_heads: Optional[int] = _option("number of decoder attention heads")
    decoder_normalize_before: Optional[bool] = _option("norms before each decoder block (always in releases)")
    decoder_learned_pos: Optional[bool] = _option("accepted, no effect: positions are always learnt")
    decoder_drop_path_rate: Optional[float] = _option("stochastic depth of the last decoder layer")

    share_decoder_input_output_embed: Optional[bool] = _option("one matrix for decoder input and output")
    share_all_embeddings: Optional[bool] = _option("one matrix for encoder input, decoder input and output")
    no_scale_embedding: Optional[bool] = _option("do not multiply embeddings by sqrt(width)")
    layernorm_embedding: Optional[bool] = _option("LayerNorm on text embeddings")
    patch_layernorm_embedding: Optional[bool] = _option("LayerNorm on image patch embeddings")
    code_layernorm_embedding: Optional[bool] = _option("LayerNorm on image code embeddings")
    add_type_embedding: Optional[bool] = _option("a learnt vector for text and one for images (encoder)")
    scale_attn: Optional[bool] = _option("LayerNorm after each attention (NormFormer)")
    scale_fc: Optional[bool] = _option("LayerNorm inside each feed-forward network (NormFormer)")
    scale_heads: Optional[bool] = _option("a learnt factor for each attention head (NormFormer)")
    scale_resids: Optional[bool] = _option("a learnt factor for each feed-forward residual (NormFormer)")
    attn_scale_factor: Optional[float] = _option("number of terms that share the attention logits")
    entangle_position_embedding: Optional[bool] = _option("also add positions to the encoder's content")
    disable_entangle: Optional[bool] = _option("do not add positions to the decoder's content")
    token_bucket_size: Optional[int] = _option("half the number of relative text buckets")
    image_bucket_size: Optional[int] = _option("side of the largest grid of patches or codes")
    interpolate_position: Optional[bool] = _option(
        "resize absolute image positions when a picture has more patches than --orig-patch-image-size"
    )

    resnet_type: Optional[str] = _option("visual stem: resnet_nano, resnet18, 34, 50, 101 or 152")
    resnet_model_path: Optional[str] = _option("file with a state dict for the visual stem")
    resnet_drop_path_rate: Optional[float] = _option("stochastic depth of each ResNet stage's last block")
    freeze_resnet: Optional[bool] = _option("freeze the stem's BatchNorm (its convolutions still train)")
    sync_bn: Optional[bool] = _option("synchronise the stem's BatchNorm over devices (epsilon 1e-3)")
    freeze_encoder_embedding: Optional[bool] = _option("freeze the encoder's token embeddings")
    freeze_decoder_embedding: Optional[bool] = _option("freeze the decoder's token embeddings")
    code_image_size: Optional[int] = _option("side in pixels of a drawn picture: (side / 8)^2 codes")

    encoder_prompt: Optional[bool] = _option("prefix tuning of the encoder")
    encoder_prompt_type: Optional[str] = _option("prefix")
    encoder_prompt_length: Optional[int] = _option("number of prompt positions")
    encoder_prompt_projection: Optional[bool] = _option("project the prompt through a hidden layer")
    encoder_prompt_dim: Optional[int] = _option("width of that layer (default: twice the encoder width)")
    decoder_prompt: Optional[bool] = _option("prefix tuning of the decoder")
    decoder_prompt_type: Optional[str] = _option("prefix")
    decoder_prompt_length: Optional[int] = _option("number of prompt positions")
    decoder_prompt_projection: Optional[bool] = _option("project the prompt through a hidden layer")
    decoder_prompt_dim: Optional[int] = _option("width of that layer (default: twice the encoder width)")
    adapter: Optional[bool] = _option("adapters in every layer (freezes token embeddings only, as released)")
    adapter_dim: Optional[int] = _option("width of the adapters")
    bitfit: Optional[bool] = _option("train biases of layer_norm and fc modules only")

    pooler_activation_fn: Optional[str] = _option("activation of classification heads")
    pooler_dropout: Optional[float] = _option("dropout of classification heads")
    pooler_classifier: Optional[str] = _option("kind of classification head: mlp or linear")
    spectral_norm_classification_head: Optional[bool] = _option("spectral norm on the head's output layer")

    init_std: Optional[float] = _option(
        "standard deviation of initial weights, where no checkpoint is loaded"
    )

    checkpoint_activations: Optional[bool] = _option("recompute layers in the backward pass to save memory")
    offload_activations: Optional[bool] = _option("checkpoint, and keep layer inputs on the CPU")
    min_params_to_wrap: Optional[int] = _option("FSDP: smallest number of parameters to wrap")

    freeze_encoder: Optional[bool] = _option("accepted as in released command lines; freezes nothing")
    freeze_decoder: Optional[bool] = _option("accepted as in released command lines; freezes nothing")
    no_token_positional_embeddings: Optional[bool] = _option("accepted, no effect")

    # The task owns these.
    max_source_positions: Optional[int] = II("task.max_source_positions")
    max_target_positions: Optional[int] = II("task.max_target_positions")
    orig_patch_image_size: Optional[int] = II("task.orig_patch_image_size")


class Preset(NamedTuple):
    """Sizes of one architecture; encoder and decoder share width and number of heads."""

    dim: int
    ffn_dim: int
    encoder_layers: int
    decoder_layers: int
    heads: int
    resnet_type: str
    extra: dict[str, Any] = {}

    def options(self) -> dict[str, Any]:
        return {
            "encoder_embed_dim": self.dim,
            "encoder_ffn_embed_dim": self.ffn_dim,
            "encoder_layers": self.encoder_layers,
            "encoder_attention_heads": self.heads,
            "decoder_embed_dim": self.dim,
            "decoder_ffn_embed_dim": self.ffn_dim,
            "decoder_layers": self.decoder_layers,
            "decoder_attention_heads": self.heads,
            "resnet_type": self.resnet_type,
            **self.extra,
        }


# What every released recipe switches on, and what the released checkpoints need.
RECIPE_SWITCHES = {"scale_attn": True, "scale_fc": True, "scale_heads": True, "disable_entangle": True}

PRESETS = {
    # Ours, for the embedded data, trained from scratch: the recipe's switches on, a grid that suits small
    # pictures, and initial weights of 128^-0.5 (BERT's 0.02 is made for widths near 1,000; with it nano took more
    # than twice as long to learn to read).
    "ofa_nano": Preset(
        128,
        512,
        3,
        3,
        4,
        "resnet_nano",
        {**RECIPE_SWITCHES, "image_bucket_size": 16, "code_image_size": 64, "init_std": 0.09},
    ),
    "ofa_tiny": Preset(256, 1024, 4, 4, 4, "resnet50"),
    "ofa_medium": Preset(512, 2048, 4, 4, 8, "resnet101"),
    "ofa_base": Preset(768, 3072, 6, 6, 12, "resnet101"),
    "ofa_large": Preset(1024, 4096, 12, 12, 16, "resnet152"),
    "ofa_huge": Preset(1280, 5120, 24, 12, 16, "resnet152"),
}

DEFAULTS: dict[str, Any] = {
    "activation_fn": "gelu",
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "encoder_drop_path_rate": 0.0,
    "decoder_drop_path_rate": 0.0,
    "resnet_drop_path_rate": 0.0,
    "encoder_normalize_before": True,
    "decoder_normalize_before": True,
    "share_all_embeddings": True,
    "share_decoder_input_output_embed": True,
    "no_scale_embedding": True,
    "layernorm_embedding": True,
    "patch_layernorm_embedding": True,
    "code_layernorm_embedding": True,
    "add_type_embedding": True,
    "attn_scale_factor": 2.0,
    "token_bucket_size": 256,
    "image_bucket_size": 42,
    "code_image_size": 128,
    "encoder_prompt_type": "prefix",
    "encoder_prompt_length": 100,
    "decoder_prompt_type": "prefix",
    "decoder_prompt_length": 100,
    "adapter_dim": 200,
    "init_std": 0.02,
    "pooler_activation_fn": "tanh",
    "pooler_dropout": 0.0,
    "pooler_classifier": "mlp",
    "min_params_to_wrap": int(1e8),
    "max_source_positions": 1024,
    "max_target_positions": 1024,
    "orig_patch_image_size": 256,
}


def apply_preset(name: str, cfg: Namespace | DictConfig) -> None:
    """Set what the preset says and the user has not set; called by fairseq with its kind of config.

    Raises:
        ValueError: for an option that the model does not have, in a node of YAML (fairseq checks flags itself).
    """
    known = {f.name for f in fields(OFAModelConfig)}
    if isinstance(cfg, DictConfig):
        unknown = [str(key) for key in cfg if key not in known]
        if unknown:
            raise ValueError(f"model options that OFA does not have: {', '.join(unknown)}")
    elif getattr(cfg, "bf16", False):
        cfg.tpu = (
            False  # fairseq's option parser takes every --bf16 for a TPU, and starts processes accordingly
        )
    with open_dict(cfg) if isinstance(cfg, DictConfig) else nullcontext():
        for key, value in PRESETS[name].options().items():
            if getattr(cfg, key, None) is None:
                setattr(cfg, key, value)


class Options(SimpleNamespace):
    """Every option of `OFAModelConfig`, with presets and defaults filled in."""


def resolve(cfg: Namespace | DictConfig | OFAModelConfig) -> Options:
    """A complete configuration: every option that can have a value has one, unset switches are False.

    Accepts what fairseq hands to `build_model`: a node of the command line or of YAML, or the Namespace
    saved in a released checkpoint (which also holds options of everything else, and lacks newer ones).
    """
    resolved = Options()
    for f in fields(OFAModelConfig):
        if f.name.startswith("_"):
            continue
        value = getattr(cfg, f.name, None)
        if value is None or (isinstance(value, str) and value.startswith("${")):
            value = DEFAULTS.get(f.name, False if f.type == Optional[bool] else None)
        setattr(resolved, f.name, value)
    if resolved.encoder_embed_dim is None:
        raise ValueError(f"the model has no sizes: use --arch {' | '.join(PRESETS)}")
    for half in ("encoder", "decoder"):
        if getattr(resolved, f"{half}_prompt_type") != "prefix":
            raise ValueError(f"--{half}-prompt-type: only 'prefix' exists")
    return resolved


def describe(cfg: Options) -> str:
    """The options that differ from an all-default configuration, for the log."""
    return ", ".join(
        f"{k}={v}" for k, v in vars(cfg).items() if v not in (None, False) and v != DEFAULTS.get(k)
    )
