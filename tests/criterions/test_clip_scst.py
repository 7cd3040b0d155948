"""Self-critical training of drawings: pictures are what is rewarded, and they get better."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fairseq import criterions
from image_tokenizers import save_small_tokenizer
from task_builders import batch_of, rows_run, task_run

RANKING = f"{__name__}:lighter_left"


def lighter_left(pictures: Any, texts: Any) -> list[float]:
    """How much lighter the left half is than the right; the other way round for the text "right"."""
    halves = [
        np.asarray(picture).astype(float).reshape(16, 2, 8, 3).mean(axis=(0, 2, 3)) for picture in pictures
    ]
    values = [left - right for left, right in halves]
    return [-value if text == "right" else value for value, text in zip(values, texts)]


def training(folder: Path, bpe_dir: Path, *flags: str) -> tuple[Any, Any, Any, Any]:
    """Task, model, criterion and a batch of two captions."""
    tokenizer_flags = save_small_tokenizer(folder)
    run = rows_run(
        "image_gen",
        folder,
        [("0", "left"), ("1", "right")],
        bpe_dir,
        *("--code-image-size", "16", "--scst", "--criterion", "clip_scst_reward_criterion"),
        *tokenizer_flags,
        *flags,
        split="valid",
    )
    torch.manual_seed(0)
    criterion = criterions.build_criterion(run.cfg.criterion, run.task)
    return run.task, run.model(), criterion, batch_of(run.task.dataset("valid"))


def test_the_reward_is_of_the_pictures(tmp_path: Path, sentencepiece_dir: Path) -> None:
    task, model, criterion, batch = training(
        tmp_path, sentencepiece_dir, "--rank-by", RANKING, "--scst-args", '{"beam": 4, "temperature": 5.0}'
    )
    torch.manual_seed(1)
    _, sample_size, logged = criterion(model, batch)
    torch.manual_seed(1)
    generator = task.sampler(model, {"beam": 4, "temperature": 5.0})
    rows = task.inference_step(generator, [model], batch)
    scores = [
        lighter_left(task.outputs([h["tokens"] for h in row]), [text] * 4)
        for row, text in zip(rows, ("left", "right"))
    ]
    assert logged["reward"] == pytest.approx(2.5 * np.sum(scores), abs=1e-3)
    assert logged["nsentences"] == 8
    # The end is no choice of the model's.
    assert sample_size == logged["ntokens"] == 8 * 4
    assert logged["sample_length"] == 8 * 4


def test_drawings_learn_what_is_rewarded(tmp_path: Path, sentencepiece_dir: Path) -> None:
    _, model, criterion, batch = training(
        tmp_path, sentencepiece_dir, "--rank-by", RANKING, "--scst-args", '{"beam": 8}'
    )
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    model.train()
    rewards = []
    for update in range(60):
        loss, sample_size, logged = criterion(model, batch, update)
        optimizer.zero_grad()
        (loss / sample_size).backward()
        optimizer.step()
        rewards.append(logged["reward"] / logged["nsentences"])
    assert np.mean(rewards[-5:]) > np.mean(rewards[:5]) + 0.05


def test_without_a_ranking_there_is_no_reward(tmp_path: Path, sentencepiece_dir: Path) -> None:
    with pytest.raises(ValueError, match="needs a ranking of drawings: give --clip-model-path"):
        training(tmp_path, sentencepiece_dir)


def test_it_is_for_drawing(sentencepiece_dir: Path) -> None:
    run = task_run("caption", "a,b", sentencepiece_dir, "--scst", "--criterion", "clip_scst_reward_criterion")
    with pytest.raises(ValueError, match="clip_scst_reward_criterion is for the task image_gen"):
        criterions.build_criterion(run.cfg.criterion, run.task)
