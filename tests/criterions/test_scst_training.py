"""Self-critical updates of whole tasks: what they leave alone, what teaches nothing, and that they raise the reward."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fairseq import optim
from task_builders import Run, bad_rows, batch_of, picture, rows_run

from ofa_fairseq.criterions.scst import SMALLEST_ADVANTAGE, Sample, ScstRewardCriterion, leave_one_out

ROWS = [
    ["1", picture((200, 30, 30)), "a dog runs&&the dog is running&&one dog"],
    ["2", picture((30, 200, 30)), "a cat"],
    ["3", picture((30, 30, 200)), "what does the image describe&&two birds"],
]
BEAM = '{"beam": 3, "max_len_b": 6}'
DRAWN = '{"beam": 3, "max_len_b": 6, "sampling": true}'


def scst_run(
    folder: Path,
    bpe_dir: Path,
    *flags: str,
    rows: Sequence[Sequence[str]] = ROWS,
    task: str = "caption",
    samples: str = BEAM,
) -> Run:
    flags = ("--criterion", "scst_reward_criterion", "--scst", "--scst-args", samples, *flags)
    return rows_run(task, folder, rows, bpe_dir, *flags)


def criterion_of(run: Run) -> ScstRewardCriterion:
    criterion = run.task.build_criterion(run.cfg.criterion)
    assert isinstance(criterion, ScstRewardCriterion)
    return criterion


def different_rewards(outputs: Sequence[Any], references: Any) -> np.ndarray:
    """Of a model with random weights CIDEr thinks nothing at all."""
    return np.cos(3.0 * np.arange(len(outputs)))


def model_of(run: Run) -> Any:
    torch.manual_seed(1)
    return run.task.build_model(run.cfg.model)


def gradient_of(criterion: Any, model: Any, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
    model.zero_grad()
    criterion(model, batch)[0].backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def buffers(model: Any) -> dict[str, torch.Tensor]:
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


def changed(model: Any, before: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, buffer in model.named_buffers() if not torch.equal(buffer, before[name])}


# -- what an update leaves alone ---------------------------------------------------------------------------


def test_validation_moves_no_running_statistics(tmp_path: Path, sentencepiece_dir: Path) -> None:
    run = scst_run(tmp_path, sentencepiece_dir)
    criterion, model, batch = criterion_of(run), model_of(run), batch_of(run.task.dataset("train"))
    before = buffers(model)
    run.task.valid_step(batch, model, criterion)
    assert not changed(model, before)
    criterion(model.train(), batch)  # whereas training does
    assert "encoder.embed_images.bn1.running_mean" in changed(model, before)


@pytest.mark.parametrize("baseline", ["others", "greedy"])
def test_training_moves_the_statistics_once(tmp_path: Path, sentencepiece_dir: Path, baseline: str) -> None:
    run = scst_run(tmp_path, sentencepiece_dir, "--scst-baseline", baseline)
    model = model_of(run).train()
    criterion_of(run)(model, batch_of(run.task.dataset("train")))
    counts = {int(b) for name, b in model.named_buffers() if name.endswith("num_batches_tracked")}
    assert counts == {1}


def test_a_frozen_stem_stays_as_it_is(tmp_path: Path, sentencepiece_dir: Path) -> None:
    run = scst_run(tmp_path, sentencepiece_dir, "--freeze-resnet", *("--optimizer", "adam", "--lr", "0.1"))
    model = model_of(run)
    criterion = criterion_of(run)
    criterion.reward = different_rewards
    before, weights = buffers(model), model.encoder.embed_images.conv1.weight.clone()
    update(run, criterion, model, optimizer_of(run, model))
    assert any("embed_images.bn1.running_mean" in name for name in before)
    assert not changed(model, before)
    assert not torch.equal(
        model.encoder.embed_images.conv1.weight, weights
    )  # convolutions train, as released


@pytest.mark.parametrize("baseline", ["others", "greedy"])
@pytest.mark.parametrize("training", [True, False])
def test_every_module_is_in_the_mode_it_was_in(
    tmp_path: Path, sentencepiece_dir: Path, training: bool, baseline: str
) -> None:
    run = scst_run(tmp_path, sentencepiece_dir, "--scst-baseline", baseline)
    criterion, model = criterion_of(run), model_of(run).train(training)
    during = []
    model.decoder.layers[0].register_forward_pre_hook(
        lambda module, _: during.append((module.training, torch.is_grad_enabled()))
    )
    criterion(model, batch_of(run.task.dataset("train")))
    assert {name for name, module in model.named_modules() if module.training != training} == set()
    assert set(during[:-1]) == {(False, False)}, "samples are drawn without dropout and gradients"
    assert during[-1] == (training, True), "the teacher-forced pass is as training has it"


@pytest.mark.parametrize("baseline", ["others", "greedy"])
def test_pictures_are_encoded_once(tmp_path: Path, sentencepiece_dir: Path, baseline: str) -> None:
    run = scst_run(tmp_path, sentencepiece_dir, "--scst-baseline", baseline)
    criterion, model = criterion_of(run), model_of(run).train()
    rows: list[int] = []
    for module in (model.encoder.embed_images, model.encoder.layers[0]):
        module.register_forward_hook(lambda _, inputs, output: rows.append(len(inputs[0])))
    criterion(model, batch_of(run.task.dataset("train")))
    assert rows == [len(ROWS)] * 2


# -- what teaches nothing ----------------------------------------------------------------------------------


def test_rows_without_references_teach_nothing(tmp_path: Path, sentencepiece_dir: Path) -> None:
    run = scst_run(tmp_path, sentencepiece_dir, "--freeze-resnet")
    criterion, model, dataset = criterion_of(run), model_of(run).train(), run.task.dataset("train")
    criterion.reward = different_rewards
    all_rows = batch_of(dataset)
    all_rows["references"][1] = []
    others = dataset.collater([dataset[0], dataset[2]])
    (_, size, log), (_, expected_size, expected_log) = (criterion(model, b) for b in (all_rows, others))
    assert size == expected_size
    assert {k: float(v) for k, v in log.items()} == pytest.approx(
        {k: float(v) for k, v in expected_log.items()}, rel=1e-4
    )
    found, expected = (gradient_of(criterion, model, batch) for batch in (all_rows, others))
    assert max(float(g.abs().max()) for g in expected.values()) > 0.1
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-4, msg=name)


def test_a_batch_without_references_has_a_gradient_of_zero(tmp_path: Path, sentencepiece_dir: Path) -> None:
    run = scst_run(tmp_path, sentencepiece_dir)
    criterion, model, batch = criterion_of(run), model_of(run).train(), batch_of(run.task.dataset("train"))
    batch["references"] = [[] for _ in ROWS]
    loss, size, _ = criterion(model, batch)
    assert (loss.item(), size) == (0.0, 0)
    assert all(not g.any() for g in gradient_of(criterion, model, batch).values())


def test_a_collapsed_batch_is_told_and_has_a_gradient_of_zero(
    tmp_path: Path, sentencepiece_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    alike = '{"beam": 3, "max_len_b": 6, "sampling": true, "sampling_topk": 1}'
    run = scst_run(tmp_path, sentencepiece_dir, samples=alike)
    criterion, model, batch = criterion_of(run), model_of(run).train(), batch_of(run.task.dataset("train"))
    gradients = gradient_of(criterion, model, batch)
    assert gradients
    assert all(not g.any() for g in gradients.values())
    for update in range(120):
        log = criterion(model, batch, update_num=update + 1)[2]
        assert log["collapsed"] == log["nsentences"] == 3 * len(ROWS)
    told = [r.message for r in caplog.records if r.levelno == logging.WARNING]
    assert ["in 10 updates" in message for message in told] == [True, False]
    assert ["in 100 updates" in message for message in told] == [False, True]


@pytest.mark.parametrize("samples", [3, 5])
def test_equal_rewards_are_a_collapse_whatever_their_value(samples: int) -> None:
    """A mean of equal numbers may differ from them by a rounding error."""
    rewards = np.random.default_rng(1).uniform(0, 10, (200, 1)).repeat(samples, axis=1)
    assert np.abs(rewards - leave_one_out(rewards)).max() < SMALLEST_ADVANTAGE


@pytest.mark.parametrize("sampling", [{}, {"sampling_topk": 5}, {"sampling_topp": 0.9}])
@pytest.mark.parametrize("baseline", ["others", "greedy"])
def test_every_way_of_sampling_works_with_every_baseline(
    tmp_path: Path, sentencepiece_dir: Path, sampling: dict[str, float], baseline: str
) -> None:
    options = json.dumps({"beam": 3, "max_len_b": 6, "sampling": True, "temperature": 0.9} | sampling)
    run = scst_run(tmp_path, sentencepiece_dir, "--scst-baseline", baseline, samples=options)
    criterion, batch = criterion_of(run), batch_of(run.task.dataset("train"))
    criterion.reward = different_rewards
    assert np.isfinite(criterion(model_of(run), batch)[0].item())


def test_fewer_answers_than_beams(tmp_path: Path, sentencepiece_dir: Path) -> None:
    """Of two answers, five beams find two."""
    run = questions(tmp_path, sentencepiece_dir, "--ans2label-dict", '{"yes": 0, "no": 1}')
    criterion, batch = criterion_of(run), batch_of(run.task.dataset("train"))
    log = criterion(model_of(run), batch)[2]
    assert log["nsentences"] == 2 * len(batch["references"])


def test_leave_one_out_counts_real_samples_only() -> None:
    real = np.array([[True, True, False], [True, False, False]])
    baseline = leave_one_out(np.array([[1.0, 3.0, 99.0], [5.0, 99.0, 99.0]]), real)
    assert baseline[real].tolist() == [3.0, 1.0, 5.0]


# -- mistakes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--scst-args", '{"beam": 1}'), 'beam": 1.*two or more.*--scst-baseline greedy'),
        (("--scst-reward", "bleurt"), "unknown metric 'bleurt': expected .*rouge_l.*package.module:function"),
        (("--scst-reward", "no_such_module:f"), "no_such_module can't be imported"),
        (
            ("--scst-reward", "rouge_l", "--scst-cider-cached-tokens", "df.json.gz"),
            "--scst-cider-cached-tokens is for the reward cider, not rouge_l",
        ),
    ],
    ids=lambda value: value[-1] if isinstance(value, tuple) else "",
)
def test_mistakes_are_explained(
    tmp_path: Path, sentencepiece_dir: Path, flags: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        criterion_of(scst_run(tmp_path, sentencepiece_dir, *flags))


def test_the_task_has_to_sample(tmp_path: Path, sentencepiece_dir: Path) -> None:
    run = rows_run("caption", tmp_path, ROWS[1:2], sentencepiece_dir, "--criterion", "scst_reward_criterion")
    with pytest.raises(ValueError, match="needs the task's --scst"):
        criterion_of(run)


# -- rows --------------------------------------------------------------------------------------------------


def test_several_captions_are_for_self_critical_training_only(
    tmp_path: Path, sentencepiece_dir: Path
) -> None:
    batch = batch_of(scst_run(tmp_path, sentencepiece_dir).task.dataset("train"))
    assert batch["references"] == [row[2].split("&&") for row in ROWS]
    assert not bad_rows(tmp_path)
    dataset = rows_run("caption", tmp_path, ROWS, sentencepiece_dir).task.dataset("train")
    assert [dataset[i] is None for i in range(len(ROWS))] == [True, False, True]
    assert all("several captions joined by &&" in reason for reason in bad_rows(tmp_path))


@pytest.mark.parametrize("reward", ["cider", "rouge_l"])
def test_a_single_reference_and_an_empty_output_are_rewarded(
    tmp_path: Path, sentencepiece_dir: Path, reward: str
) -> None:
    run = scst_run(tmp_path, sentencepiece_dir, "--scst-reward", reward)
    criterion, eos = criterion_of(run), run.task.vocabulary.eos
    texts = ["a cat", "", "a dog"]
    samples = [Sample(torch.tensor([*run.task.vocabulary.encode(text), eos]), True) for text in texts]
    rewards = criterion.rewards([samples], [["a cat"]])
    assert rewards.shape == (1, 3)
    assert rewards[0, 0] == rewards.max() > rewards[0, 2] >= 0
    assert np.isfinite(rewards).all()


def questions(folder: Path, bpe_dir: Path, *flags: str) -> Run:
    rows = [["1", picture(), "what is it?", "0.6|!+yes&&1.0|!+no"], ["2", picture(), "and this one?", "yes"]]
    flags = ("--scst-reward", "vqa", "--freeze-resnet", *flags)
    return scst_run(folder, bpe_dir, *flags, rows=rows, task="vqa", samples='{"beam": 3, "max_len_b": 12}')


def questions_with_answers(folder: Path, bpe_dir: Path) -> Run:
    return questions(folder, bpe_dir, "--ans2label-dict", '{"yes": 0, "no": 1, "the image": 2}')


def premises(folder: Path, bpe_dir: Path) -> Run:
    rows = [["1", picture(), "a dog runs", "", "neutral"], ["2", picture(), "what?", "", "entailment"]]
    flags = ("--prompt-type", "prev_output", "--scst-reward", "accuracy", "--freeze-resnet")
    return scst_run(
        folder, bpe_dir, *flags, rows=rows, task="snli_ve", samples='{"beam": 3, "max_len_b": 30}'
    )


def captions(folder: Path, bpe_dir: Path) -> Run:
    return scst_run(folder, bpe_dir, "--freeze-resnet", "--constraint-range", "300,340")


@pytest.mark.parametrize("make", [captions, questions, questions_with_answers, premises])
def test_the_loss_has_the_probabilities_of_the_search(
    make: Any, tmp_path: Path, sentencepiece_dir: Path
) -> None:
    """Prompts, answer sets and ranges mean the same to the decoder that samples and to the one that learns."""
    run = make(tmp_path, sentencepiece_dir)
    criterion, model, batch = criterion_of(run), model_of(run).train(), batch_of(run.task.dataset("train"))
    prizes = different_rewards(range(3 * len(batch["references"])), None).reshape(-1, 3)
    found = run.task.inference_step(run.task.sampler(model, run.task.scst_options()), [model.eval()], batch)
    prompts = batch.get("prefix_tokens", torch.full((len(found), 0), 1)).ne(1).sum(dim=1)
    longest = run.task.scst_options()["max_len_b"] - prompts  # an end after so many tokens is nobody's choice
    expected = 0.0
    for of_row, hypotheses, limit in zip(prizes, found, longest):
        for prize, hypothesis in zip(of_row, hypotheses):
            chosen = hypothesis["positional_scores"][:limit]
            expected -= (prize - (of_row.sum() - prize) / 2) * chosen.sum().item()
    criterion.reward = different_rewards
    loss, _, log = criterion(model.train(), batch)
    assert loss.item() == pytest.approx(expected, rel=1e-4, abs=1e-4)
    assert log["reward"] == pytest.approx(prizes.sum())


# -- training ----------------------------------------------------------------------------------------------


def optimizer_of(run: Run, model: Any) -> Any:
    return optim.build_optimizer(run.cfg.optimizer, [p for p in model.parameters() if p.requires_grad])


def update(run: Run, criterion: Any, model: Any, optimizer: Any) -> dict[str, Any]:
    """An update with all rows, as fairseq's trainer makes it; returns what is logged."""
    optimizer.zero_grad()
    batch = batch_of(run.task.dataset("train"))
    _, size, log = run.task.train_step(batch, model, criterion, optimizer, update_num=0)
    optimizer.multiply_grads(1 / size)
    optimizer.step()
    return log


@pytest.fixture
def liking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a reward that somebody wrote: how often one word is said."""
    (tmp_path / "toy_reward.py").write_text(
        "def the(outputs, references):\n    return [text.count('the') for text in outputs]\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    return "toy_reward:the"


@pytest.mark.parametrize("baseline", ["others", "greedy"])
def test_training_raises_the_reward(
    tmp_path: Path, sentencepiece_dir: Path, liking: str, baseline: str
) -> None:
    flags = ("--scst-reward", liking, "--scst-baseline", baseline, "--optimizer", "adam", "--lr", "1e-2")
    run = scst_run(tmp_path, sentencepiece_dir, *flags, samples=DRAWN)
    the = run.task.vocabulary.encode(" the")
    assert len(the) == 1
    run.task.cfg.constraint_range = run.cfg.criterion.constraint_range = f"{the[0] - 8},{the[0] + 8}"
    criterion, model = criterion_of(run), model_of(run)
    optimizer = optimizer_of(run, model)
    logs = [update(run, criterion, model, optimizer) for _ in range(20)]
    means = [log["reward"] / log["nsentences"] for log in logs]
    assert np.mean(means[:3]) < 1.5
    assert np.mean(means[-3:]) > 4
