"""`--optimizer muon`: Muon for the Transformer's matrices, AdamW for all other parameters.

A matrix is changed by its gradient's running mean with all singular values made 1 (Jordan et al. 2024, "Muon: an
optimizer for hidden layers in neural networks"). Directions in which gradients are small are so learnt as fast as the
others: a small model needs fewer updates to find what a text names, of which there are many rare cases.

Which matrices these are says the model, by an attribute `is_matrix` of the parameter. `OFAModel` marks the linear
layers of encoder and decoder (attention, positions, feed-forward, adapters), but not the output layer; not embeddings,
of which an update changes a few rows; and not convolutions. `--fp16` and `--bf16` lose the marks, as fairseq copies all
parameters then; `--amp` keeps them. With several processes a matrix that no batch uses goes on along its mean, as it
does with AdamW; with one process it stays.

`torch.optim.Muon` is not used here: it takes one matrix after the other, and always in bfloat16, in which a CPU without
it took 20 times as long (1.5 s for an update of `ofa_nano`).
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from fairseq.optim import register_optimizer
from fairseq.optim.adam import FairseqAdam
from fairseq.optim.fairseq_optimizer import FairseqOptimizer
from torch import Tensor, nn

from .adamw import AdamWConfig

# One step of the iteration turns each singular value s into a s + b s^3 + c s^5 (Jordan et al. 2024).
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_STEPS = 5


def orthogonalized(matrices: Tensor) -> Tensor:
    """Matrices with about the same singular vectors and all singular values between 0.7 and 1.2, [n, a, b] -> same.

    Newton-Schulz iteration; singular values below a thousandth of the matrix's norm stay smaller.
    """
    if matrices.size(1) > matrices.size(2):
        return orthogonalized(matrices.mT).mT
    a, b, c = _COEFFICIENTS
    x = matrices / matrices.norm(dim=(1, 2), keepdim=True).clamp(min=torch.finfo(matrices.dtype).tiny)
    for _ in range(_STEPS):
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x


class OrthogonalMomentum(torch.optim.Optimizer):
    """Muon proper, of matrices only.

    Args:
        params: two-dimensional parameters.
        lr: learning rate.
        momentum: of the running mean of gradients.
        rms: the root mean square of the entries of a matrix's change, in units of `lr`. (Liu et al. 2025, "Muon is
            scalable for LLM training", section 2.2; AdamW's is 0.2 to 0.4.)
        weight_decay: decoupled, times `lr`.

    Raises ValueError for parameters of another shape, a momentum outside of [0, 1) or a size that is not positive.
    """

    def __init__(
        self, params: Iterable[nn.Parameter], lr: float, momentum: float, rms: float, weight_decay: float
    ) -> None:
        if not 0 <= momentum < 1:
            raise ValueError(f"--muon-momentum {momentum}: expected 0 or more and less than 1")
        if rms <= 0:
            raise ValueError(f"--muon-rms {rms}: expected more than 0")
        super().__init__(params, {"lr": lr, "momentum": momentum, "rms": rms, "weight_decay": weight_decay})
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.ndim != 2:
                    raise ValueError(
                        f"Muon is for matrices, but a parameter has the shape {tuple(parameter.shape)}"
                    )

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Change the matrices that have gradients."""
        for group in self.param_groups:
            alike: dict[tuple[torch.Size, torch.device], list[nn.Parameter]] = defaultdict(list)
            for matrix in group["params"]:
                if matrix.grad is not None:
                    alike[matrix.shape, matrix.device].append(matrix)
            for matrices in alike.values():
                self._step(matrices, group)

    def _step(self, matrices: list[nn.Parameter], group: dict[str, Any]) -> None:
        """Change matrices of one shape, together."""
        directions = []
        for matrix in matrices:
            assert matrix.grad is not None
            mean = self._mean(matrix).lerp_(matrix.grad, 1 - group["momentum"])
            directions.append(matrix.grad.lerp(mean, group["momentum"]))  # Nesterov: where the mean will be
        # The entries of an orthogonal matrix have a root mean square of 1 / sqrt(its larger side).
        size = group["lr"] * group["rms"] * max(matrices[0].shape) ** 0.5
        for matrix, change in zip(matrices, orthogonalized(torch.stack(directions))):
            matrix.mul_(1 - group["lr"] * group["weight_decay"]).sub_(change, alpha=size)

    def _mean(self, matrix: nn.Parameter) -> Tensor:
        """The running mean of the matrix's gradients."""
        state = self.state[matrix]
        if not state:
            state["mean"] = torch.zeros_like(matrix)
        return state["mean"]


class _Together(torch.optim.Optimizer):
    """Optimizers of different parameters as one."""

    def __init__(self, *optimizers: torch.optim.Optimizer) -> None:
        self.optimizers = optimizers  # all state is theirs, so there is nothing to initialize

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for optimizer in self.optimizers:
            optimizer.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        return {"optimizers": [optimizer.state_dict() for optimizer in self.optimizers]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if "optimizers" not in state_dict:  # with --amp fairseq does not see that it is another optimizer's
            raise ValueError(
                "the checkpoint was not trained with --optimizer muon; give --reset-optimizer to go on"
            )
        for optimizer, state in zip(self.optimizers, state_dict["optimizers"], strict=True):
            optimizer.load_state_dict(state)


@dataclass
class MuonConfig(AdamWConfig):
    muon_momentum: float = field(
        default=0.95, metadata={"help": "of the running mean of a matrix's gradients"}
    )
    muon_rms: float = field(
        default=0.5,
        metadata={
            "help": "root mean square of the entries of a matrix's change, in units of --lr (AdamW: 0.2 to 0.4)"
        },
    )


@register_optimizer("muon", dataclass=MuonConfig)
class Muon(FairseqAdam):
    """Muon and AdamW behind fairseq's interface, with one learning rate and weight decay.

    Raises ValueError if none of the parameters that train is marked as a matrix.
    """

    def __init__(self, cfg: MuonConfig, params: Iterable[nn.Parameter]) -> None:
        FairseqOptimizer.__init__(self, cfg)  # FairseqAdam's own constructor would choose fairseq's Adam
        params = list(params)
        matrices = [parameter for parameter in params if getattr(parameter, "is_matrix", False)]
        others = [parameter for parameter in params if not getattr(parameter, "is_matrix", False)]
        if not matrices:
            raise ValueError(
                "--optimizer muon: none of the parameters that train is marked as a matrix. All such are frozen, or "
                "the model marks none, or --fp16 or --bf16 lost the marks (use --amp)"
            )
        adam = super().optimizer_config
        self._optimizer = _Together(
            OrthogonalMomentum(
                matrices, adam["lr"], cfg.muon_momentum, cfg.muon_rms, weight_decay=adam["weight_decay"]
            ),
            *([torch.optim.AdamW(others, fused=True, **adam)] if others else []),
        )

    @property
    def optimizer_config(self) -> dict[str, Any]:
        """What the options say, which is put in the place of what a checkpoint says."""
        return super().optimizer_config | {"momentum": self.cfg.muon_momentum, "rms": self.cfg.muon_rms}
