"""`muon` orthogonalizes as a singular value decomposition does, and steps as PyTorch's Muon and AdamW."""

import copy
from typing import Any

import pytest
import torch
from fairseq.optim import OPTIMIZER_REGISTRY, FP16Optimizer
from hypothesis import given, settings
from hypothesis import strategies as st
from model_builders import parse_flags, tiny_model
from omegaconf import OmegaConf
from torch import nn

from ofa_fairseq.optim.muon import MuonConfig, orthogonalized

OPTIONS = {"lr": [3e-3], "adam_betas": "(0.8, 0.95)", "adam_eps": 1e-8, "weight_decay": 0.1}


def build(model: nn.Module, **options: Any) -> Any:
    cfg = OmegaConf.merge(OmegaConf.structured(MuonConfig), {"_name": "muon", **OPTIONS, **options})
    return OPTIMIZER_REGISTRY["muon"](cfg, list(model.parameters()))


def small_net() -> nn.Module:
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 24), nn.GELU(), nn.Linear(24, 16))
    for layer in net[::2]:
        layer.weight.is_matrix = True
    return net


def gradients(model: nn.Module, seed: int) -> None:
    x = torch.randn(32, 16, generator=torch.Generator().manual_seed(seed))
    model.zero_grad()
    (model(x) - x.flip(1)).square().sum().backward()


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**31))
@settings(max_examples=50, deadline=None)
def test_directions_stay_and_sizes_become_one(rows: int, columns: int, seed: int) -> None:
    matrix = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    sizes = torch.diagonal(u.mT @ orthogonalized(matrix[None])[0] @ v.mT)
    assert sizes[s > 1e-2 * s.norm()].sub(1).abs().max() < 0.35
    rest = orthogonalized(matrix[None])[0] - u @ sizes.diag() @ v
    assert rest.abs().max() < 1e-3


def test_matrices_are_independent_of_those_beside_them() -> None:
    matrices = torch.randn(5, 12, 7)
    alone = torch.cat([orthogonalized(matrix[None]) for matrix in matrices])
    torch.testing.assert_close(orthogonalized(matrices), alone)
    assert orthogonalized(torch.zeros(1, 3, 4)).abs().max() == 0


def test_small_gradients_count_as_much_as_large_ones() -> None:
    """fairseq's --amp may divide them by the loss scale twice."""
    matrices = torch.randn(2, 6, 4)
    torch.testing.assert_close(orthogonalized(1e-12 * matrices), orthogonalized(matrices))


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="PyTorch before 2.9 has no Muon")
def test_steps_are_those_of_pytorchs_muon_and_adamw() -> None:
    ours, theirs = small_net(), small_net()
    optimizer = build(ours, muon_rms=0.2)
    marked = [p for p in theirs.parameters() if hasattr(p, "is_matrix")]
    others = [p for p in theirs.parameters() if not hasattr(p, "is_matrix")]
    muon = torch.optim.Muon(marked, lr=3e-3, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(others, lr=3e-3, betas=(0.8, 0.95), weight_decay=0.1)
    for seed in range(10):
        gradients(ours, seed)
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            q.grad = p.grad.clone()
        optimizer.step()
        muon.step()
        adamw.step()
    for p, q, start in zip(ours.parameters(), theirs.parameters(), small_net().parameters(), strict=True):
        moved = (q - start).norm()
        assert moved > 1e-2
        # PyTorch's iterates in bfloat16, with 8 bits.
        assert (p - q).norm() < (0.03 if hasattr(p, "is_matrix") else 1e-5) * moved


def test_a_matrix_changes_by_the_size_that_was_asked_for() -> None:
    model = small_net()
    optimizer = build(model, weight_decay=0.0)
    gradients(model, 0)
    optimizer.step()
    for p, start in zip(model.parameters(), small_net().parameters(), strict=True):
        if hasattr(p, "is_matrix"):
            assert (p - start).square().mean().sqrt().item() == pytest.approx(0.5 * 3e-3, rel=0.25)


def test_what_has_no_gradient_stays() -> None:
    model = small_net()
    optimizer = build(model)
    gradients(model, 0)
    model[0].weight.grad = None
    optimizer.step()
    assert torch.equal(model[0].weight, small_net()[0].weight)
    assert not torch.equal(model[2].weight, small_net()[2].weight)


def test_a_state_that_was_saved_goes_on_as_if_nothing_had_been() -> None:
    model = small_net()
    optimizer = build(model)
    for seed in range(3):
        gradients(model, seed)
        optimizer.step()
    again = small_net()
    again.load_state_dict(model.state_dict())
    resumed = build(again)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()), resumed.optimizer_config)
    for m, o in ((model, optimizer), (again, resumed)):
        gradients(m, 3)
        o.clip_grad_norm(1.0)
        o.set_lr(1e-3)
        assert o.get_lr() == 1e-3
        o.step()
    for a, b in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


def test_options_outdo_those_of_the_checkpoint() -> None:
    saved = build(small_net()).state_dict()
    resumed = build(small_net(), muon_rms=0.7, muon_momentum=0.8)
    resumed.load_state_dict(saved, resumed.optimizer_config)
    matrices = resumed.param_groups[0]
    assert (matrices["rms"], matrices["momentum"]) == (0.7, 0.8)


def test_ofas_matrices_are_its_projections() -> None:
    model = tiny_model()
    marked = {name for name, p in model.named_parameters() if hasattr(p, "is_matrix")}
    assert {name.rsplit(".", 2)[-2] for name in marked} == {
        *(
            "q_proj",
            "k_proj",
            "v_proj",
            "out_proj",
            "fc1",
            "fc2",
            "image_proj",
            "pos_q_linear",
            "pos_k_linear",
        ),
        *("self_pos_q_linear", "self_pos_k_linear", "cross_pos_q_linear", "cross_pos_k_linear"),
    }
    assert all(p.ndim == 2 for p in model.parameters() if hasattr(p, "is_matrix"))


def test_a_model_without_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="marked as a matrix"):
        build(nn.Linear(3, 4))


@pytest.mark.parametrize("flatten", [True, False])
def test_parameters_that_fp16_training_has_copied_are_refused(flatten: bool) -> None:
    copies = FP16Optimizer.build_fp32_params(None, list(small_net().half().parameters()), flatten=False)
    if flatten:  # fairseq's own code for this asks for a GPU
        copies = [nn.Parameter(torch.cat([p.flatten() for p in copies]))]
    with pytest.raises(ValueError, match="use --amp"):
        build(nn.ParameterList(copies))


def test_a_checkpoint_of_another_optimizer_is_refused() -> None:
    net = small_net()
    other = torch.optim.AdamW(net.parameters())
    with pytest.raises(ValueError, match="--reset-optimizer"):
        build(net).load_state_dict(other.state_dict())


@pytest.mark.parametrize(
    ("option", "value"), [("muon_momentum", 1.0), ("muon_momentum", -0.1), ("muon_rms", 0.0)]
)
def test_values_that_would_not_train_are_refused(option: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"--{option.replace('_', '-')} {value}: expected"):
        build(small_net(), **{option: value})


def test_only_matrices_can_be_marked() -> None:
    net = small_net()
    net[0].bias.is_matrix = True
    with pytest.raises(ValueError, match="shape \\(24,\\)"):
        build(net)


def test_its_options_are_flags_of_fairseq_train() -> None:
    cfg = parse_flags(
        "--arch=ofa_nano",
        "--optimizer=muon",
        "--muon-rms=0.5",
        "--muon-momentum=0.9",
        "--adam-betas=(0.9,0.98)",
    )
    assert (cfg.optimizer.muon_rms, cfg.optimizer.muon_momentum) == (0.5, 0.9)
    assert cfg.optimizer.adam_betas == "(0.9,0.98)"
