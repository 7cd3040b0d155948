"""fairseq's averaged weights (`--store-ema`) on our model, against averaging by hand."""

import copy
import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fairseq.models.ema.ema import EMA
from model_builders import SMALL, build_model, random_tokens, small_model
from torch import Tensor

from ofa_fairseq.models.checkpoint import TOKEN_MATRICES, prepare_for_averaging

State = dict[str, Tensor]
DECAY = 0.9


def averaged(model: Any, fp32: bool = False, decay: float = DECAY, start: int = 0) -> EMA:
    """As fairseq's trainer makes it."""
    options = {"ema_decay": decay, "ema_fp32": fp32, "ema_start_update": start, "ema_update_freq": 1}
    return EMA(model, SimpleNamespace(**options, ema_seed_model=None))


def prepared(**options: Any) -> Any:
    model = small_model(**options)
    prepare_for_averaging(model)
    return model


def numbers(model: Any) -> State:
    """Copies of all parameters and floating-point buffers, each once."""
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {k: v.detach().float().clone() for k, v in state.items() if v.is_floating_point()}


@torch.no_grad()
def change(model: Any, seed: int) -> None:
    """What an update does to parameters and running statistics; tied parameters once."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if value.is_floating_point() and not name.endswith("version"):
            value.add_(torch.rand(value.shape, generator=generator).to(value) * 0.1)


@pytest.mark.parametrize("fp32", [False, True])
@pytest.mark.parametrize(
    "options",
    [{}, {"share_all_embeddings": False}, {"freeze_resnet": True}],
    ids=["tied", "untied", "frozen"],
)
def test_every_number_is_averaged_once_an_update(fp32: bool, options: dict[str, Any]) -> None:
    """Also the token matrix, which has three names, and BatchNorm's statistics."""
    model = prepared(**options)
    ema, expected = averaged(model, fp32), numbers(model)
    for update in range(3):
        change(model, update)
        ema.step(model, update)
        for name, value in numbers(model).items():
            if not name.endswith("version"):
                expected[name] = DECAY * expected[name] + (1 - DECAY) * value
    found = numbers(ema.get_model())
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, msg=name)
    matrices = [ema.get_model().get_parameter(name) for name in TOKEN_MATRICES]
    if not options.get("share_all_embeddings", True):
        assert matrices[0] is not matrices[1]
    else:
        assert all(matrix is matrices[0] for matrix in matrices)


def test_half_precision_is_averaged_in_full_precision() -> None:
    """Steps too small for half precision add up with `--ema-fp32`."""
    model = prepared().half()
    ema, expected = averaged(model, fp32=True, decay=0.998), numbers(model)
    change(model, 0)
    for _ in range(100):
        ema.step(model, 1)
    after = numbers(model)
    for name, value in expected.items():
        if name.endswith("version"):
            continue
        average = after[name] + 0.998**100 * (value - after[name])
        torch.testing.assert_close(
            numbers(ema.get_model())[name], average.half().float(), atol=2e-3, rtol=2e-3
        )
    assert ema.get_model().encoder.embed_tokens.weight.dtype == torch.half


def test_before_its_start_the_average_is_the_model() -> None:
    model = prepared()
    ema = averaged(model, start=5)
    change(model, 0)
    ema.step(model, 4)
    for name, value in numbers(model).items():
        torch.testing.assert_close(numbers(ema.get_model())[name], value, msg=name)


def test_averaging_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """It loads a state dict at every update."""
    model = prepared()
    ema = averaged(model)
    caplog.clear()
    with caplog.at_level(logging.INFO):
        ema.step(model, 1)
    assert caplog.text == ""


def test_without_preparation_integers_refuse_to_be_averaged() -> None:
    """Why there is something to prepare."""
    model = small_model()
    with pytest.raises(RuntimeError, match="can't be cast"):
        averaged(model).step(model, 1)


# Checkpoints


def test_the_state_dict_has_no_integers_and_each_number_once() -> None:
    state = prepared().state_dict()
    assert all(value.is_floating_point() for value in state.values())
    assert len({value.data_ptr() for value in state.values()}) == len(state)
    whole = small_model().state_dict()
    left_out = whole.keys() - state.keys()
    assert {name for name in left_out if whole[name].is_floating_point()} == set(TOKEN_MATRICES[1:])
    assert len(left_out) > 2


def outputs(model: Any) -> Tensor:
    with torch.no_grad():
        return model(random_tokens(1, 2, 5), None, random_tokens(2, 2, 4))[0]


@pytest.mark.parametrize("into", ["prepared", "plain"])
@pytest.mark.parametrize("kind", ["prepared", "plain"])
def test_loading_restores_what_was_left_out(kind: str, into: str, caplog: pytest.LogCaptureFixture) -> None:
    """Checkpoints of runs with and without averaging, and released ones, load into either model, strictly."""
    source = prepared() if kind == "prepared" else small_model()
    state = {name: value.clone() for name, value in source.state_dict().items()}
    model = build_model("ofa_nano", **SMALL).eval()
    if into == "prepared":
        prepare_for_averaging(model)
    caplog.clear()
    model.load_state_dict(state, strict=True)
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    torch.testing.assert_close(outputs(model), outputs(small_model()))
    reference = dict(small_model().named_buffers())
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, reference[name]), name
    assert model.encoder.embed_tokens.weight is model.decoder.output_projection.weight


def test_missing_weights_are_still_named(caplog: pytest.LogCaptureFixture) -> None:
    state = prepared().state_dict()
    del state["encoder.layers.0.fc1.bias"]
    model = prepared()
    caplog.clear()
    model.load_state_dict(state, strict=True)
    (record,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert record.message.endswith("lacks 1 entries; kept as initialised: encoder.layers.0.fc1.bias")


@pytest.mark.parametrize("fp32", [False, True])
def test_a_resumed_average_goes_on(fp32: bool) -> None:
    """What fairseq's trainer keeps and restores."""
    model = prepared()
    ema = averaged(model, fp32)
    for update in (1, 2):
        change(model, update)
        ema.step(model, update)
    saved = copy.deepcopy((model.state_dict(), ema.get_model().state_dict(), ema.fp32_params))

    other = prepared(prefix="another.")
    other.load_state_dict(saved[0], strict=True)
    resumed = averaged(other, fp32)
    resumed.restore(saved[1], build_fp32_params=False)
    if fp32:
        resumed.build_fp32_params(saved[2])
    for a, b in ((model, ema), (other, resumed)):
        change(a, 3)
        b.step(a, 3)
    expected = numbers(ema.get_model())
    for name, value in numbers(resumed.get_model()).items():
        torch.testing.assert_close(value, expected[name], msg=name)


def test_a_run_from_a_released_file_averages_from_its_weights() -> None:
    """The trainer hands the average the file's model where the file holds no average."""
    state = {name: value.clone() for name, value in small_model(prefix="released.").state_dict().items()}
    model = prepared()
    model.load_state_dict(state, strict=True)
    ema = averaged(model, fp32=True)
    ema.restore(state, build_fp32_params=True)
    expected = numbers(model)
    change(model, 0)
    ema.step(model, 1)
    after = numbers(model)
    for name, value in numbers(ema.get_model()).items():
        torch.testing.assert_close(value, DECAY * expected[name] + (1 - DECAY) * after[name], msg=name)
