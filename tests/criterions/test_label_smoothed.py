import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fairseq.criterions import CRITERION_DATACLASS_REGISTRY, CRITERION_REGISTRY
from fairseq.data import Dictionary
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.logging import metrics
from fairseq.options import get_training_parser, parse_args_and_arch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ofa_fairseq.criterions.label_smoothed import (
    Drop,
    bonus,
    kept_tokens,
    repeat_batch,
    symmetric_kl,
    token_losses,
)
from ofa_fairseq.generation.answer_space import AnswerTrie

REFERENCE = Path(__file__).parents[1] / "reference"
ARRAYS = {name: torch.from_numpy(array) for name, array in np.load(REFERENCE / "criterion.npz").items()}
CASES = json.loads((REFERENCE / "criterion.json").read_text())
CROSS_ENTROPY = "adjust_label_smoothed_cross_entropy"
ENCOURAGING = "adjust_label_smoothed_encouraging_loss"
PAD, EOS = 1, 2


class GivenLogits(nn.Module):
    """Gives its parameter, whatever the input, where output is asked for; keeps the last input."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(logits.clone())

    def forward(self, output_positions, **net_input):
        self.net_input = net_input
        return self.logits.flatten(0, 1)[output_positions], {"attn": None}


class FirstLetters:
    """An answer space in which only the tokens below a limit may be said, one limit for each target token."""

    def __init__(self, limits, vocabulary):
        self.limits, self.vocabulary = limits, vocabulary

    def target_masks(self, target, supervised):
        return torch.arange(self.vocabulary) < self.limits[target[supervised]].unsqueeze(-1)


def task(vocabulary=50):
    dictionary = Dictionary()
    for i in range(vocabulary - len(dictionary)):
        dictionary.add_symbol(f"word{i}")
    return SimpleNamespace(target_dictionary=dictionary)


def build(name=CROSS_ENTROPY, sentence_avg=False, vocabulary=12, **options):
    cfg = CRITERION_DATACLASS_REGISTRY[name](sentence_avg=sentence_avg, **options)
    return CRITERION_REGISTRY[name].build_criterion(cfg, task(vocabulary))


def batch(target, **entries):
    sample = {"net_input": {"src_tokens": torch.zeros_like(target), "patch_images": None}, "target": target}
    return sample | {"ntokens": int(target.ne(PAD).sum()), "nsentences": len(target)} | entries


def random_batch(seed=0, rows=4, steps=6, vocabulary=12, scale=2.0):
    """Logits and right-padded targets of 1 to `steps` tokens; ids from 4."""
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(rows, steps, vocabulary, generator=generator)
    target = torch.randint(4, vocabulary, (rows, steps), generator=generator)
    lengths = torch.randint(1, steps + 1, (rows, 1), generator=generator)
    return logits, target.masked_fill(torch.arange(steps) >= lengths, PAD)


def by_hand(row, target, epsilon, allowed=None, weight=1.0):
    """Smoothed loss and nll of one token, with Python numbers."""
    row = [value for value in row.tolist()]
    allowed = range(len(row)) if allowed is None else allowed
    total = math.log(sum(math.exp(row[v]) for v in allowed))
    nll = total - row[target]
    share = epsilon / max(len(allowed) - 1, 1)
    smooth = sum(total - row[v] for v in allowed)
    return weight * ((1 - epsilon - share) * nll + share * smooth), weight * nll


# ---- the original's numbers


@pytest.mark.parametrize("case", CASES)
def test_reference(case):
    wanted = CASES[case]
    criterion = build(sentence_avg=wanted["sentence_avg"], vocabulary=50, **wanted["options"])
    model = GivenLogits(ARRAYS[wanted["logits"]])
    extras = {key: ARRAYS[key] for key in ("conf", "constraint_masks") if wanted[key]}
    loss, sample_size, log = criterion(
        model, batch(ARRAYS[wanted["target"]], **extras), update_num=wanted["update_num"]
    )
    loss.backward()
    assert loss.item() == pytest.approx(wanted["loss"], rel=1e-5)
    assert log["loss"].item() == loss.item()
    assert log["nll_loss"].item() == pytest.approx(wanted["nll_loss"], rel=1e-5)
    assert sample_size == log["sample_size"] == wanted["sample_size"]
    torch.testing.assert_close(model.logits.grad, ARRAYS[f"grad_{case}"], rtol=1e-4, atol=1e-6)


# ---- properties of the token losses


def test_without_smoothing_it_is_cross_entropy():
    logits, target = random_batch()
    loss, sample_size, log = build()(GivenLogits(logits), batch(target))
    wanted = F.cross_entropy(logits.flatten(0, 1), target.flatten(), ignore_index=PAD, reduction="sum")
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-6)
    assert log["nll_loss"] == loss
    assert sample_size == target.ne(PAD).sum()


@settings(deadline=None)
@given(
    logits=st.lists(st.floats(-8, 8), min_size=3, max_size=9),
    epsilon=st.floats(0, 0.5),
    weight=st.floats(0, 1),
    data=st.data(),
)
def test_one_token_by_hand(logits, epsilon, weight, data):
    allowed = sorted(data.draw(st.sets(st.integers(0, len(logits) - 1), min_size=1)))
    target = data.draw(st.sampled_from(allowed))
    row = torch.tensor([logits])
    mask = torch.zeros_like(row, dtype=torch.bool)
    mask[0, allowed] = True
    got = token_losses(
        row.masked_fill(~mask, -math.inf), torch.tensor([target]), epsilon, mask, torch.tensor([weight])
    )
    wanted = by_hand(row[0], target, epsilon, allowed, weight)
    assert (got.loss.item(), got.nll.item()) == pytest.approx(wanted, rel=1e-4, abs=1e-4)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 1000), epsilon=st.floats(0, 0.3), extra=st.integers(1, 4))
def test_padding_adds_nothing(seed, epsilon, extra):
    logits, target = random_batch(seed)
    criterion = build(label_smoothing=epsilon)
    loss, size, _ = criterion(GivenLogits(logits), batch(target))
    wider = GivenLogits(F.pad(logits, (0, 0, 0, extra), value=5.0))
    padded, padded_size, _ = criterion(wider, batch(F.pad(target, (0, extra), value=PAD)))
    padded.backward()
    assert padded.item() == pytest.approx(loss.item(), rel=1e-6)
    assert padded_size == size
    assert not wider.logits.grad[:, -extra:].any()


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 1000), epsilon=st.floats(0, 0.3))
def test_restrictions_add_up(seed, epsilon):
    """Masks, answer space and range at once, against a loop over the sets of allowed tokens."""
    logits, target = random_batch(seed, vocabulary=14)
    target = torch.where(target.eq(PAD), PAD, target.clamp(5, 12))
    masks = torch.rand(*target.shape, 14, generator=torch.Generator().manual_seed(seed)) < 0.5
    masks.scatter_(-1, target.unsqueeze(-1), True)
    masks[target.eq(PAD)] = False  # as the answer trie leaves them
    limits = torch.arange(14) + 2
    conf = torch.tensor([1.0, 0.3, 0.5, 0.8])
    sample = batch(target, constraint_masks=masks, answer_space=FirstLetters(limits, 14), conf=conf)
    loss, _, _ = build(label_smoothing=epsilon, constraint_range="5,13", vocabulary=14)(
        GivenLogits(logits), sample
    )
    wanted = 0.0
    for b, t in target.ne(PAD).nonzero().tolist():
        y = int(target[b, t])
        allowed = [v for v in range(14) if masks[b, t, v] and v < limits[y] and v not in (4, 13)]
        wanted += by_hand(logits[b, t], y, epsilon, allowed, conf[b].item())[0]
    assert loss.item() == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("options", [{}, {"ignore_prefix_size": 2}, {"ignore_eos": True}])
def test_answers_are_followed_from_their_start(options):
    """With a trie, behind a prompt, also where tokens are ignored."""
    answers = [[4, 5], [4, 6, 7], [8]]
    target = torch.tensor([[PAD, 4, 6, 7, EOS], [4, 5, EOS, PAD, PAD], [PAD, PAD, 8, EOS, PAD]])
    logits, _ = random_batch(rows=3, steps=5)
    trie = AnswerTrie(answers, EOS, 12)
    loss, _, _ = build(label_smoothing=0.1, **options)(GivenLogits(logits), batch(target, answer_space=trie))
    wanted = 0.0
    for b, t in target.ne(PAD).nonzero().tolist():
        said = [y for y in target[b, :t].tolist() if y != PAD]
        allowed = {[*a, EOS][len(said)] for a in answers if [*a, EOS][: len(said)] == said}
        if t >= options.get("ignore_prefix_size", 0) and not (
            "ignore_eos" in options and target[b, t] == EOS
        ):
            wanted += by_hand(logits[b, t], int(target[b, t]), 0.1, sorted(allowed))[0]
    assert loss.item() == pytest.approx(wanted, rel=1e-5)


def test_a_target_that_is_not_allowed_has_an_infinite_loss():
    logits, target = random_batch()
    loss, _, _ = build(label_smoothing=0.1, constraint_range="5,6")(GivenLogits(logits), batch(target))
    assert loss == math.inf


def test_confidence_scales_its_row_only():
    logits, target = random_batch()
    criterion = build(label_smoothing=0.1)
    rows = [criterion(GivenLogits(logits[b, None]), batch(target[b, None]))[0].item() for b in range(4)]
    conf = torch.tensor([1.0, 0.3, 0.6, 0.0])
    loss, sample_size, _ = criterion(GivenLogits(logits), batch(target, conf=conf))
    assert loss.item() == pytest.approx(sum(c * row for c, row in zip(conf.tolist(), rows)), rel=1e-5)
    assert sample_size == target.ne(PAD).sum()  # the denominator stays


@pytest.mark.parametrize("name", [CROSS_ENTROPY, ENCOURAGING])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(name, dtype):
    """Computed in float32: also at the largest logits that the type holds, and with a masked vocabulary."""
    logits, target = random_batch()
    options = {"label_smoothing": 0.1, "use_rdrop": True, "constraint_range": "4,11"}
    target = target.clamp(max=10)
    doubled = torch.cat([logits, logits + 0.1 * logits.roll(1)])
    half, full = GivenLogits(doubled.to(dtype)), GivenLogits(doubled.to(dtype).float())
    loss, _, _ = build(name, **options)(half, batch(target))
    wanted, _, _ = build(name, **options)(full, batch(target))
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-6)
    assert half.logits.grad.isfinite().all()
    extreme = GivenLogits(torch.where(doubled > 0, 60000.0, -60000.0).to(dtype))
    loss, _, _ = build(name, **options)(extreme, batch(target))
    loss.backward()
    assert loss.isfinite()
    assert extreme.logits.grad.isfinite().all()


def test_the_models_output_is_not_written_to():
    logits, target = random_batch()
    model = GivenLogits(logits)
    build(constraint_range="4,12", ignore_prefix_size=1)(model, batch(target))
    assert torch.equal(model.logits, logits)


@pytest.mark.parametrize("name", [CROSS_ENTROPY, ENCOURAGING])
@pytest.mark.parametrize("use_rdrop", [False, True])
def test_without_any_target(name, use_rdrop):
    logits, target = random_batch()
    options = {"label_smoothing": 0.1, "drop_worst_ratio": 0.2, "constraint_range": "4,8"}
    criterion = build(name, use_rdrop=use_rdrop, report_accuracy=True, **options)
    model = GivenLogits(torch.cat([logits, logits]) if use_rdrop else logits)
    loss, sample_size, log = criterion(model, batch(torch.full_like(target, PAD)), update_num=1)
    loss.backward()
    assert loss.item() == 0
    assert sample_size == 0
    assert log["total"] == 0
    assert not model.logits.grad.any()


def test_ignored_positions():
    logits, _ = random_batch(rows=2, steps=4)
    target = torch.tensor([[5, 6, EOS, PAD], [EOS, 7, 8, 9]])  # not one end per row at the same place
    size = {}
    for name, options in {"prefix": {"ignore_prefix_size": 2}, "end": {"ignore_eos": True}}.items():
        loss, size[name], _ = build(**options)(GivenLogits(logits), batch(target))
        kept = {"prefix": [(0, 2), (1, 2), (1, 3)], "end": [(0, 0), (0, 1), (1, 1), (1, 2), (1, 3)]}[name]
        wanted = sum(by_hand(logits[b, t], int(target[b, t]), 0.0)[0] for b, t in kept)
        assert loss.item() == pytest.approx(wanted, rel=1e-5)
    assert size == {"prefix": 3, "end": 5}


# ---- dropping tokens


@settings(deadline=None)
@given(
    losses=st.lists(st.integers(0, 1000), unique=True, max_size=30),
    worst=st.floats(0, 0.99),
    best=st.floats(0, 0.99),
    update_num=st.integers(0, 4),
)
def test_kept_tokens_against_sorting(losses, worst, best, update_num):
    drops = [Drop(worst, 1, False), Drop(best, 2, True)]
    kept = kept_tokens(torch.tensor(losses, dtype=torch.float32), drops, update_num)
    wanted = sorted(losses)
    if worst > 0 and update_num > 1:
        wanted = wanted[: int(len(wanted) * (1 - worst))]
    if best > 0 and update_num > 2:
        wanted = wanted[len(wanted) - int(len(wanted) * (1 - best)) :]
    assert sorted(losses if kept is None else [losses[i] for i in kept]) == wanted


def test_dropped_tokens_get_no_gradient():
    logits, target = random_batch()
    unreduced, _, _ = build(label_smoothing=0.1)(GivenLogits(logits), batch(target), reduce=False)
    kept = sorted(unreduced.tolist())[: int(len(unreduced) * 0.7)]
    model = GivenLogits(logits)
    loss, sample_size, log = build(label_smoothing=0.1, drop_worst_ratio=0.3)(
        model, batch(target), update_num=1
    )
    loss.backward()
    assert loss.item() == pytest.approx(sum(kept), rel=1e-5)
    assert sample_size == len(kept)
    assert log["ntokens"] == len(unreduced)
    assert model.logits.grad.any(-1).sum() == len(kept)


# ---- R-Drop


@pytest.mark.parametrize("conf", [None, torch.tensor([1.0, 0.3, 0.5, 0.8])])
@pytest.mark.parametrize("constraint_range", [None, "4,9"])
def test_rdrop_against_two_passes(conf, constraint_range):
    first, target = random_batch(1)
    second, _ = random_batch(2)
    target = target.clamp(max=8)
    entries = {} if conf is None else {"conf": conf}
    options = {"label_smoothing": 0.1, "constraint_range": constraint_range}
    loss, _, _ = build(use_rdrop=True, reg_alpha=0.7, **options)(
        GivenLogits(torch.cat([first, second])), batch(target, **entries)
    )
    wanted = sum(build(**options)(GivenLogits(z), batch(target, **entries))[0] for z in (first, second))
    columns = slice(None) if constraint_range is None else slice(0, 9)
    for b, t in target.ne(PAD).nonzero().tolist():
        p, q = (z[b, t, columns].softmax(-1) for z in (first, second))
        divergence = (p * (p / q).log()).sum() + (q * (q / p).log()).sum()
        wanted += 0.7 * 0.5 * divergence * (1.0 if conf is None else conf[b])
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)


def test_divergence_of_masked_logits_has_a_finite_gradient():
    logits, _ = random_batch()
    masked = logits.clone()
    masked[..., ::2] = -math.inf
    first, second = (z.flatten(0, 1).requires_grad_() for z in (masked, masked + logits))
    symmetric_kl(first, second).sum().backward()
    assert first.grad.isfinite().all()
    assert first.grad[:, 1::2].any()
    wanted = symmetric_kl(first[:, 1::2], second[:, 1::2])
    torch.testing.assert_close(symmetric_kl(first, second), wanted)


def test_the_doubled_batch_is_a_new_one():
    images = torch.rand(2, 3)
    sample = {
        "net_input": {"patch_images": images, "code_masks": None, "sample_patch_num": 196},
        "id": ["a", "b"],
        "nsentences": 2,
        "scale": torch.tensor(2.0),
    }
    doubled = repeat_batch(sample)
    assert torch.equal(doubled["net_input"]["patch_images"], torch.cat([images, images]))
    assert sample["net_input"]["patch_images"] is images
    assert doubled["net_input"]["code_masks"] is None
    assert doubled["net_input"]["sample_patch_num"] == 196
    assert (doubled["id"], doubled["nsentences"], doubled["scale"]) == (["a", "b"], 2, sample["scale"])


def test_rdrop_rests_in_evaluation():
    logits, target = random_batch()
    model = GivenLogits(logits).eval()
    loss, sample_size, _ = build(use_rdrop=True)(model, batch(target))
    assert loss.item() == pytest.approx(build()(model, batch(target))[0].item())
    assert sample_size == target.ne(PAD).sum()
    assert model.net_input["src_tokens"].shape == target.shape


# ---- the encouraging loss


@pytest.mark.parametrize("log_end", [0.75, 0.3, 1.0])
@pytest.mark.parametrize("masked", [False, True])
def test_encouraging_loss_against_a_loop(log_end, masked):
    logits, target = random_batch(3, vocabulary=9, scale=4.0)
    conf = torch.tensor([1.0, 0.3, 0.5, 0.8])
    masks = torch.rand(*target.shape, 9, generator=torch.Generator().manual_seed(5)) < 0.5
    masks.scatter_(-1, target.unsqueeze(-1), True)
    sample = batch(target, conf=conf) | ({"constraint_masks": masks} if masked else {})
    epsilon, ratios = 0.1, {"drop_worst_ratio": 0.2, "drop_best_ratio": 0.25}

    def gain(p):
        if p <= log_end or log_end == 1.0:
            return math.log(max(1 - p, 1e-5))
        return -(p - log_end) / (1 - log_end) + math.log(1 - log_end)

    tokens = []
    for b, t in target.ne(PAD).nonzero().tolist():
        y, weight = int(target[b, t]), conf[b].item()
        allowed = [v for v in range(9) if masks[b, t, v] or not masked]
        loss, nll = by_hand(logits[b, t], y, epsilon, allowed, weight)
        total = math.log(sum(math.exp(logits[b, t, v].item()) for v in allowed))
        gains = {v: gain(math.exp(weight * (logits[b, t, v].item() - total))) for v in allowed}
        encouraged = loss + (1 - epsilon) * gains[y] + epsilon / 9 * sum(gains.values())
        tokens.append((loss, encouraged, nll))
    tokens.sort()
    tokens = tokens[: int(len(tokens) * 0.8)]
    tokens = tokens[len(tokens) - int(len(tokens) * 0.75) :]

    model = GivenLogits(logits)
    criterion = build(ENCOURAGING, label_smoothing=epsilon, log_end=log_end, **ratios)
    loss, sample_size, log = criterion(model, sample, update_num=1)
    loss.backward()
    assert loss.item() == pytest.approx(sum(encouraged for _, encouraged, _ in tokens), rel=1e-4)
    assert log["nll_loss"].item() == pytest.approx(sum(nll for _, _, nll in tokens), rel=1e-4)
    assert sample_size == len(tokens)
    assert model.logits.grad.isfinite().all()


@given(p=st.floats(0, 1), log_end=st.floats(0.05, 0.99))
@settings(deadline=None)
def test_bonus_rewards_confidence_and_is_smooth(p, log_end):
    at = bonus(torch.tensor([p, 0.0, log_end - 1e-3, log_end + 1e-3], dtype=torch.float64), log_end)
    assert at[0] <= 0
    assert at[1] == 0
    slope = (at[3] - at[2]) / 2e-3
    assert slope.item() == pytest.approx(-1 / (1 - log_end), rel=0.06)


# ---- logging and configuration


def test_accuracy_counts_supervised_tokens_and_sums_over_workers():
    logs, right, total = [], 0, 0
    for seed in (1, 2):
        logits, target = random_batch(seed, scale=0.1)
        target[0, :2] = 4
        logits[0, :2, 4] = 3.0
        logs.append(
            build(report_accuracy=True, drop_worst_ratio=0.5)(
                GivenLogits(logits), batch(target), update_num=1
            )[2]
        )
        total += int(target.ne(PAD).sum())
        right += int((logits.argmax(-1).eq(target) & target.ne(PAD)).sum())
    nll = sum(log["nll_loss"].item() for log in logs) / sum(log["sample_size"] for log in logs)
    summed = [{key: sum(log[key] for log in logs) for key in logs[0]}]
    for outputs in (logs, summed):
        with metrics.aggregate(new_root=True) as meters:
            CRITERION_REGISTRY[CROSS_ENTROPY].reduce_metrics(outputs)
        values = meters.get_smoothed_values()
        assert values["accuracy"] == pytest.approx(100 * right / total, abs=1e-3)
        assert values["nll_loss"] == pytest.approx(nll, abs=1e-3)
        assert values["ppl"] == pytest.approx(math.exp(nll), abs=1e-2)
    assert 0 < right < total


def test_logging_of_empty_batches():
    with metrics.aggregate(new_root=True) as meters:
        CRITERION_REGISTRY[CROSS_ENTROPY].reduce_metrics([{"loss": torch.tensor(0.0), "sample_size": 0}])
    assert "loss" not in meters.get_smoothed_values()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"constraint_range": "20"}, "--constraint-range '20': expected two token ids"),
        ({"constraint_range": "4,13"}, "--constraint-range 4,13: this vocabulary has 12 tokens"),
        ({"drop_worst_ratio": 1.0}, "--drop-worst-ratio 1.0: expected a share"),
        ({"drop_best_ratio": -0.5}, "--drop-best-ratio -0.5"),
        ({"log_end": 0.0}, "--log-end 0.0"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        build(ENCOURAGING, **options)


@pytest.mark.parametrize("name", [CROSS_ENTROPY, ENCOURAGING])
def test_published_flags(name):
    flags = ["--criterion", name, "--label-smoothing=0.1", "--drop-worst-ratio=0.2", "--reg-alpha=0.5"]
    flags += ["--drop-worst-after=2500", "--use-rdrop", "--ignore-prefix-size=1", "--ignore-eos"]
    flags += ["--report-accuracy", "--sentence-avg", "--sample-patch-num=100", "--constraint-range=20,50"]
    more = ["--log-end=0.6", "--drop-best-ratio=0.1", "--drop-best-after=7"] if name == ENCOURAGING else []
    argv = ["somewhere", "--task", "language_modeling", "--arch", "transformer_lm", *flags, *more]
    lr = ["--lr-scheduler=fixed"]
    cfg = convert_namespace_to_omegaconf(parse_args_and_arch(get_training_parser(), argv + lr)).criterion
    criterion = CRITERION_REGISTRY[name].build_criterion(cfg, task())
    assert (criterion.epsilon, criterion.reg_alpha, criterion.use_rdrop) == (0.1, 0.5, True)
    assert (criterion.ignore_prefix_size, criterion.ignored_token) == (1, EOS)
    assert (criterion.report_accuracy, criterion.sentence_avg) == (True, True)
    assert (criterion.token_range.start, criterion.token_range.end, cfg.sample_patch_num) == (20, 50, 100)
    assert criterion.drops == [Drop(0.2, 2500, False), Drop(0.1, 7, True)][: len(criterion.drops)]
    if name == ENCOURAGING:
        assert (criterion.log_end, len(criterion.drops)) == (0.6, 2)
