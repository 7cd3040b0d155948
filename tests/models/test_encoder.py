"""The encoder: rows of a batch are independent, pictures and text meet in one sequence, patches can be sampled."""

from typing import Any

import pytest
import torch
from model_builders import normal_images, random_tokens, small_model
from torch import Tensor

from ofa_fairseq.models.encoder import EncoderOut

pytestmark = pytest.mark.usefixtures("no_grad")
TOLERANCE = 2e-5  # outputs of the filled models are of order 1
VARIANTS: dict[str, dict[str, Any]] = {
    "recipe": {},
    "entangled": {"entangle_position_embedding": True},
    "interpolated": {"interpolate_position": True, "orig_patch_image_size": 32},
    "prompt": {"encoder_prompt": True, "encoder_prompt_length": 3},
}


def states(encoder_out: EncoderOut) -> Tensor:
    """[B, S, d]."""
    return encoder_out["encoder_out"][0].transpose(0, 1)


@pytest.mark.parametrize("variant", VARIANTS)
def test_rows_do_not_depend_on_the_batch(variant: str) -> None:
    encoder = small_model(**VARIANTS[variant]).encoder
    lengths, with_picture = [6, 3, 9, 4], [True, True, False, False]
    images = normal_images(0, (4, 3, 48, 64))
    patches = 3 * 4
    source = random_tokens(1, 4, 12)
    for row, length in enumerate(lengths):
        source[row, length:] = 1
    order = [2, 0, 3, 1]
    together = states(
        encoder(source[order], patch_images=images[order], patch_masks=torch.tensor(with_picture)[order])
    )
    for row, length in enumerate(lengths):
        alone = encoder(
            source[row : row + 1, :length],
            patch_images=images[row : row + 1],
            patch_masks=torch.tensor([with_picture[row]]),
        )
        expected, found = states(alone)[0], together[order.index(row)]
        real = slice(0 if with_picture[row] else patches, patches + length)
        assert (found[real] - expected[real]).abs().max() < TOLERANCE
        assert (alone["encoder_padding_mask"][0] == torch.arange(patches + length).lt(real.start)).all()


def test_rows_do_depend_on_their_input(model: Any) -> None:
    source, images = random_tokens(1, 2, 5), normal_images(0, (2, 3, 32, 32))
    base = states(model.encoder(source, patch_images=images))
    other_text, other_images = source.clone(), images.clone()
    other_text[0, 2] = 5 + (source[0, 2] - 4) % 35
    other_images[0] = images[1]
    for changed in (
        model.encoder(other_text, patch_images=images),
        model.encoder(source, patch_images=other_images),
    ):
        difference = (states(changed) - base).abs().amax(dim=-1)
        assert (difference[0] > 1e-3).all()  # every patch and every token of the row
        assert difference[1].max() < TOLERANCE


def test_a_masked_picture_is_no_picture_for_the_text(model: Any) -> None:
    source = random_tokens(2, 3, 5)
    masked = model.encoder(
        source, patch_images=normal_images(3, (3, 3, 32, 48)), patch_masks=torch.zeros(3, dtype=torch.bool)
    )
    text_only = model.encoder(source)
    assert (states(masked)[:, 6:] - states(text_only)).abs().max() < TOLERANCE
    assert masked["encoder_padding_mask"][0][:, :6].all()
    assert not masked["encoder_padding_mask"][0][:, 6:].any()
    logits = [
        model.decoder(random_tokens(4, 3, 4), encoder_out=encoder_out)[0]
        for encoder_out in (masked, text_only)
    ]
    assert (logits[0] - logits[1]).abs().max() < TOLERANCE


def test_text_only_rows_have_no_image_part(model: Any) -> None:
    encoder_out = model.encoder(random_tokens(2, 3, 5))
    assert encoder_out["encoder_out"][0].shape == (5, 3, 32)
    assert encoder_out["padding_bias"] == []


def test_result_of_a_picture_and_text(model: Any) -> None:
    source = random_tokens(5, 2, 7)
    source[1, 5:] = 1
    encoder_out = model.encoder(
        source, patch_images=normal_images(6, (2, 3, 33, 64)), return_all_hiddens=True
    )
    patches = 3 * 4  # ceil(33 / 16) rows
    assert encoder_out["encoder_out"][0].shape == (patches + 7, 2, 32)
    expected_padding = torch.cat([torch.zeros(2, patches, dtype=torch.bool), source.eq(1)], dim=1)
    assert torch.equal(encoder_out["encoder_padding_mask"][0], expected_padding)
    assert [tuple(s.shape) for s in encoder_out["encoder_states"]] == [(patches + 7, 2, 32)] * 3
    last = model.encoder.layer_norm(encoder_out["encoder_states"][-1])
    assert torch.allclose(last, encoder_out["encoder_out"][0])
    # Positions are normalised already, and equal for all rows.
    positions = encoder_out["position_embeddings"][0]
    assert positions.shape == (2, patches + 7, 32)
    encoder = model.encoder
    assert torch.allclose(positions[1, patches:], encoder.pos_ln(encoder.embed_positions.weight[:7]))
    ids = torch.tensor([row * 8 + column + 1 for row in range(3) for column in range(4)])
    assert torch.allclose(positions[0, :patches], encoder.image_pos_ln(encoder.embed_image_positions(ids)))


def test_embedding_of_text_and_patches(model: Any) -> None:
    encoder, source = model.encoder, random_tokens(5, 2, 4)
    images = normal_images(6, (2, 3, 32, 32))
    embedded = encoder(source, patch_images=images, return_all_hiddens=True)["encoder_states"][0]
    text = encoder.layernorm_embedding(encoder.embed_tokens(source) + encoder.type_embedding.weight[0])
    assert torch.allclose(embedded.transpose(0, 1)[:, 4:], text, atol=1e-6)
    features = encoder.embed_images(images)  # [B, 1024, 2, 2]
    for row in range(2):
        for column in range(2):
            patch = encoder.image_proj(features[:, :, row, column]) + encoder.type_embedding.weight[1]
            expected = encoder.patch_layernorm_embedding(patch)
            assert torch.allclose(embedded[row * 2 + column], expected, atol=1e-5)


def test_padded_positions_start_at_zero(model: Any) -> None:
    source = random_tokens(5, 2, 4)
    source[1, 2:] = 1
    embedded = model.encoder(source, return_all_hiddens=True)["encoder_states"][0].transpose(0, 1)
    assert embedded[1, 2:].abs().max() == 0
    assert embedded[0].abs().amax(dim=-1).min() > 0


def test_given_embeddings_replace_the_tokens(model: Any) -> None:
    source = random_tokens(7, 2, 5)
    source[1, 3:] = 1
    embeddings = model.encoder.embed_tokens(source)
    target = random_tokens(8, 2, 3)
    plain = model(source, None, target)[0]
    assert torch.equal(model(source, None, target, token_embeddings=embeddings)[0], plain)
    other = model(source, None, target, token_embeddings=embeddings.flip(-1))[0]
    assert (other - plain).abs().max() > 1e-2


# -- patches -------------------------------------------------------------------------------------------


def test_sampled_patches_are_a_subset_with_their_own_positions(model: Any) -> None:
    encoder, images = model.encoder, normal_images(9, (4, 3, 64, 48))
    masks = torch.tensor([True, True, False, True])
    whole, sampled = encoder.embed_patches(images, masks), encoder.embed_patches(images, masks, 5)
    assert sampled.content.shape == (4, 5, 32)
    assert sampled.ids.shape == (4, 5)
    ids = whole.ids[0].tolist()
    for row in range(4):
        chosen = [ids.index(i) for i in sampled.ids[row].tolist()]
        assert len(set(chosen)) == 5
        assert torch.equal(sampled.content[row], whole.content[row, chosen])
        assert torch.equal(sampled.positions[row], whole.positions[0, chosen])
        assert torch.equal(sampled.padding[row], whole.padding[row, chosen])
    assert len({tuple(sorted(row)) for row in sampled.ids.tolist()}) > 1


def test_every_patch_is_sampled_sometimes(model: Any) -> None:
    images = normal_images(9, (40, 3, 32, 32))
    sampled = model.encoder.embed_patches(images, None, 1)
    assert set(sampled.ids.flatten().tolist()) == {1, 2, 9, 10}


@pytest.mark.parametrize("number", [None, 12, 50])
def test_sampling_as_many_patches_as_there_are_changes_nothing(model: Any, number: int | None) -> None:
    source, images = random_tokens(10, 2, 4), normal_images(11, (2, 3, 48, 64))
    expected = states(model.encoder(source, patch_images=images))
    assert torch.equal(states(model.encoder(source, patch_images=images, sample_patch_num=number)), expected)


def test_sampled_patches_see_each_other_by_their_places(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """All patches in another order are the same picture: the text sees no difference."""
    encoder, source = model.encoder, random_tokens(12, 2, 4)
    images = normal_images(13, (2, 3, 48, 64))
    whole = encoder.embed_patches(images, None)
    orders = torch.stack([torch.randperm(12), torch.randperm(12)])
    shuffled = type(whole)(
        content=torch.stack([whole.content[row, orders[row]] for row in range(2)]),
        positions=whole.positions[0][orders],
        ids=whole.ids[0][orders],
        padding=whole.padding,
    )
    expected = states(encoder(source, patch_images=images))
    monkeypatch.setattr(encoder, "embed_patches", lambda *args: shuffled)
    found = states(encoder(source, patch_images=images))
    assert (found[:, 12:] - expected[:, 12:]).abs().max() < TOLERANCE
    for row in range(2):
        assert (found[row, :12] - expected[row, orders[row]]).abs().max() < TOLERANCE


def test_one_row_with_sampled_patches(model: Any) -> None:
    source, images = random_tokens(10, 1, 4), normal_images(11, (1, 3, 48, 64))
    encoder_out = model.encoder(source, patch_images=images, sample_patch_num=3)
    assert states(encoder_out).shape == (1, 3 + 4, 32)


def test_interpolated_positions_count_only_beyond_the_original_grid() -> None:
    options: dict[str, Any] = {"interpolate_position": True, "orig_patch_image_size": 64}
    plain, interpolating = small_model(), small_model(**options)
    source = random_tokens(14, 2, 4)
    for shape, equal in (((2, 3, 64, 64), True), ((2, 3, 96, 96), False)):
        images = normal_images(15, shape)
        difference = states(plain.encoder(source, patch_images=images)) - states(
            interpolating.encoder(source, patch_images=images)
        )
        assert (difference.abs().max() < TOLERANCE) == equal


def test_interpolation_with_sampled_patches() -> None:
    encoder = small_model(interpolate_position=True, orig_patch_image_size=32).encoder
    source, images = random_tokens(14, 2, 4), normal_images(15, (2, 3, 64, 64))
    encoder(source, patch_images=images, sample_patch_num=4)  # no more than the original 2 x 2
    with pytest.raises(ValueError, match="exclude each other"):
        encoder(source, patch_images=images, sample_patch_num=5)


@pytest.mark.parametrize("shape", [(1, 3, 129, 32), (1, 3, 32, 144)])
def test_too_large_pictures_are_an_error(model: Any, shape: tuple[int, ...]) -> None:
    message = f"pictures of {shape[2]} x {shape[3]} pixels.*at most 8 x 8 fit"
    with pytest.raises(ValueError, match=message):
        model.encoder(random_tokens(0, 1, 3), patch_images=normal_images(0, shape))


def test_too_long_sources_are_an_error(model: Any) -> None:
    assert states(model.encoder(random_tokens(0, 1, 1024))).isfinite().all()
    with pytest.raises(ValueError, match="a source of 1025 tokens, but at most 1024"):
        model.encoder(random_tokens(0, 1, 1025))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_pictures_of_another_precision(model: Any, dtype: torch.dtype) -> None:
    source, images = random_tokens(16, 2, 4), normal_images(17, (2, 3, 32, 32)).to(dtype)
    found = states(model.encoder(source, patch_images=images))
    assert found.dtype == torch.float32
    assert torch.equal(found, states(model.encoder(source, patch_images=images.float())))


def test_a_second_picture_stands_in_front_and_has_the_type_of_pictures(model: Any) -> None:
    encoder, source = model.encoder, random_tokens(18, 2, 5)
    first, second = normal_images(19, (2, 3, 32, 32)), normal_images(20, (2, 3, 32, 48))
    masks = torch.tensor([True, False])

    def encode(first: Tensor, second: Tensor) -> EncoderOut:
        return encoder(
            source, patch_images=first, patch_images_2=second, patch_masks=masks, return_all_hiddens=True
        )

    both = encode(first, second)
    assert states(both).shape == (2, 6 + 4 + 5, 32)
    assert both["encoder_padding_mask"][0].tolist() == [[False] * 15, [True] * 10 + [False] * 5]
    one = encoder(source, patch_images=second, patch_masks=masks, return_all_hiddens=True)
    embedded, alone = both["encoder_states"][0], one["encoder_states"][0]
    assert torch.allclose(embedded[:6], alone[:6], atol=1e-6)
    # A row without pictures has none of the two; one with pictures sees both.
    assert (states(both)[1, 10:] - states(encoder(source))[1]).abs().max() < TOLERANCE
    for other in (encode(first.flip(-1), second), encode(first, second.flip(-1))):
        assert (states(other)[0, 10:] - states(both)[0, 10:]).abs().max() > 1e-3


def test_two_equal_pictures_are_told_apart_by_nothing(model: Any) -> None:
    """Their patches have the same places and type: swapping them swaps their states."""
    source, a, b = random_tokens(18, 1, 5), *normal_images(19, (2, 1, 3, 32, 32))
    ab = states(model.encoder(source, patch_images=a, patch_images_2=b))[0]
    ba = states(model.encoder(source, patch_images=b, patch_images_2=a))[0]
    assert (ab[:4] - ba[4:8]).abs().max() < TOLERANCE
    assert (ab[8:] - ba[8:]).abs().max() < TOLERANCE


# -- rows of a batch for the generator -------------------------------------------------------------------


@pytest.mark.parametrize("sampled", [None, 3])
def test_reordered_rows(model: Any, sampled: int | None) -> None:
    source = random_tokens(21, 3, 4)
    source[0, 3:] = 1
    encoder_out = model.encoder(
        source,
        patch_images=normal_images(22, (3, 3, 32, 48)),
        code_masks=torch.tensor([True, False, False]),
        sample_patch_num=sampled,
        return_all_hiddens=True,
    )
    order = torch.tensor([2, 0, 0, 1])
    reordered = model.encoder.reorder_encoder_out(encoder_out, order)
    assert reordered.keys() == encoder_out.keys()
    for key, values in encoder_out.items():
        for before, after in zip(values, reordered[key], strict=True):
            dimension = 1 if key in ("encoder_out", "encoder_states") else 0
            assert torch.equal(after, before.index_select(dimension, order)), key


def test_a_picture_may_be_shared_by_rows(model: Any) -> None:
    images, source = normal_images(0, (2, 3, 48, 64)), random_tokens(1, 3, 7)
    rows = torch.tensor([1, 0, 1])
    shared = states(model.encoder(source, patch_images=images, patch_rows=rows))
    repeated = states(model.encoder(source, patch_images=images[rows]))
    torch.testing.assert_close(shared, repeated, atol=TOLERANCE, rtol=0)
