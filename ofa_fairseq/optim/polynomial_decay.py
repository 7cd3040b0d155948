"""`--lr-scheduler polynomial_decay` with `--warmup-ratio`.

Published recipes ask for both under fairseq's own name, so this class takes that name over: it is fairseq's
schedule, and wherever no ratio is given it behaves as fairseq's does.

In YAML files of fairseq-hydra-train it is called `ofa_polynomial_decay`: fairseq checks a section against the class
of its name before it imports the user directory, and so would check this one's against its own class.
"""

import copy
import logging
import math
from dataclasses import dataclass, field
from typing import Any, List, Optional  # noqa: UP035  (the only spellings that fairseq's parser knows)

from fairseq.optim.lr_scheduler import (
    LR_SCHEDULER_DATACLASS_REGISTRY,
    LR_SCHEDULER_REGISTRY,
    register_lr_scheduler,
)
from fairseq.optim.lr_scheduler.polynomial_decay_schedule import (
    PolynomialDecayLRSchedule,
    PolynomialDecayLRScheduleConfig,
)
from omegaconf import II

from . import training_length

logger = logging.getLogger(__name__)

NAME, YAML_NAME = "polynomial_decay", "ofa_polynomial_decay"
# fairseq refuses a name that is taken. Its hydra node is replaced by registering again. Importing this file a
# second time replaces this class by itself.
for _name in (NAME, YAML_NAME):
    LR_SCHEDULER_REGISTRY.pop(_name, None)
    LR_SCHEDULER_DATACLASS_REGISTRY.pop(_name, None)


@dataclass
class WarmupRatioPolynomialDecayConfig(PolynomialDecayLRScheduleConfig):
    warmup_ratio: float = field(
        default=0.0,
        metadata={
            "help": "warm up during this share of all updates, which are counted from --max-epoch, or else "
            "are --total-num-update or --max-update; replaces --warmup-updates"
        },
    )
    # fairseq's parser turns a flag that was not given into None, which fairseq's own field does not take.
    total_num_update: Optional[float] = field(
        default=II("optimization.max_update"),
        metadata={"help": "updates over which the learning rate decays; --max-update if not given"},
    )
    max_update: int = II("optimization.max_update")
    max_epoch: int = II("optimization.max_epoch")
    update_freq: List[int] = II("optimization.update_freq")  # noqa: UP006, RUF009


@register_lr_scheduler(YAML_NAME, dataclass=WarmupRatioPolynomialDecayConfig)
@register_lr_scheduler(NAME, dataclass=WarmupRatioPolynomialDecayConfig)
class WarmupRatioPolynomialDecayLRSchedule(PolynomialDecayLRSchedule):
    """Linear warm-up, then polynomial decay to `end_learning_rate` at the last update.

    With a ratio r above 0 and `max_epoch` the updates are counted as soon as the length of an epoch has been
    announced (see `training_length`); until then the learning rate is that of update 0. Warm-up takes
    `int(r * updates)`. Raises ValueError for a ratio above 1, or if nothing says how long training is.
    """

    cfg: Any
    total_num_update: float

    def __init__(self, cfg: Any, optimizer: Any) -> None:
        self.by_epochs = cfg.warmup_ratio > 0 and cfg.max_epoch > 0
        total = cfg.max_update if cfg.total_num_update is None else cfg.total_num_update
        if cfg.warmup_ratio > 1:
            raise ValueError(f"--warmup-ratio {cfg.warmup_ratio}: expected a share of the updates, 0 to 1")
        if cfg.warmup_ratio > 0 and not self.by_epochs and total <= 0:
            raise ValueError(
                f"--warmup-ratio {cfg.warmup_ratio} needs to know how long training is: "
                "give --max-epoch, --max-update or --total-num-update"
            )
        super().__init__(with_length(cfg, math.inf if self.by_epochs else total), optimizer)

    def step_begin_epoch(self, epoch: int) -> float:
        self.measure()
        return super().step_begin_epoch(epoch)

    def step_update(self, num_updates: int) -> float:
        return super().step_update(num_updates if self.measure() else 0)

    def measure(self) -> bool:
        """Count the updates from the last announcement; False while there is none but one is needed."""
        if not self.by_epochs:
            return True
        batches = training_length.announced()
        if batches is None:
            return False
        total = training_length.total_updates(batches, self.cfg.update_freq, self.cfg.max_epoch)
        if total != self.total_num_update:
            self.cfg = with_length(self.cfg, total)
            self.total_num_update = total
            # As in fairseq's constructor, which could not know the number.
            self.warmup_factor = 1.0 / max(self.cfg.warmup_updates, 1)
            logger.info(f"learning rate: {total} updates, {self.cfg.warmup_updates} of them warm-up")
        return True


def with_length(cfg: Any, total: float) -> Any:
    """A copy of the configuration with this total, and the warm-up that a ratio makes of it, where fairseq's
    methods read them. An infinite total stands for one not known yet: only update 0 is asked for then."""
    cfg = copy.deepcopy(cfg)
    cfg.total_num_update = total
    if cfg.warmup_ratio > 0:
        cfg.warmup_updates = 1 if math.isinf(total) else int(total * cfg.warmup_ratio)
    return cfg
