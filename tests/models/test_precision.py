"""Half precisions and torch.compile give what float32 gives, within what their digits allow."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from model_builders import normal_images, random_tokens, small_model
from torch import Tensor

# Logits of the filled model reach 3; a half precision keeps about 3 (float16) or 2 (bfloat16) decimal digits.
TOLERANCES = {torch.float16: 0.03, torch.bfloat16: 0.2}


@pytest.fixture(scope="module")
def model() -> Any:
    return small_model()


def batch(rows: int, length: int, width: int = 48, codes: bool = True) -> dict[str, Any]:
    """Pictures, padded texts, and (if `codes`) image codes in the first row."""
    source, target = random_tokens(0, rows, 5), random_tokens(1, rows, length)
    source[-1, 3:] = 1
    target[-1, length // 2 :] = 1
    return {
        "src_tokens": source,
        "src_lengths": None,
        "prev_output_tokens": target,
        "patch_images": normal_images(2, (rows, 3, 32, width)),
        "patch_masks": torch.arange(rows) < rows - 1,
        "code_masks": torch.arange(rows) < 1 if codes else None,
    }


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_a_model_in_half_precision(model: Any, dtype: torch.dtype) -> None:
    half = copy.deepcopy(model).to(dtype)
    inputs = batch(3, 8)
    with torch.no_grad():
        expected, found = model(**inputs)[0], half(**inputs)[0]
    assert found.dtype == dtype
    assert (found.float() - expected).abs().max() < TOLERANCES[dtype]
    probabilities = half.get_normalized_probs((found, None), log_probs=False)
    assert probabilities.dtype == torch.float32
    assert torch.allclose(probabilities.sum(dim=-1), torch.ones(3, 8), atol=1e-5)


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_generation_in_half_precision(model: Any, dtype: torch.dtype) -> None:
    half = copy.deepcopy(model).to(dtype)
    target = random_tokens(3, 2, 6)
    with torch.no_grad():
        encoder_out = half.encoder(random_tokens(4, 2, 4), patch_images=normal_images(5, (2, 3, 32, 32)))
        full, _ = half.decoder(target, encoder_out=encoder_out)
        state: dict[str, Any] = {}
        for end in range(1, 7):
            step, _ = half.decoder(target[:, :end], encoder_out=encoder_out, incremental_state=state)
    assert (step[:, 0].float() - full[:, -1].float()).abs().max() < TOLERANCES[dtype]


@pytest.mark.parametrize("options", [{}, {"encoder_prompt": True, "adapter": True}], ids=["recipe", "tuning"])
def test_autocast(options: dict[str, Any]) -> None:
    model, inputs = small_model(**options), batch(3, 8)
    expected = model(**inputs)[0]
    with torch.autocast("cpu", torch.bfloat16):
        found = model(**inputs)[0]
    assert found.dtype == torch.bfloat16
    assert (found.float() - expected).abs().max() < TOLERANCES[torch.bfloat16]
    F.cross_entropy(found.float().flatten(0, 1), inputs["prev_output_tokens"].flatten()).backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert gradients
    assert all(g.dtype == torch.float32 and bool(g.isfinite().all()) for g in gradients)


def test_double_precision_agrees(model: Any) -> None:
    double, inputs = copy.deepcopy(model).double(), batch(3, 8)
    with torch.no_grad():
        assert (double(**inputs)[0] - model(**inputs)[0]).abs().max() < 1e-5


def gradients(model: Any, inputs: dict[str, Any]) -> tuple[Tensor, list[Tensor | None]]:
    logits = model(**inputs)[0]
    loss = F.cross_entropy(logits.flatten(0, 1), inputs["prev_output_tokens"].flatten())
    return logits.detach(), list(torch.autograd.grad(loss, list(model.parameters()), allow_unused=True))


def check_compiled(model: Any, backend: str) -> None:
    """A whole graph, no matter what the batch looks like; logits within 1e-4 of eager ones."""
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    some = {"output_positions": torch.tensor([0, 3, 17])}
    for inputs in (batch(3, 8), batch(4, 11), batch(2, 8, codes=False), batch(3, 8) | some):
        with torch.no_grad():
            assert (compiled(**inputs)[0] - model(**inputs)[0]).abs().max() < 1e-4


def test_the_graph_has_no_breaks(model: Any) -> None:
    check_compiled(model, "eager")


@pytest.mark.slow
def test_compiled_by_inductor(model: Any) -> None:
    check_compiled(model, "inductor")


def test_gradients_of_the_compiled_model(model: Any) -> None:
    torch._dynamo.reset()
    model, inputs = copy.deepcopy(model), batch(3, 8)
    logits, expected = gradients(model, inputs)
    compiled_logits, found = gradients(torch.compile(model, fullgraph=True, backend="aot_eager"), inputs)
    assert (logits - compiled_logits).abs().max() < 1e-4
    for (name, _), a, b in zip(model.named_parameters(), expected, found, strict=True):
        if a is None:  # the compiled graph computes both kinds of targets and masks, always
            assert b is None or b.abs().max() == 0, name
        else:
            assert b is not None
            assert torch.allclose(a, b, rtol=1e-3, atol=1e-5), name


def test_a_picture_of_codes_longer_than_any_text_compiles() -> None:
    torch._dynamo.reset()
    model = small_model(code_image_size=256, image_bucket_size=32, encoder_layers=1, decoder_layers=1)
    inputs = {
        "src_tokens": random_tokens(0, 1, 4),
        "src_lengths": None,
        "prev_output_tokens": random_tokens(1, 1, 1 + 32 * 32),
        "code_masks": torch.tensor([True]),
    }
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        assert (compiled(**inputs)[0] - model(**inputs)[0]).abs().max() < 1e-4
