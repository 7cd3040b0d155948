"""`adamw` takes the steps of fairseq's `adam`."""

import copy
from typing import Any

import pytest
import torch
from fairseq.optim import OPTIMIZER_REGISTRY, MemoryEfficientFP16Optimizer
from fairseq.optim.adam import FairseqAdamConfig
from omegaconf import OmegaConf

from ofa_fairseq.optim.adamw import AdamWConfig

OPTIONS = {"lr": [3e-3], "adam_betas": "(0.8, 0.95)", "adam_eps": 1e-8, "weight_decay": 0.1}


def build(name: str, model: torch.nn.Module) -> Any:
    config = {"adam": FairseqAdamConfig, "adamw": AdamWConfig}[name]
    cfg = OmegaConf.merge(OmegaConf.structured(config), {"_name": name, **OPTIONS})
    if name == "adam":
        cfg = OmegaConf.merge(cfg, {"tpu": False})
    return OPTIMIZER_REGISTRY[name](cfg, list(model.parameters()))


def small_net() -> torch.nn.Module:
    torch.manual_seed(1)
    return torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.GELU(), torch.nn.Linear(7, 3))


def step(model: torch.nn.Module, optimizer: Any, seed: int) -> None:
    x = torch.randn(11, 5, generator=torch.Generator().manual_seed(seed))
    optimizer.zero_grad()
    optimizer.backward(model(x).square().sum())
    optimizer.multiply_grads(0.5)
    optimizer.clip_grad_norm(1.0)
    optimizer.set_lr(3e-3 / (1 + seed))
    optimizer.step()


def test_steps_are_those_of_fairseqs_adam() -> None:
    ours, theirs = small_net(), small_net()
    optimizers = build("adamw", ours), build("adam", theirs)
    for seed in range(20):
        step(ours, optimizers[0], seed)
        step(theirs, optimizers[1], seed)
    moved = False
    for a, b, start in zip(ours.parameters(), theirs.parameters(), small_net().parameters()):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
        moved |= bool((a - start).abs().max() > 1e-2)
    assert moved


def test_a_state_that_was_saved_goes_on_as_if_nothing_had_been() -> None:
    model = small_net()
    optimizer = build("adamw", model)
    for seed in range(3):
        step(model, optimizer, seed)
    again = copy.deepcopy(model)
    resumed = build("adamw", again)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()), {"lr": 1e-3})
    for m, o in ((model, optimizer), (again, resumed)):
        step(m, o, 3)
    for a, b in zip(model.parameters(), again.parameters()):
        assert torch.equal(a, b)


def test_one_flat_parameter_as_fp16_training_makes_it_steps_like_many() -> None:
    many, shapes = small_net(), [p.shape for p in small_net().parameters()]
    flat = torch.nn.Parameter(torch.cat([p.detach().flatten() for p in many.parameters()]))
    optimizers = build("adamw", many), build("adamw", torch.nn.ParameterList([flat]))
    assert optimizers[1].supports_flat_params
    for seed in range(3):
        step(many, optimizers[0], seed)
        flat.grad = torch.cat([p.grad.flatten() for p in many.parameters()])
        optimizers[1].set_lr(3e-3 / (1 + seed))
        optimizers[1].step()
    parts = flat.split([shape.numel() for shape in shapes])
    for p, part in zip(many.parameters(), parts, strict=True):
        torch.testing.assert_close(p.flatten(), part)


def test_half_parameters_without_a_float32_copy_are_refused() -> None:
    """--memory-efficient-fp16: its running means would be halves."""
    cfg = OmegaConf.create({"optimizer": {"_name": "adamw", **OPTIONS}})
    with pytest.raises(ValueError, match="Unsupported optimizer: AdamW"):
        MemoryEfficientFP16Optimizer.build_optimizer(cfg, list(small_net().half().parameters()))
