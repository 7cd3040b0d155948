"""Self-critical updates of whole tasks: what they leave alone, what teaches nothing, and that they raise the reward."""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fairseq import optim
from task_builders import Run, bad_rows, batch_of, picture, rows_run

from ofa_fairseq.criterions.scst import Sample, ScstRewardCriterion

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
    """Random weights, with distributions so peaked that outputs differ."""
    torch.manual_seed(1)
    model = run.task.build_model(run.cfg.model)
    with torch.no_grad():
        model.decoder.output_projection.weight.mul_(5)
    return model


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
    assert not torch.equal(model.encoder.embed_images.conv1.weight, weights)  # convolutions train, as released


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
    told = [r.message for r in caplog.records if r.levelno == logging.WARNING]
    assert len(told) == 1
    assert "learns nothing: in 1 batches" in told[0]
    log = criterion(model, batch)[2]
    assert log["collapsed"] == log["nsentences"] == 3 * len(ROWS)
    for _ in range(8):  # a warning for each would drown the log
        criterion(model, batch)
    assert ["in 10 batches" in r.message for r in caplog.records if r.levelno == logging.WARNING] == [False, True]


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


def test_several_captions_are_for_self_critical_training_only(tmp_path: Path, sentencepiece_dir: Path) -> None:
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


def questions(folder: Path, bpe_dir: Path) -> Run:
    rows = [["1", picture(), "what is it?", "0.6|!+yes&&1.0|!+no"], ["2", picture(), "and this one?", "yes"]]
    flags = ("--ans2label-dict", '{"yes": 0, "no": 1, "the image": 2}', "--scst-reward", "vqa")
    return scst_run(folder, bpe_dir, *flags, "--freeze-resnet", rows=rows, task="vqa")


def premises(folder: Path, bpe_dir: Path) -> Run:
    rows = [["1", picture(), "a dog runs", "", "neutral"], ["2", picture(), "what?", "", "entailment"]]
    flags = ("--prompt-type", "prev_output", "--scst-reward", "accuracy", "--freeze-resnet")
    return scst_run(folder, bpe_dir, *flags, rows=rows, task="snli_ve", samples='{"beam": 3, "max_len_b": 30}')


def captions(folder: Path, bpe_dir: Path) -> Run:
    return scst_run(folder, bpe_dir, "--freeze-resnet", "--constraint-range", "300,340")


@pytest.mark.parametrize("make", [captions, questions, premises])
def test_the_loss_has_the_probabilities_of_the_search(make: Any, tmp_path: Path, sentencepiece_dir: Path) -> None:
    """Prompts, answer sets and ranges mean the same to the decoder that samples and to the one that learns."""
    run = make(tmp_path, sentencepiece_dir)
    criterion, model, batch = criterion_of(run), model_of(run).train(), batch_of(run.task.dataset("train"))
    prizes = different_rewards(range(3 * len(batch["references"])), None).reshape(-1, 3)
    found = run.task.inference_step(run.task.sampler(model), [model.eval()], batch)
    expected = 0.0
    for of_row, hypotheses in zip(prizes, found):
        for prize, hypothesis in zip(of_row, hypotheses):
            chosen = hypothesis["positional_scores"]
            if run.task.cfg._name == "caption" and len(chosen) == 7:
                chosen = chosen[:-1]  # this end was not the model's choice
            expected -= (prize - (of_row.sum() - prize) / 2) * chosen.sum().item()
    criterion.reward = different_rewards
    loss, _, log = criterion(model.train(), batch)
    assert loss.item() == pytest.approx(expected, rel=1e-4)
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
def liking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a reward that somebody wrote: how often one word is said."""
    (tmp_path / "toy_reward.py").write_text(
        "def the(outputs, references):\n    return [text.split().count('the') for text in outputs]\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "toy_reward:the"


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
    logs = [update(run, criterion, model, optimizer) for _ in range(60)]
    means = [log["reward"] / log["nsentences"] for log in logs]
    assert np.mean(means[:10]) < 1
    assert np.mean(means[-10:]) > 4
