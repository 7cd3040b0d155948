import importlib
import math
from types import SimpleNamespace

import pytest
import torch
from fairseq.dataclass.initialize import hydra_init
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.optim import FairseqOptimizer
from fairseq.optim.lr_scheduler import LR_SCHEDULER_REGISTRY, build_lr_scheduler
from fairseq.optim.lr_scheduler.polynomial_decay_schedule import PolynomialDecayLRSchedule
from fairseq.options import get_training_parser, parse_args_and_arch
from hydra.core.global_hydra import GlobalHydra
from hydra.experimental import compose, initialize_config_module
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from ofa_fairseq.optim import polynomial_decay, training_length
from ofa_fairseq.optim.polynomial_decay import (
    WarmupRatioPolynomialDecayConfig,
    WarmupRatioPolynomialDecayLRSchedule,
)


class Optimizer(FairseqOptimizer):
    def __init__(self):
        super().__init__(None)
        self._optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.123)


@pytest.fixture(autouse=True)
def _nothing_announced(monkeypatch):
    monkeypatch.setattr(training_length, "_batches_per_epoch", None)


def config(**settings):
    """A configuration as fairseq resolves it: every pointer to another group replaced by its value."""
    base = {"lr": [1e-3], "total_num_update": 0, "max_update": 0, "max_epoch": 0, "update_freq": [1]}
    return OmegaConf.merge(
        OmegaConf.structured(WarmupRatioPolynomialDecayConfig), OmegaConf.create(base | settings)
    )


def scheduler(**settings):
    return WarmupRatioPolynomialDecayLRSchedule(config(**settings), Optimizer())


def expected_lr(update, total, warmup, lr=1e-3, end=0.0, power=1.0):
    if update < warmup:
        return lr * update / warmup
    return end + (lr - end) * max(0.0, (total - update) / (total - warmup)) ** power


# ---- without a ratio


@settings(deadline=None)
@given(
    options=st.fixed_dictionaries(
        {
            "lr": st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=3),
            "warmup_updates": st.integers(0, 20),
            "total_num_update": st.one_of(st.integers(0, 40), st.floats(0.5, 40)),
            "end_learning_rate": st.floats(0, 1e-4),
            "power": st.floats(0.5, 3.0),
            "force_anneal": st.one_of(st.none(), st.integers(1, 3)),
            "max_epoch": st.integers(0, 5),
            "update_freq": st.lists(st.integers(1, 4), min_size=1, max_size=3),
        }
    ),
    updates_per_epoch=st.integers(1, 12),
)
def test_equals_fairseqs_own_without_a_ratio(options, updates_per_epoch):
    training_length.announce([3])
    try:
        stock = PolynomialDecayLRSchedule(config(**options), Optimizer())
    except AssertionError:
        with pytest.raises(AssertionError):
            scheduler(**options)
        return
    ours = scheduler(**options)
    assert ours.optimizer.get_lr() == stock.optimizer.get_lr()
    assert ours.step_update(0) == stock.step_update(0)
    update = 0
    for epoch in range(1, 5):
        assert ours.step_begin_epoch(epoch) == stock.step_begin_epoch(epoch)
        for _ in range(updates_per_epoch):
            update += 1
            try:
                wanted = stock.step_update(update)
            except ZeroDivisionError:  # fairseq's own
                return
            assert ours.step_update(update) == wanted
        ours.step(epoch, 0.5)
        stock.step(epoch, 0.5)
    assert ours.state_dict() == stock.state_dict()


# ---- with a ratio


@settings(deadline=None)
@given(
    batches=st.lists(st.integers(1, 30), min_size=1, max_size=3),
    update_freq=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    max_epoch=st.integers(1, 6),
    ratio=st.floats(0.01, 0.99),
    power=st.sampled_from([0.5, 1.0, 2.0]),
)
def test_a_whole_training_by_epochs(batches, update_freq, max_epoch, ratio, power):
    """The training loop counts the updates here, batch by batch."""
    epochs = []
    for epoch in range(1, max_epoch + 1):
        left, updates = batches[(epoch - 1) % len(batches)], 0
        freq = update_freq[min(epoch, len(update_freq)) - 1]
        while left > 0:
            left -= freq
            updates += 1
        epochs.append(updates)
    total = sum(epochs)
    ours = scheduler(
        max_epoch=max_epoch, update_freq=update_freq, warmup_ratio=ratio, power=power, end_learning_rate=1e-5
    )
    ours.step_update(0)
    training_length.announce(batches)
    update = 0
    for epoch, updates in enumerate(epochs, start=1):
        ours.step_begin_epoch(epoch)
        for _ in range(updates):
            lr = ours.step_update(update)
            assert lr == pytest.approx(
                expected_lr(update, total, int(total * ratio), end=1e-5, power=power), rel=1e-9, abs=1e-15
            )
            update += 1
    assert ours.step_update(update) == pytest.approx(1e-5)


def test_before_the_announcement_it_stands_at_update_0():
    ours = scheduler(max_epoch=5, warmup_ratio=0.06)
    assert ours.step_update(0) == 0.0
    assert ours.step_update(7) == 0.0  # a resumed training asks before it has its data
    training_length.announce([100])
    assert ours.step_update(15) == pytest.approx(1e-3 * 15 / 30)


def test_a_ratio_too_small_for_one_update_means_no_warmup():
    ours = scheduler(max_epoch=1, warmup_ratio=0.06)
    ours.step_update(0)
    training_length.announce([1])
    assert ours.step_begin_epoch(1) == 1e-3
    assert ours.step_update(0) == 1e-3


def test_a_new_announcement_counts():
    ours = scheduler(max_epoch=2, warmup_ratio=0.5)
    training_length.announce([100])
    assert ours.step_update(50) == pytest.approx(0.5e-3)
    training_length.announce([50])
    assert ours.step_update(50) == pytest.approx(1e-3)


@pytest.mark.parametrize("length", [{"total_num_update": 200}, {"total_num_update": None, "max_update": 200}])
def test_without_epochs_the_given_total_counts(length):
    ours = scheduler(warmup_ratio=0.1, **length)
    for update in (0, 5, 20, 110, 200, 300):
        assert ours.step_update(update) == pytest.approx(expected_lr(update, 200, 20), abs=1e-15)


def test_epochs_go_before_a_given_total():
    training_length.announce([10])
    ours = scheduler(warmup_ratio=0.5, max_epoch=4, total_num_update=1000)
    assert ours.step_update(20) == pytest.approx(1e-3)


def test_the_configuration_handed_in_stays_as_it_is():
    cfg = config(max_epoch=2, warmup_ratio=0.5)
    before = OmegaConf.to_container(cfg)
    training_length.announce([10])
    WarmupRatioPolynomialDecayLRSchedule(cfg, Optimizer()).step_update(3)
    assert OmegaConf.to_container(cfg) == before


def test_force_anneal_keeps_the_current_rate():
    training_length.announce([10])
    ours = scheduler(max_epoch=4, warmup_ratio=0.25, force_anneal=2, lr=[1e-3, 9.0])
    stock = PolynomialDecayLRSchedule(
        config(total_num_update=40, warmup_updates=10, force_anneal=2, lr=[1e-3, 9.0]), Optimizer()
    )
    for one in (ours, stock):
        one.step_begin_epoch(0)
        one.step_update(10)
    for update in range(10, 41):
        if update % 10 == 0:
            assert ours.step_begin_epoch(update // 10 + 1) == stock.step_begin_epoch(update // 10 + 1)
        assert ours.step_update(update) == stock.step_update(update)


def test_a_resumed_training_goes_on_where_it_was():
    training_length.announce([10, 7])
    whole = scheduler(max_epoch=4, warmup_ratio=0.3)
    rates = [whole.step_update(update) for update in range(34)]
    resumed = scheduler(max_epoch=4, warmup_ratio=0.3)
    resumed.load_state_dict(whole.state_dict())
    resumed.step_begin_epoch(2)
    assert [resumed.step_update(update) for update in range(12, 34)] == rates[12:]


def test_errors():
    with pytest.raises(ValueError, match=r"--max-epoch, --max-update or --total-num-update"):
        scheduler(warmup_ratio=0.06)
    with pytest.raises(ValueError, match=r"--warmup-ratio 6\.0: expected a share"):
        scheduler(warmup_ratio=6.0, max_epoch=3)
    for batches in ([], [3, 0]):
        with pytest.raises(ValueError, match=r"batches per epoch"):
            training_length.announce(batches)


# ---- through fairseq's configuration


def parsed(*flags):
    argv = ["somewhere", "--task", "language_modeling", "--arch", "transformer_lm", *flags]
    parser = get_training_parser()
    return convert_namespace_to_omegaconf(parse_args_and_arch(parser, argv))


def test_published_flags():
    cfg = parsed(
        *["--lr-scheduler=polynomial_decay", "--warmup-ratio=0.06", "--max-epoch=5", "--lr=1e-5"],
        *["--update-freq=4"],
    )
    assert cfg.lr_scheduler.warmup_ratio == 0.06
    ours = build_lr_scheduler(cfg.lr_scheduler, Optimizer())
    assert isinstance(ours, polynomial_decay.WarmupRatioPolynomialDecayLRSchedule)
    training_length.announce([41])
    total, warmup = 5 * math.ceil(41 / 4), int(5 * 11 * 0.06)
    for update in (0, 1, warmup, 20, total):
        assert ours.step_update(update) == pytest.approx(
            expected_lr(update, total, warmup, lr=1e-5), abs=1e-18
        )


@pytest.mark.parametrize("length", [["--max-update=100"], ["--max-update=7", "--total-num-update=100"]])
def test_flags_without_a_ratio(length):
    cfg = parsed("--lr-scheduler=polynomial_decay", "--warmup-updates=10", "--max-update=100", "--lr=1e-5")
    ours = build_lr_scheduler(cfg.lr_scheduler, Optimizer())
    assert ours.step_update(55) == pytest.approx(0.5e-5)


@pytest.mark.parametrize(
    ("length", "wanted"), [("optimization.max_epoch=4", 20 / 40), ("optimization.max_update=100", 20 / 100)]
)
def test_hydra_overrides(length, wanted):
    """Composed as fairseq-hydra-train does it, with pointers to other groups still unresolved."""
    hydra_init()
    GlobalHydra.instance().clear()
    with initialize_config_module("fairseq.config"):
        cfg = compose(
            "config",
            overrides=[
                "task=language_modeling",
                "lr_scheduler=polynomial_decay",
                "lr_scheduler.warmup_ratio=1.0",
                "optimization.lr=[1.0]",
                length,
            ],
        )
    training_length.announce([10])
    ours = build_lr_scheduler(cfg.lr_scheduler, Optimizer())
    assert ours.step_update(20) == pytest.approx(wanted)


def test_importing_again_is_harmless():
    again = importlib.reload(polynomial_decay)
    assert LR_SCHEDULER_REGISTRY["polynomial_decay"] is again.WarmupRatioPolynomialDecayLRSchedule
    cfg = SimpleNamespace(lr_scheduler="polynomial_decay", lr=[1.0], total_num_update=10, warmup_ratio=0.5)
    cfg.max_update, cfg.max_epoch, cfg.update_freq = 0, 0, [1]
    assert build_lr_scheduler(cfg, Optimizer()).step_update(5) == 1.0
