"""Options as they come: from the command line, from YAML, and from the Namespace in a released checkpoint."""

from argparse import Namespace
from dataclasses import fields
from typing import Any, Optional

import pytest
import torch
from fairseq.models import ARCH_MODEL_REGISTRY, build_model
from model_builders import (
    SMALL,
    SMALL_FLAGS,
    model_from_flags,
    numbered_dictionary,
    parse_flags,
    small_model,
    task_of,
)
from omegaconf import OmegaConf

from ofa_fairseq.models.config import (
    DEFAULTS,
    PRESETS,
    RECIPE_SWITCHES,
    OFAModelConfig,
    Options,
    apply_preset,
    describe,
    resolve,
)
from ofa_fairseq.models.ofa import OFAModel

# width, feed-forward width, encoder layers, decoder layers, heads, stem: the released table
RELEASED_SIZES = {
    "ofa_tiny": (256, 1024, 4, 4, 4, "resnet50"),
    "ofa_medium": (512, 2048, 4, 4, 8, "resnet101"),
    "ofa_base": (768, 3072, 6, 6, 12, "resnet101"),
    "ofa_large": (1024, 4096, 12, 12, 16, "resnet152"),
    "ofa_huge": (1280, 5120, 24, 12, 16, "resnet152"),
}


def sizes(cfg: Options) -> tuple[Any, ...]:
    encoder = cfg.encoder_embed_dim, cfg.encoder_ffn_embed_dim, cfg.encoder_attention_heads
    assert encoder == (cfg.decoder_embed_dim, cfg.decoder_ffn_embed_dim, cfg.decoder_attention_heads)
    dim, ffn_dim, heads = encoder
    return dim, ffn_dim, cfg.encoder_layers, cfg.decoder_layers, heads, cfg.resnet_type


@pytest.mark.parametrize("arch", RELEASED_SIZES)
def test_presets_on_the_command_line(arch: str) -> None:
    cfg = resolve(parse_flags("--arch", arch).model)
    assert sizes(cfg) == RELEASED_SIZES[arch]
    assert cfg.activation_fn == "gelu"
    for switch in ("encoder_normalize_before", "share_all_embeddings", "layernorm_embedding"):
        assert getattr(cfg, switch) is True
    # A bare preset leaves the recipe's switches off, as released.
    assert not any(getattr(cfg, switch) for switch in [*RECIPE_SWITCHES, "scale_resids"])


def test_nano_has_the_switches_of_the_recipes() -> None:
    cfg = resolve(parse_flags("--arch", "ofa_nano").model)
    assert all(getattr(cfg, switch) for switch in RECIPE_SWITCHES)


def test_every_preset_is_registered() -> None:
    assert {name for name, model in ARCH_MODEL_REGISTRY.items() if model is OFAModel} == {"ofa", *PRESETS}


def test_flags_win_over_the_preset() -> None:
    cfg = resolve(
        parse_flags(
            *("--arch", "ofa_base", "--encoder-layers", "2", "--decoder-ffn-embed-dim=99"),
            *("--resnet-type", "resnet50", "--dropout", "0.1", "--relu-dropout=0.3", "--scale-attn"),
            *("--encoder-drop-path-rate=0.2", "--attn-scale-factor", "3", "--code-image-size=256"),
        ).model
    )
    assert (cfg.encoder_layers, cfg.decoder_layers, cfg.decoder_ffn_embed_dim) == (2, 6, 99)
    assert (cfg.resnet_type, cfg.dropout, cfg.activation_dropout) == ("resnet50", 0.1, 0.3)
    assert (cfg.encoder_drop_path_rate, cfg.attn_scale_factor, cfg.code_image_size) == (0.2, 3.0, 256)
    assert cfg.scale_attn is True
    assert cfg.scale_fc is False


def test_naming_a_switch_that_is_on_leaves_it_on() -> None:
    flags = ["--share-all-embeddings", "--layernorm-embedding", "--encoder-normalize-before"]
    cfg = resolve(parse_flags("--arch", "ofa_tiny", *flags).model)
    assert cfg.share_all_embeddings is cfg.layernorm_embedding is cfg.encoder_normalize_before is True


def test_the_model_takes_its_positions_from_the_task() -> None:
    cfg = resolve(
        parse_flags(
            *("--arch", "ofa_tiny", "--max-source-positions=77", "--max-target-positions=88"),
            "--orig-patch-image-size=224",
        ).model
    )
    positions = cfg.max_source_positions, cfg.max_target_positions, cfg.orig_patch_image_size
    assert positions == (77, 88, 224)


def test_every_option_of_the_recipes_is_known() -> None:
    cfg = parse_flags(
        *("--arch=ofa_base", "--share-decoder-input-output-embed", "--share-all-embeddings"),
        *("--layernorm-embedding", "--patch-layernorm-embedding", "--code-layernorm-embedding"),
        *("--resnet-drop-path-rate=0.0", "--encoder-drop-path-rate=0.1", "--decoder-drop-path-rate=0.1"),
        *("--dropout=0.1", "--attention-dropout=0.0", "--encoder-normalize-before"),
        *("--decoder-normalize-before", "--add-type-embedding", "--scale-attn", "--scale-fc"),
        *("--scale-heads", "--disable-entangle", "--freeze-encoder-embedding"),
        *("--freeze-decoder-embedding", "--freeze-resnet", "--sync-bn"),
    )
    assert describe(resolve(cfg.model)) == (
        "dropout=0.1, encoder_embed_dim=768, encoder_ffn_embed_dim=3072, encoder_layers=6,"
        " encoder_attention_heads=12, encoder_drop_path_rate=0.1, decoder_embed_dim=768,"
        " decoder_ffn_embed_dim=3072, decoder_layers=6, decoder_attention_heads=12,"
        " decoder_drop_path_rate=0.1, scale_attn=True, scale_fc=True, scale_heads=True,"
        " disable_entangle=True, resnet_type=resnet101, freeze_resnet=True, sync_bn=True,"
        " freeze_encoder_embedding=True, freeze_decoder_embedding=True"
    )


def test_unset_options_become_the_defaults() -> None:
    cfg = resolve(Namespace(encoder_embed_dim=8))
    for f in fields(OFAModelConfig):
        value = getattr(cfg, f.name, None)
        if f.name in DEFAULTS:
            assert value == DEFAULTS[f.name], f.name
        elif f.type == Optional[bool]:
            assert value is False, f.name
        elif f.name != "encoder_embed_dim":
            assert value is None, f.name
    assert {name for name in DEFAULTS if not hasattr(cfg, name)} == set()


def test_a_switch_can_be_turned_off_where_it_is_given() -> None:
    assert resolve(Namespace(encoder_embed_dim=8, layernorm_embedding=False)).layernorm_embedding is False
    assert resolve(Namespace(encoder_embed_dim=8, dropout=0)).dropout == 0


def test_the_namespace_of_a_released_checkpoint() -> None:
    """It holds every option of the run, model or not, and lacks what is newer."""
    saved = Namespace(
        _name="ofa_base",
        arch="ofa_base",
        task="caption",
        bpe_dir="../../utils/BPE",
        encoder_embed_path=None,
        encoder_layerdrop=0,
        adaptive_softmax_cutoff=None,
        scale_attn=True,
        scale_resids=False,
        code_image_size=256,
        max_source_positions=1024,
        patch_image_size=480,
        attn_scale_factor=2,
    )
    apply_preset("ofa_base", saved)
    cfg = resolve(saved)
    assert sizes(cfg) == RELEASED_SIZES["ofa_base"]
    assert (cfg.scale_attn, cfg.scale_fc, cfg.code_image_size, cfg.adapter) == (True, False, 256, False)
    assert not hasattr(cfg, "bpe_dir")


@pytest.mark.parametrize("kind", ["namespace", "node"])
def test_fairseq_builds_the_model_by_the_name_of_its_preset(kind: str) -> None:
    options = {"_name": "ofa_nano", **SMALL, "scale_resids": True}
    cfg = Namespace(**options) if kind == "namespace" else OmegaConf.create(options)
    model = build_model(cfg, task_of(numbered_dictionary(40)))
    assert isinstance(model, OFAModel)
    assert model.encoder.layers[0].w_resid is not None
    assert model.encoder.layers[0].attn_ln is not None  # from the preset
    assert sizes(model.cfg)[:3] == (32, 48, 2)


def test_flags_build_the_same_model_as_options() -> None:
    from_flags, from_options = model_from_flags(*SMALL_FLAGS), small_model()
    assert vars(from_flags.cfg) == vars(from_options.cfg)
    assert from_flags.state_dict().keys() == from_options.state_dict().keys()


def test_a_model_without_sizes_is_an_error() -> None:
    with pytest.raises(ValueError, match="the model has no sizes: use --arch ofa_nano"):
        resolve(parse_flags("--arch", "ofa").model)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoder_prompt_type": "soft"}, "--encoder-prompt-type: only 'prefix'"),
        ({"decoder_prompt_type": "soft"}, "--decoder-prompt-type: only 'prefix'"),
        ({"resnet_type": "ViT-B/16"}, "--resnet-type ViT-B/16: expected one of"),
        ({"encoder_attention_heads": 5}, "the width 32 is not a multiple of the number of heads 5"),
    ],
    ids=str,
)
def test_wrong_options_are_errors(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_model(**options)


def test_wrong_kind_of_classification_head_is_an_error() -> None:
    with pytest.raises(ValueError, match="--pooler-classifier conv: expected mlp or linear"):
        small_model(pooler_classifier="conv").register_classification_head("x", 2)


def test_untied_matrices() -> None:
    model = small_model(share_all_embeddings=False, share_decoder_input_output_embed=False)
    matrices = [
        model.encoder.embed_tokens.weight,
        model.decoder.embed_tokens.weight,
        model.decoder.output_projection.weight,
    ]
    assert len({m.data_ptr() for m in matrices}) == 3
    tied = small_model()
    assert tied.encoder.embed_tokens.weight is tied.decoder.output_projection.weight
    assert tied.encoder.embed_tokens.weight is tied.decoder.embed_tokens.weight


def test_tied_matrices_need_one_dictionary() -> None:
    task = task_of(numbered_dictionary(40))
    task.target_dictionary = numbered_dictionary(41)
    with pytest.raises(ValueError, match="--share-all-embeddings needs one dictionary"):
        OFAModel.build_model(Namespace(**SMALL, resnet_type="resnet_nano"), task)


def test_initial_weights() -> None:
    """As BERT's: one normal distribution for linears and tables, whatever the parts' own constructors draw."""
    assert resolve(parse_flags("--arch", "ofa_tiny").model).init_std == 0.02
    torch.manual_seed(0)
    flags = ["--init-std=0.03", "--encoder-prompt", "--adapter", "--scale-resids"]
    model = model_from_flags(*SMALL_FLAGS, *flags)
    for name, parameter in model.named_parameters():
        if ".embed_images." in name:
            continue
        if name.endswith("bias"):
            assert parameter.abs().max() == 0, name
        elif name.endswith(("c_attn", "w_resid")) or parameter.dim() == 1:
            assert (parameter == 1).all(), name
        else:
            assert parameter.std().item() == pytest.approx(0.03, rel=0.3), name
            assert parameter.abs().max() < 0.2, name
    # The tied matrix is drawn as the output's: its padding row too.
    assert model.encoder.embed_tokens.weight[1].abs().max() > 0
    stem = model.encoder.embed_images
    assert stem.conv1.weight.std().item() == pytest.approx(
        (2 / (64 * 7 * 7)) ** 0.5, rel=0.1
    )  # fan-out, ReLU
    assert (stem.layer3[0].bn3.weight == 1).all()
