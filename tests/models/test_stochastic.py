"""Dropout and stochastic depth: right on average, off in evaluation; activation checkpointing changes no number."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from model_builders import normal_images, random_tokens, small_model
from torch import Tensor, nn

from ofa_fairseq.models.layers import DropPath, EncoderLayer, LayerConfig, drop_path, drop_path_rates

RATES: dict[str, Any] = {
    "dropout": 0.2,
    "attention_dropout": 0.2,
    "activation_dropout": 0.2,
    "encoder_drop_path_rate": 0.3,
    "decoder_drop_path_rate": 0.3,
    "resnet_drop_path_rate": 0.3,
}


def test_drop_path_drops_whole_rows_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    x = torch.rand(20000, 2, 3) + 1
    y = drop_path(x, 0.3, training=True)
    kept = y[:, 0, 0] != 0
    assert kept.float().mean().item() == pytest.approx(0.7, abs=0.02)
    assert torch.allclose(y[kept], x[kept] / 0.7)
    assert y[~kept].abs().max() == 0
    assert y.mean().item() == pytest.approx(x.mean().item(), rel=0.02)


def test_drop_path_does_nothing_in_evaluation_or_at_rate_zero() -> None:
    x = torch.rand(5, 2)
    assert drop_path(x, 0.9, training=False) is x
    assert drop_path(x, 0.0, training=True) is x
    module = DropPath(0.9)
    assert module.eval()(x) is x
    assert repr(module) == "DropPath(rate=0.900)"


def test_rates_grow_linearly() -> None:
    assert drop_path_rates(0.3, 4) == pytest.approx([0, 0.1, 0.2, 0.3])
    assert drop_path_rates(0.3, 1) == [0]
    assert drop_path_rates(0.3, 0) == []


def test_layers_of_both_halves_have_growing_rates() -> None:
    model = small_model(
        encoder_layers=3, decoder_layers=4, encoder_drop_path_rate=0.2, decoder_drop_path_rate=0.3
    )
    for half, expected in (("encoder", [0, 0.1, 0.2]), ("decoder", [0, 0.1, 0.2, 0.3])):
        layers = getattr(model, half).layers
        assert [getattr(layer.drop_path, "rate", 0) for layer in layers] == pytest.approx(expected)
        assert isinstance(layers[0].drop_path, nn.Identity)


def test_a_dropped_layer_is_the_identity() -> None:
    layer = EncoderLayer(LayerConfig(dim=8, ffn_dim=16, heads=2), drop_path_rate=1 - 1e-7)
    x, bias = torch.randn(2, 3, 8), torch.zeros(1, 2, 3, 3)
    assert torch.equal(layer.train()(x, bias), x)
    assert not torch.equal(layer.eval()(x, bias), x)


def test_the_branches_of_a_layer_are_dropped_apart() -> None:
    torch.manual_seed(0)
    layer = EncoderLayer(LayerConfig(dim=8, ffn_dim=16, heads=2), drop_path_rate=0.5).train()
    x, bias = torch.randn(1, 3, 8).expand(64, -1, -1), torch.zeros(1, 2, 3, 3)
    # Attention kept or not, feed-forward kept or not: four outcomes.
    assert len(torch.unique(layer(x, bias).round(decimals=4), dim=0)) == 4


def batch() -> dict[str, Any]:
    source, target = random_tokens(0, 3, 5), random_tokens(1, 3, 6)
    source[2, 3:] = 1
    target[1, 4:] = 1
    return {
        "src_tokens": source,
        "src_lengths": None,
        "prev_output_tokens": target,
        "patch_images": normal_images(2, (3, 3, 32, 48)),
        "patch_masks": torch.tensor([True, True, False]),
        "code_masks": torch.tensor([True, False, False]),
    }


def logits_of(model: Any) -> Tensor:
    return model(**batch())[0]


def test_evaluation_is_deterministic_and_equals_a_model_without_dropout() -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        noisy, plain = small_model(**RATES), small_model()
        expected = logits_of(plain)
        assert torch.equal(logits_of(noisy), expected)
        # The stem's statistics move in training; each rate alone makes a difference there.
        for name, rate in RATES.items():
            model = small_model(**{name: rate}, freeze_resnet=True, resnet_type="resnet18").train()
            assert not torch.equal(logits_of(model), logits_of(model)), name
        still = small_model(freeze_resnet=True).train()
        assert torch.equal(logits_of(still), logits_of(still))


def loss_and_gradients(model: Any) -> tuple[Tensor, dict[str, Tensor]]:
    torch.manual_seed(5)
    inputs = batch()
    loss = F.cross_entropy(model(**inputs)[0].flatten(0, 1), inputs["prev_output_tokens"].flatten())
    loss.backward()
    return loss.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    "options",
    [
        {},
        RATES,
        {"encoder_prompt": True, "decoder_prompt": True},
        {"encoder_prompt": True, "encoder_prompt_projection": True, "adapter": True},
        {"bitfit": True},
        {"freeze_encoder_embedding": True},
    ],
    ids=["plain", "dropout", "prompts", "projected prompt and adapters", "bitfit", "frozen embedding"],
)
@pytest.mark.parametrize("switch", ["checkpoint_activations", "offload_activations"])
def test_recomputed_layers_give_the_same_loss_and_gradients(switch: str, options: dict[str, Any]) -> None:
    plain = small_model(**options).train()
    recomputing = small_model(**{**options, switch: True}).train()
    assert plain.state_dict().keys() == recomputing.state_dict().keys()
    loss, gradients = loss_and_gradients(plain)
    same_loss, same_gradients = loss_and_gradients(recomputing)
    assert torch.equal(loss, same_loss)
    assert gradients.keys() == same_gradients.keys()
    for name, gradient in gradients.items():
        assert torch.allclose(gradient, same_gradients[name], rtol=1e-4, atol=1e-6), name


def test_layers_are_really_recomputed() -> None:
    model = small_model(checkpoint_activations=True).train()
    calls = []
    # The norm inside a layer runs once forward and once more on the way back.
    model.encoder.layers[0].final_layer_norm.register_forward_hook(lambda *args: calls.append(1))
    loss_and_gradients(model)
    assert len(calls) == 2


def test_generation_with_recomputed_layers() -> None:
    model = small_model(checkpoint_activations=True)
    target = random_tokens(3, 2, 5)
    encoder_out = model.encoder(random_tokens(4, 2, 4))
    full, _ = model.decoder(target, encoder_out=encoder_out)
    state: dict[str, Any] = {}
    steps = [
        model.decoder(target[:, :end], encoder_out=encoder_out, incremental_state=state)[0]
        for end in range(1, 6)
    ]
    assert torch.allclose(torch.cat(steps, dim=1), full, atol=2e-5)


def test_a_copy_recomputes_its_own_layers() -> None:
    """Averaging of weights (EMA) copies the model."""
    model = small_model(checkpoint_activations=True)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        before = logits_of(model)
        for parameter in model.parameters():
            parameter.zero_()
        assert torch.equal(logits_of(twin), before)
