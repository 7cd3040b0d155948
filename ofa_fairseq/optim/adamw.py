"""`--optimizer adamw`: PyTorch's fused AdamW.

The update is that of fairseq's `adam` (but for epsilon, which enters after the bias correction), which without NVIDIA's
Apex walks through the parameters in Python: for a small model a good part of a training step. With `--fp16` there is
little to win, since fairseq makes one flat tensor of all parameters. `--memory-efficient-fp16` and
`--memory-efficient-bf16` need `adam`.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, List  # noqa: UP035  (the only spelling that fairseq's parser knows)

import torch
from fairseq.dataclass import FairseqDataclass
from fairseq.optim import register_optimizer
from fairseq.optim.adam import FairseqAdam
from fairseq.optim.fairseq_optimizer import FairseqOptimizer
from omegaconf import II


@dataclass
class AdamWConfig(FairseqDataclass):
    adam_betas: Any = field(default=(0.9, 0.999), metadata={"help": "betas of the two running means"})
    adam_eps: float = field(default=1e-8, metadata={"help": "added to the denominator"})
    weight_decay: float = field(default=0.0, metadata={"help": "decoupled weight decay, times --lr"})
    lr: List[float] = II("optimization.lr")  # noqa: UP006, RUF009


@register_optimizer("adamw", dataclass=AdamWConfig)
class AdamW(FairseqAdam):
    """`torch.optim.AdamW` (Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization") behind fairseq's
    interface; options are read as fairseq's `adam` reads them."""

    supports_flat_params = True

    def __init__(self, cfg: AdamWConfig, params: Iterable[Any]) -> None:
        FairseqOptimizer.__init__(self, cfg)  # FairseqAdam's own constructor would choose fairseq's Adam
        self._optimizer = torch.optim.AdamW(params, fused=True, **self.optimizer_config)
