"""Self-critical training: the original's numbers, and the gradient against that of the exact expected reward."""

import json
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from task_builders import Run, batch_of, picture, rows_run

from ofa_fairseq.criterions.label_smoothed import supervised_positions, supervised_tokens, token_losses
from ofa_fairseq.criterions.scst import Sample, Samples, ScstRewardCriterion, leave_one_out, teacher_forced
from ofa_fairseq.metrics.cider import CiderD
from ofa_fairseq.metrics.rewards import CiderReward, frequencies_with_ends, with_end

REFERENCE = json.loads((Path(__file__).parents[1] / "reference" / "scst.json").read_text())
BOS, PAD, EOS = 0, 1, 2
WORDS = ("yes", "no")
# All texts of one to three words: what a trie of answers allows, and nothing else.
ANSWERS = [" ".join(words) for n in (1, 2, 3) for words in product(WORDS, repeat=n)]


# -- the original's numbers --------------------------------------------------------------------------------


def test_rewards_and_advantages_are_the_originals() -> None:
    reward = CiderReward(None, lambda: REFERENCE["train_references"])
    samples = REFERENCE["samples_per_picture"]
    repeated = [texts for texts in REFERENCE["references"] for _ in range(samples)]
    found = reward([(text, True) for text in REFERENCE["hypotheses"]], repeated)
    np.testing.assert_allclose(found, np.ravel(REFERENCE["cider"]), rtol=1e-6)
    by_picture = found.reshape(-1, samples)
    advantages = by_picture - leave_one_out(by_picture)
    np.testing.assert_allclose(advantages.ravel(), np.ravel(REFERENCE["advantage"]), rtol=1e-6, atol=1e-9)


def test_loss_and_gradient_are_the_originals() -> None:
    case = REFERENCE["loss"]
    values = np.random.RandomState(case["logits_seed"]).standard_normal(case["logits_shape"])
    logits = torch.from_numpy(values.astype(np.float32)).requires_grad_()
    target = torch.tensor(case["target"])
    sample = {"target": target, "conf": torch.tensor(case["reward"])}
    positions = supervised_positions(target, PAD)
    tokens = supervised_tokens(logits.flatten(0, 1)[positions], sample, positions, PAD)
    loss = token_losses(tokens.logits, tokens.target, weight=tokens.weight).loss.sum()
    loss.backward()
    assert loss.item() == pytest.approx(case["loss"], rel=1e-6)
    assert len(tokens.target) == case["ntokens"]
    assert logits.grad is not None
    assert logits.grad.abs().sum().item() == pytest.approx(case["grad_sum_abs"], rel=1e-5)
    np.testing.assert_allclose(logits.grad[0, 0], case["grad_first"], rtol=1e-4, atol=1e-7)


def test_an_output_that_was_cut_off_has_no_end_for_the_reward() -> None:
    references = [["a dog runs", "the dog"]] * 2
    reward = CiderReward(None, lambda: [["a cat"], ["a dog runs", "the dog"], ["two birds"]])
    ended, cut = reward([("a dog", True), ("a dog", False)], references)
    cider = CiderD(frequencies_with_ends([["a cat"], ["a dog runs", "the dog"], ["two birds"]]))
    ends = [list(map(with_end, texts)) for texts in references]
    assert [ended, cut] == cider.score(["a dog <eos>", "a dog"], ends).tolist()
    assert ended > cut


# -- rows for the decoder ----------------------------------------------------------------------------------


def test_prompts_and_forced_ends_are_not_learnt() -> None:
    def outputs(*rows: tuple[list[int], bool]) -> list[Sample]:
        return [Sample(torch.tensor(tokens), ended) for tokens, ended in rows]

    samples = [
        outputs(([5, 6, EOS], True), ([5, EOS], False)),
        outputs(([7, EOS], True), ([8, 9, EOS], True)),
    ]
    prompts = torch.tensor([[20, 21], [22, PAD]])
    rows = teacher_forced(samples, prompts, BOS, PAD)
    assert rows.prev_output.tolist() == [
        [BOS, 20, 21, 5, 6],
        [BOS, 20, 21, 5, PAD],
        [BOS, 22, 7, PAD, PAD],
        [BOS, 22, 8, 9, PAD],
    ]
    assert rows.target.tolist() == [
        [PAD, PAD, 5, 6, EOS],
        [PAD, PAD, 5, PAD, PAD],
        [PAD, 7, EOS, PAD, PAD],
        [PAD, 8, 9, EOS, PAD],
    ]


# -- the gradient ------------------------------------------------------------------------------------------


def reward_of(outputs: Sequence[tuple[str, bool]], references: Any) -> np.ndarray:
    """Something that differs for each of the answers, and has no pattern."""
    assert all(ended for _, ended in outputs)
    return np.array([np.cos(3.0 * ANSWERS.index(text) ** 2) for text, _ in outputs])


@pytest.fixture
def answering(tmp_path: Path, sentencepiece_dir: Path) -> Run:
    """A task with 14 possible outputs, one row."""
    answers = tmp_path / "answers.txt"
    answers.write_text("\n".join(ANSWERS))
    flags = ("--instruction", "[image:photo] what is it? -> [text:answer]", "--columns", "id,photo,answer")
    flags += ("--answers", str(answers), "--scst", "--scst-args", '{"beam": 2, "sampling": true}')
    flags += ("--criterion", "scst_reward_criterion", "--scst-reward", "accuracy")
    return rows_run("instruct", tmp_path, [["1", picture(), "yes no"]], sentencepiece_dir, *flags)


def criterion_of(run: Run, baseline: str = "others") -> ScstRewardCriterion:
    run.cfg.criterion.scst_baseline = baseline
    criterion = run.task.build_criterion(run.cfg.criterion)
    assert isinstance(criterion, ScstRewardCriterion)
    criterion.reward = reward_of
    return criterion


class Enumerated:
    """Every output of the model for the batch's one row, with its log-probability (one with a graph)."""

    def __init__(self, run: Run, model: Any, batch: dict[str, Any]) -> None:
        self.samples = [Sample(torch.tensor([*tokens, EOS]), True) for tokens in run.task.answer_ids]
        rows = teacher_forced([self.samples], None, BOS, PAD)
        net_input = {
            key: value.repeat_interleave(len(ANSWERS), 0) for key, value in batch["net_input"].items()
        }
        logits = model(**net_input | {"prev_output_tokens": rows.prev_output})[0]
        allowed = torch.zeros_like(logits, dtype=torch.bool)
        sequences = [sample.tokens.tolist() for sample in self.samples]
        for row, step in product(range(len(sequences)), range(logits.size(1))):
            prefix = sequences[row][:step]
            follow = [s[step] for s in sequences if len(s) > step and s[:step] == prefix]
            allowed[row, step, follow or [EOS]] = True
        log_probs = logits.masked_fill(~allowed, -torch.inf).log_softmax(-1)
        picked = log_probs.gather(-1, rows.target.masked_fill(rows.target.eq(PAD), EOS)[..., None])[..., 0]
        self.log_probs = picked.masked_fill(rows.target.eq(PAD), 0.0).sum(dim=1)

    def expected_reward(self) -> torch.Tensor:
        rewards = torch.from_numpy(reward_of([(text, True) for text in ANSWERS], None))
        return (self.log_probs.exp() * rewards).sum()


def flat_gradient(model: Any) -> torch.Tensor:
    gradient = torch.cat(
        [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in model.parameters()]
    )
    model.zero_grad()
    return gradient


@pytest.fixture
def policy(answering: Run) -> tuple[Any, dict[str, Any], Enumerated, torch.Tensor]:
    """A model in training mode, its batch, its outputs, and the gradient of the expected reward."""
    torch.manual_seed(3)
    model = answering.task.build_model(answering.cfg.model).double().train()
    batch = batch_of(answering.task.dataset("train"))
    batch["net_input"]["patch_images"] = batch["net_input"]["patch_images"].double()
    everything = Enumerated(answering, model, batch)
    assert everything.log_probs.exp().sum().item() == pytest.approx(1.0)
    everything.expected_reward().backward()
    return model, batch, everything, flat_gradient(model)


def gradient_for(
    criterion: ScstRewardCriterion,
    model: Any,
    batch: dict[str, Any],
    samples: list[Sample],
    monkeypatch: pytest.MonkeyPatch,
) -> torch.Tensor:
    """The criterion's gradient when these are the samples; a search for a baseline is left as it is."""
    search = criterion.sample

    def given(model: Any, sample: Any, options: Any) -> Samples:
        found = search(model, sample, options)
        greedy = "sampling" not in options
        return found if greedy else Samples([samples], np.ones((1, len(samples)), bool), found.space)

    with monkeypatch.context() as patch:
        patch.setattr(criterion, "sample", given)
        criterion(model, batch)[0].backward()
    return flat_gradient(model)


def test_all_outputs_by_their_probability_give_the_gradient_with_the_greedy_baseline(
    answering: Run, policy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batch, everything, exact = policy
    criterion = criterion_of(answering, "greedy")
    expected = sum(
        p.item() * gradient_for(criterion, model, batch, [sample], monkeypatch)
        for p, sample in zip(everything.log_probs.exp(), everything.samples)
    )
    assert exact.abs().max() > 1e-3
    torch.testing.assert_close(-expected, exact, rtol=1e-5, atol=1e-5 * exact.abs().max().item())


def test_all_pairs_by_their_probability_give_the_gradient_with_the_other_samples_baseline(
    answering: Run, policy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batch, everything, exact = policy
    criterion = criterion_of(answering)
    outputs = list(zip(everything.log_probs.exp().tolist(), everything.samples))
    expected = sum(
        p * q * gradient_for(criterion, model, batch, [first, second], monkeypatch)
        for (p, first), (q, second) in product(outputs, outputs)
    )
    torch.testing.assert_close(-expected / 2, exact, rtol=1e-5, atol=1e-5 * exact.abs().max().item())


@pytest.mark.parametrize("baseline", ["others", "greedy"])
def test_drawn_samples_give_the_gradient_in_the_mean(answering: Run, policy: Any, baseline: str) -> None:
    """3,200 samples in 80 batches: along 20 random directions, within 4.5 standard errors."""
    model, batch, _, exact = policy
    criterion = criterion_of(answering, baseline)
    criterion.num_samples = 40
    answering.task.cfg.scst_args = '{"beam": 40, "sampling": true}'
    torch.manual_seed(11)
    directions = torch.randn(20, len(exact), dtype=exact.dtype)
    seen = []
    for _ in range(80):
        criterion(model, batch)[0].backward()
        seen.append(directions @ flat_gradient(model) / -40)
    estimates = torch.stack(seen)
    error = estimates.std(dim=0) / len(seen) ** 0.5
    assert (error < (directions @ exact).abs().max() / 5).all(), "the estimate has to be sharp enough to fail"
    assert ((estimates.mean(dim=0) - directions @ exact).abs() < 4.5 * error).all()
