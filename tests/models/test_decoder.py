"""The decoder: one position at a time equals all at once, nothing looks ahead, padding changes nothing."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from model_builders import normal_images, random_tokens, small_model
from torch import Tensor

from ofa_fairseq.models.decoder import BIAS_CHUNK
from ofa_fairseq.models.encoder import EncoderOut

pytestmark = pytest.mark.usefixtures("no_grad")
ROWS, SOURCE = 3, 5
TOLERANCE = 2e-5  # logits of the filled models are of order 1
TEXT, CODES, MIXED = None, [True] * ROWS, [False, True, False]

VARIANTS: dict[str, dict[str, Any]] = {
    "recipe": {},
    "entangled": {"disable_entangle": False},
    "prompts": {"decoder_prompt": True, "decoder_prompt_length": 3, "encoder_prompt": True},
    "post_norm": {"decoder_normalize_before": False, "encoder_normalize_before": False},
    "plain": {"scale_attn": False, "scale_fc": False, "scale_heads": False, "scale_resids": True},
    "one_embedding_norm": {"code_layernorm_embedding": False},
    "adapters": {"adapter": True, "adapter_dim": 5},
}


def encode(model: Any, rows: int = ROWS, padded: bool = True) -> EncoderOut:
    """Sources with a picture; the last row's text is shorter and its picture masked."""
    source = random_tokens(1, rows, SOURCE)
    masks = torch.ones(rows, dtype=torch.bool)
    if padded:
        source[-1, 3:] = 1
        masks[-1] = False
    return model.encoder(source, patch_images=normal_images(2, (rows, 3, 32, 48)), patch_masks=masks)


def mask_of(kinds: Sequence[bool] | None) -> Tensor | None:
    return None if kinds is None else torch.tensor(kinds)


def stepwise(
    model: Any,
    target: Tensor,
    encoder_out: EncoderOut,
    code_masks: Tensor | None = None,
    ends: Sequence[int] | None = None,
) -> Tensor:
    """Logits at all positions, from calls with prefixes of growing lengths (default: one position more each)."""
    state: dict[str, Any] = {}
    return torch.cat(
        [
            model.decoder(
                target[:, :end], encoder_out=encoder_out, code_masks=code_masks, incremental_state=state
            )[0]
            for end in ends or range(1, target.size(1) + 1)
        ],
        dim=1,
    )


@pytest.mark.parametrize("kinds", [TEXT, CODES, MIXED], ids=["text", "codes", "mixed"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_step_by_step_equals_all_at_once(variant: str, kinds: Sequence[bool] | None) -> None:
    model = small_model(**VARIANTS[variant])
    encoder_out, code_masks = encode(model), mask_of(kinds)
    # Longer than a chunk of biases, than a row of codes (4) and than the grid of codes (16).
    target = random_tokens(3, ROWS, BIAS_CHUNK + 6)
    full, _ = model.decoder(target, encoder_out=encoder_out, code_masks=code_masks)
    assert full.std() > 0.1
    assert (stepwise(model, target, encoder_out, code_masks) - full).abs().max() < TOLERANCE


@pytest.mark.parametrize("ends", [[40], [3, 4, 9, 40], [31, 32, 33, 40], [30, 36, 40]], ids=str)
@pytest.mark.parametrize("kinds", [TEXT, MIXED], ids=["text", "mixed"])
def test_several_new_positions_at_once(model: Any, kinds: Sequence[bool] | None, ends: list[int]) -> None:
    encoder_out, code_masks = encode(model), mask_of(kinds)
    target = random_tokens(4, ROWS, 40)
    full, _ = model.decoder(target, encoder_out=encoder_out, code_masks=code_masks)
    assert (stepwise(model, target, encoder_out, code_masks, ends) - full).abs().max() < TOLERANCE


@pytest.mark.parametrize("kinds", [TEXT, CODES, MIXED], ids=["text", "codes", "mixed"])
def test_a_mixed_batch_gives_rows_what_a_pure_batch_gives(model: Any, kinds: Sequence[bool] | None) -> None:
    encoder_out, target = encode(model), random_tokens(5, ROWS, 20)
    text, _ = model.decoder(target, encoder_out=encoder_out)
    code, _ = model.decoder(target, encoder_out=encoder_out, code_masks=mask_of(CODES))
    assert (text - code).abs().max() > 0.1
    together, _ = model.decoder(target, encoder_out=encoder_out, code_masks=mask_of(kinds))
    for row, is_code in enumerate(kinds or [False] * ROWS):
        assert torch.allclose(together[row], (code if is_code else text)[row], atol=TOLERANCE)


def repeated(model: Any, encoder_out: EncoderOut, times: int) -> EncoderOut:
    return model.encoder.reorder_encoder_out(encoder_out, torch.arange(ROWS).repeat_interleave(times))


@pytest.mark.parametrize("kinds", [TEXT, MIXED], ids=["text", "mixed"])
@pytest.mark.parametrize("incremental", [False, True])
def test_beams_share_the_row_of_their_picture(
    model: Any, kinds: Sequence[bool] | None, incremental: bool
) -> None:
    encoder_out, target = encode(model), random_tokens(6, 3 * ROWS, 12)
    every_mask = mask_of([kind for kind in kinds for _ in range(3)] if kinds else None)
    expected, _ = model.decoder(target, encoder_out=repeated(model, encoder_out, 3), code_masks=every_mask)
    if incremental:
        shared = stepwise(model, target, encoder_out, mask_of(kinds), [1, 2, 5, 6, 12])
    else:
        shared, _ = model.decoder(target, encoder_out=encoder_out, code_masks=mask_of(kinds))
    assert (shared - expected).abs().max() < TOLERANCE


@pytest.mark.parametrize("beam", [1, 3])
@pytest.mark.parametrize("variant", ["recipe", "prompts", "sampled patches"])
@pytest.mark.parametrize("kinds", [TEXT, MIXED], ids=["text", "mixed"])
def test_beams_are_reordered_and_sentences_leave(
    beam: int, variant: str, kinds: Sequence[bool] | None
) -> None:
    """What beam search does: after each step rows follow others of their sentence; sentences 0 and 1 end early."""
    model = small_model(**VARIANTS.get(variant, {}))
    encoder_out, code_masks = encode(model), mask_of(kinds)
    if variant == "sampled patches":  # then the bias to the source differs by row
        images = normal_images(2, (ROWS, 3, 32, 48))
        encoder_out = model.encoder(random_tokens(1, ROWS, SOURCE), patch_images=images, sample_patch_num=3)
    generator = torch.Generator().manual_seed(7)
    tokens = torch.zeros(ROWS * beam, 1, dtype=torch.long)
    state: dict[str, Any] = {}
    sentences = torch.arange(ROWS)
    for step in range(2 * BIAS_CHUNK + 3):
        logits, _ = model.decoder(
            tokens, encoder_out=encoder_out, code_masks=code_masks, incremental_state=state
        )
        whole = model.encoder.reorder_encoder_out(
            encoder_out, torch.arange(len(sentences)).repeat_interleave(beam)
        )
        masks = None if code_masks is None else code_masks[sentences].repeat_interleave(beam)
        expected, _ = model.decoder(tokens, encoder_out=whole, code_masks=masks)
        assert (logits[:, -1] - expected[:, -1]).abs().max() < TOLERANCE, step

        stay = torch.arange(len(sentences))
        if step in (5, BIAS_CHUNK + 2):
            stay = stay[1:]
            encoder_out = model.encoder.reorder_encoder_out(encoder_out, stay)
        sentences = sentences[stay]
        within = torch.randint(beam, (len(stay), beam), generator=generator)
        order = (stay[:, None] * beam + within).flatten()
        new = torch.randint(5, 40, (len(order), 1), generator=generator)
        tokens = torch.cat([tokens[order], new], dim=1)
        model.decoder.reorder_incremental_state_scripting(state, order)


def test_rows_without_a_shared_picture_may_go_anywhere(model: Any) -> None:
    encoder_out, target = encode(model), random_tokens(8, ROWS, 6)
    state: dict[str, Any] = {}
    model.decoder(target[:, :5], encoder_out=encoder_out, incremental_state=state)
    order = torch.tensor([2, 0, 2, 1])
    model.decoder.reorder_incremental_state(state, order)
    encoder_out = model.encoder.reorder_encoder_out(encoder_out, order)
    last, _ = model.decoder(target[order], encoder_out=encoder_out, incremental_state=state)
    full, _ = model.decoder(target[order], encoder_out=encoder_out)
    assert (last - full[:, 5:]).abs().max() < TOLERANCE


def test_kinds_travel_with_the_encoder_output(model: Any) -> None:
    source, target = random_tokens(1, ROWS, SOURCE), random_tokens(9, ROWS, 9)
    carried = model.encoder(source, code_masks=mask_of(MIXED))
    plain = model.encoder(source)
    expected, _ = model.decoder(target, encoder_out=plain, code_masks=mask_of(MIXED))
    assert torch.equal(model.decoder(target, encoder_out=carried)[0], expected)
    assert (stepwise(model, target, carried) - expected).abs().max() < TOLERANCE


@pytest.mark.parametrize("kinds", [TEXT, CODES], ids=["text", "codes"])
def test_no_position_sees_a_later_one(model: Any, kinds: Sequence[bool] | None) -> None:
    encoder_out, target = encode(model), random_tokens(10, ROWS, 10)
    changed = target.clone()
    changed[:, 6:] = 5 + (changed[:, 6:] - 4) % 35
    before, _ = model.decoder(target, encoder_out=encoder_out, code_masks=mask_of(kinds))
    after, _ = model.decoder(changed, encoder_out=encoder_out, code_masks=mask_of(kinds))
    assert (before[:, :6] - after[:, :6]).abs().max() < TOLERANCE
    assert ((before - after)[:, 6:].abs().amax(dim=-1) > 1e-3).all()


def test_full_context_sees_later_positions(model: Any) -> None:
    encoder_out, target = encode(model), random_tokens(11, ROWS, 6)
    changed = target.clone()
    changed[:, 5] = 5 + (changed[:, 5] - 4) % 35
    before, _ = model.decoder(target, encoder_out=encoder_out, full_context_alignment=True)
    after, _ = model.decoder(changed, encoder_out=encoder_out, full_context_alignment=True)
    assert ((before - after)[:, 0].abs().amax(dim=-1) > 1e-3).all()


def test_padding_on_the_right_changes_nothing(model: Any) -> None:
    encoder_out, target = encode(model), random_tokens(12, ROWS, 8)
    padded = torch.nn.functional.pad(target, (0, 4), value=1)
    for kinds in (TEXT, MIXED):
        alone, _ = model.decoder(target, encoder_out=encoder_out, code_masks=mask_of(kinds))
        longer, _ = model.decoder(padded, encoder_out=encoder_out, code_masks=mask_of(kinds))
        assert (longer[:, :8] - alone).abs().max() < TOLERANCE
        assert longer.isfinite().all()


def test_padding_is_not_attended_to_without_a_causal_mask(model: Any) -> None:
    encoder_out, target = encode(model), random_tokens(12, ROWS, 8)
    padded = torch.nn.functional.pad(target, (0, 4), value=1)
    alone, _ = model.decoder(target, encoder_out=encoder_out, full_context_alignment=True)
    longer, _ = model.decoder(padded, encoder_out=encoder_out, full_context_alignment=True)
    assert (longer[:, :8] - alone).abs().max() < TOLERANCE


def test_entangled_positions_change_the_content() -> None:
    # The same weights; only whether raw positions are added to the embeddings differs.
    disentangled, entangled = small_model(), small_model(disable_entangle=False)
    encoder_out, target = encode(disentangled), random_tokens(13, ROWS, 4)
    _, extra = entangled.decoder(target, encoder_out=encoder_out, return_all_hiddens=True)
    decoder = entangled.decoder
    content = decoder.embed_tokens(target) + decoder.embed_positions.weight[:4]
    expected = decoder.layernorm_embedding(content)
    assert torch.allclose(extra["inner_states"][0].transpose(0, 1), expected, atol=1e-6)
    _, extra = disentangled.decoder(target, encoder_out=encoder_out, return_all_hiddens=True)
    expected = decoder.layernorm_embedding(decoder.embed_tokens(target))
    assert torch.allclose(extra["inner_states"][0].transpose(0, 1), expected, atol=1e-6)


def test_scaled_embeddings() -> None:
    model = small_model(no_scale_embedding=False)
    target = random_tokens(13, 2, 4)
    _, extra = model.decoder(target, encoder_out=encode(model, 2), return_all_hiddens=True)
    decoder = model.decoder
    expected = decoder.layernorm_embedding(decoder.embed_tokens(target) * 32**0.5)
    assert torch.allclose(extra["inner_states"][0].transpose(0, 1), expected, atol=1e-6)


def test_text_longer_than_its_positions_is_an_error(model: Any) -> None:
    encoder_out = encode(model, 1)
    assert model.decoder(random_tokens(0, 1, 1024), encoder_out=encoder_out)[0].isfinite().all()
    with pytest.raises(ValueError, match="a target of 1025 positions, but at most 1024"):
        model.decoder(random_tokens(0, 1, 1025), encoder_out=encoder_out)


def test_few_target_positions_limit_the_text() -> None:
    model = small_model(max_target_positions=20)
    assert model.decoder.embed_positions.num_embeddings == 22
    assert model.decoder.max_positions() == 20
    encoder_out = encode(model, 1)
    model.decoder(random_tokens(0, 1, 22), encoder_out=encoder_out)
    with pytest.raises(ValueError, match="a target of 23 positions, but at most 22"):
        model.decoder(random_tokens(0, 1, 23), encoder_out=encoder_out)
    # A grid of codes has its own positions.
    code_masks = torch.tensor([True])
    model.decoder(random_tokens(0, 1, 23), encoder_out=encoder_out, code_masks=code_masks)


def test_codes_of_a_256_pixel_picture_fit() -> None:
    model = small_model(code_image_size=256, image_bucket_size=32)
    target, code_masks = random_tokens(0, 1, 1 + 32 * 32), torch.tensor([True])
    encoder_out = model.encoder(random_tokens(1, 1, SOURCE))
    full, _ = model.decoder(target, encoder_out=encoder_out, code_masks=code_masks)
    ends = [1000, 1023, 1024, 1025]
    steps = stepwise(model, target, encoder_out, code_masks, ends)
    assert (steps - full).abs().max() < TOLERANCE


def test_code_pictures_larger_than_the_grid_are_an_error() -> None:
    with pytest.raises(ValueError, match="--code-image-size 128 makes 16 x 16 codes; at most 8 x 8"):
        small_model(code_image_size=128)


def test_a_prefix_that_the_state_has_seen_is_an_error(model: Any) -> None:
    encoder_out, target = encode(model), random_tokens(0, ROWS, 4)
    state: dict[str, Any] = {}
    model.decoder(target, encoder_out=encoder_out, incremental_state=state)
    with pytest.raises(ValueError, match="has seen 4 positions, the prefix has 4"):
        model.decoder(target, encoder_out=encoder_out, incremental_state=state)


def test_features_and_states(model: Any) -> None:
    encoder_out, target = encode(model), random_tokens(14, ROWS, 5)
    logits, _ = model.decoder(target, encoder_out=encoder_out)
    features, extra = model.decoder(
        target, encoder_out=encoder_out, features_only=True, return_all_hiddens=True
    )
    assert features.shape == (ROWS, 5, 32)
    assert torch.allclose(features @ model.decoder.embed_tokens.weight.T, logits, atol=1e-5)
    assert [tuple(s.shape) for s in extra["inner_states"]] == [(5, ROWS, 32)] * 3
    last = model.decoder.layer_norm(extra["inner_states"][-1].transpose(0, 1))
    assert torch.allclose(last, features)


def test_only_the_positions_that_are_asked_for(model: Any) -> None:
    source, target = random_tokens(1, ROWS, SOURCE), random_tokens(14, ROWS, 5)
    images = normal_images(2, (ROWS, 3, 32, 48))
    positions = torch.tensor([0, 4, 5, 7, 14])
    for features_only in (False, True):
        every, some = (
            model(source, None, target, images, features_only=features_only, output_positions=chosen)[0]
            for chosen in (None, positions)
        )
        assert torch.allclose(some, every.flatten(0, 1)[positions], atol=1e-6)
        nothing, _ = model(
            source, None, target, images, features_only=features_only, output_positions=positions[:0]
        )
        assert nothing.shape == (0, every.size(-1))


def test_attention_to_the_source_against_a_plain_softmax(model: Any) -> None:
    encoder_out, target = encode(model), random_tokens(15, ROWS, 4)
    decoder = model.decoder
    _, extra = decoder(target, encoder_out=encoder_out, alignment_layer=0)
    attn = extra["attn"][0]
    source = encoder_out["encoder_out"][0].transpose(0, 1)
    assert attn.shape == (ROWS, 4, source.size(1))
    assert torch.allclose(attn.sum(dim=-1), torch.ones(ROWS, 4), atol=1e-6)
    assert attn[-1, :, :6].max() == 0  # the masked picture (2 x 3 patches)

    # The same from its parts: the first layer up to its attention to the source, one head at a time.
    layer = decoder.layers[0]
    captured: list[Tensor] = []
    handle = layer.encoder_attn_layer_norm.register_forward_hook(lambda m, i, out: captured.append(out))
    decoder(target, encoder_out=encoder_out)
    handle.remove()
    q, k = layer.encoder_attn.q_proj(captured[0]), layer.encoder_attn.k_proj(source)
    positions = decoder.pos_ln(decoder.embed_positions.weight[:4])
    pos_q = decoder.cross_pos_q_linear(positions)
    pos_k = decoder.cross_pos_k_linear(encoder_out["position_embeddings"][0])
    heads = []
    for head in (slice(0, 16), slice(16, 32)):
        scores = q[..., head] @ k[..., head].transpose(1, 2) + pos_q[:, head] @ pos_k[..., head].transpose(
            1, 2
        )
        scores = scores / (16 * 2) ** 0.5
        scores = scores.masked_fill(encoder_out["encoder_padding_mask"][0][:, None], float("-inf"))
        heads.append(scores.softmax(dim=-1))
    assert torch.allclose(attn, torch.stack(heads).mean(dim=0), atol=1e-5)
    _, extra = decoder(target, encoder_out=encoder_out, alignment_layer=0, alignment_heads=1)
    assert torch.allclose(extra["attn"][0], heads[0], atol=1e-5)


def test_attention_is_returned_on_request_only(model: Any) -> None:
    _, extra = model.decoder(random_tokens(15, ROWS, 4), encoder_out=encode(model))
    assert extra["attn"] == [None]


def test_shared_pictures_have_the_same_attention(model: Any) -> None:
    encoder_out, target = encode(model), random_tokens(16, 2 * ROWS, 4)
    _, shared = model.decoder(target, encoder_out=encoder_out, alignment_layer=1)
    _, single = model.decoder(target, encoder_out=repeated(model, encoder_out, 2), alignment_layer=1)
    assert torch.allclose(shared["attn"][0], single["attn"][0], atol=1e-5)
