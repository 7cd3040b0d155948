"""The model computes what the original did, and its state dict has the released names and shapes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from model_builders import RELEASED_VOCABULARY, build_model, normal_images, tiny_model

from ofa_fairseq.models.config import PRESETS, RECIPE_SWITCHES

# Logits are of order 1 and the original was measured in float32.
TOLERANCE = 2e-4

CASES: dict[str, tuple[dict[str, Any], tuple[int, ...] | None, int]] = {
    # name: model options, shape of the pictures, seed of the pictures
    "caption_tiny": ({}, (3, 3, 128, 128), 3),
    "text_only_tiny": ({}, None, 0),
    "image_codes_tiny": ({}, None, 0),
    "mixed_codes_tiny": ({}, (2, 3, 128, 128), 8),
    "interpolated_tiny": (
        {"patch_image_size": 320, "orig_patch_image_size": 256, "interpolate_position": True},
        (2, 3, 320, 320),
        10,
    ),
    "plain_blocks_tiny": (
        {"scale_attn": False, "scale_fc": False, "scale_heads": False, "scale_resids": True},
        (3, 3, 128, 128),
        3,
    ),
}

# Parameters and state-dict entries of the original with the recipe's switches, and parameters of its ResNet.
RELEASED_COUNTS = {
    "ofa_tiny": (33_488_336, 543, 8_543_296),
    "ofa_medium": (92_892_000, 849, 27_535_424),
    "ofa_base": (182_238_536, 967, 27_535_424),
    "ofa_large": (472_977_152, 1627, 43_179_072),
    "ofa_huge": (929_486_848, 1903, 43_179_072),
}


@pytest.mark.parametrize("case", CASES)
def test_outputs_agree_with_the_original(case: str, reference_dir: Path, tiny: Any) -> None:
    options, shape, seed = CASES[case]
    reference = {
        key: torch.from_numpy(value) for key, value in np.load(reference_dir / f"{case}.npz").items()
    }
    model = tiny_model(**options) if options else tiny
    pictures = {}
    if shape is not None:
        pictures = {"patch_images": normal_images(seed, shape), "patch_masks": reference["patch_masks"]}
    source, target = reference["src_tokens"], reference["prev_output_tokens"]
    with torch.no_grad():
        states = model.encoder(source, **pictures)["encoder_out"][0]
        logits, _ = model(
            source, reference["src_lengths"], target, code_masks=reference.get("code_masks"), **pictures
        )

    assert (states.mean(dim=-1) - reference["encoder_mean"]).abs().max() < TOLERANCE
    assert (states[..., :8] - reference["encoder_first8"]).abs().max() < TOLERANCE
    assert (logits[..., reference["probe"]] - reference["logits_probe"]).abs().max() < TOLERANCE
    assert (logits.logsumexp(dim=-1) - reference["logsumexp"]).abs().max() < TOLERANCE
    real = target.ne(1)
    assert torch.equal(logits.argmax(dim=-1)[real], reference["argmax"][real])


def on_meta(arch: str, **options: Any) -> Any:
    with torch.device("meta"):
        return build_model(
            arch, RELEASED_VOCABULARY, **{**RECIPE_SWITCHES, "code_image_size": 256, **options}
        )


@pytest.mark.parametrize("arch", RELEASED_COUNTS)
def test_sizes_of_the_released_presets(arch: str) -> None:
    model = on_meta(arch)
    stem = model.encoder.embed_images
    counted = (
        sum(p.numel() for p in model.parameters()),
        len(model.state_dict()),
        sum(p.numel() for p in stem.parameters()),
    )
    assert counted == RELEASED_COUNTS[arch]


def test_nano_is_small() -> None:
    # The embedded data's vocabulary has a few hundred entries.
    model = build_model("ofa_nano", 1000)
    assert 1e6 < sum(p.numel() for p in model.parameters()) < 12e6
    assert set(PRESETS) == {*RELEASED_COUNTS, "ofa_nano"}


def released_shapes(
    d: int, ffn: int, heads: int, layers: dict[str, int], vocabulary: int
) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the released state dict but for the ResNet's, written out from their description."""

    def pair(name: str, *shape: int) -> dict[str, tuple[int, ...]]:
        return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}

    shapes: dict[str, tuple[int, ...]] = {
        "encoder.type_embedding.weight": (2, d),
        "decoder.output_projection.weight": (vocabulary, d),
        "decoder.image_position_idx": (1 + 32 * 32 + 769,),
        **pair("encoder.image_proj", d, 1024),
        **pair("encoder.patch_layernorm_embedding", d),
        **pair("decoder.code_layernorm_embedding", d),
    }
    linears = {
        "encoder": ("pos_q_linear", "pos_k_linear"),
        "decoder": ("self_pos_q_linear", "self_pos_k_linear", "cross_pos_q_linear", "cross_pos_k_linear"),
    }
    blocks = {
        "encoder": {"self_attn": "attn_ln"},
        "decoder": {"self_attn": "self_attn_ln", "encoder_attn": "cross_attn_ln"},
    }
    for half in ("encoder", "decoder"):
        shapes |= {
            f"{half}.version": (1,),
            f"{half}.embed_tokens.weight": (vocabulary, d),
            f"{half}.token_rp_bucket": (1024, 1024),
            f"{half}.image_rp_bucket": (1765, 1765),
            f"{half}.embed_positions.weight": (1026, d),
            f"{half}.embed_image_positions.weight": (1765, d),
        }
        for norm in ("layernorm_embedding", "pos_ln", "image_pos_ln", "layer_norm"):
            shapes |= pair(f"{half}.{norm}", d)
        for linear in linears[half]:
            shapes |= pair(f"{half}.{linear}", d, d)
        for i in range(layers[half]):
            layer = f"{half}.layers.{i}"
            shapes[f"{half}.token_rel_pos_table_list.{i}.weight"] = (511, heads)
            shapes[f"{half}.image_rel_pos_table_list.{i}.weight"] = (6892, heads)
            for attention, norm_after in blocks[half].items():
                for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
                    shapes |= pair(f"{layer}.{attention}.{projection}", d, d)
                shapes[f"{layer}.{attention}.c_attn"] = (heads,)
                shapes |= pair(f"{layer}.{attention}_layer_norm", d)
                shapes |= pair(f"{layer}.{norm_after}", d)
            shapes |= pair(f"{layer}.final_layer_norm", d)
            shapes |= pair(f"{layer}.ffn_layernorm", ffn)
            shapes |= pair(f"{layer}.fc1", ffn, d)
            shapes |= pair(f"{layer}.fc2", d, ffn)
    return shapes


def test_names_and_shapes_are_the_released_ones() -> None:
    state = on_meta("ofa_base").state_dict()
    expected = released_shapes(768, 3072, 12, {"encoder": 6, "decoder": 6}, RELEASED_VOCABULARY)
    ours = {k: tuple(v.shape) for k, v in state.items() if not k.startswith("encoder.embed_images.")}
    assert ours == expected
    integers = {k.split(".")[-1] for k, v in state.items() if v.dtype == torch.long}
    assert integers == {"token_rp_bucket", "image_rp_bucket", "image_position_idx", "num_batches_tracked"}


def test_optional_parts_have_the_released_names() -> None:
    with_resids = on_meta("ofa_tiny", scale_resids=True).state_dict()
    added = set(with_resids) - set(on_meta("ofa_tiny").state_dict())
    assert added == {f"{half}.layers.{i}.w_resid" for half in ("encoder", "decoder") for i in range(4)}
    assert with_resids["encoder.layers.0.w_resid"].shape == (256,)


def test_bare_preset_lacks_what_the_recipes_switch_on() -> None:
    with torch.device("meta"):
        bare = set(build_model("ofa_tiny", RELEASED_VOCABULARY).state_dict())
    missing = set(on_meta("ofa_tiny").state_dict()) - bare
    assert {name.split(".")[-2 if name.endswith((".weight", ".bias")) else -1] for name in missing} == {
        "c_attn",
        "attn_ln",
        "self_attn_ln",
        "cross_attn_ln",
        "ffn_layernorm",
    }
