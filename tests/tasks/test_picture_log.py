"""The grid of validation pictures: each stands over what was said of it."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from task_builders import batch_of, dataset_of, picture

from ofa_fairseq.tasks import picture_log
from ofa_fairseq.tasks.picture_log import PictureLog

RED, GREEN = (250, 0, 0), (0, 250, 0)


@pytest.mark.parametrize("colours", [[RED, GREEN], [RED, RED, GREEN, GREEN]], ids=["each its own", "shared"])
def test_texts_stand_under_their_pictures(
    colours: list[tuple[int, int, int]],
    tmp_path: Path,
    sentencepiece_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = [[str(i), picture(colour), "what?", "red", ""] for i, colour in enumerate(colours)]
    dataset = dataset_of("vqa", tmp_path, rows, sentencepiece_dir, split="valid")
    batch, task = batch_of(dataset), dataset.build.task
    assert ("patch_rows" in batch["net_input"]) == (len(colours) > 2)
    shown: list[tuple[list, list]] = []

    def sheet(pictures: list, texts: list, **_: int) -> np.ndarray:
        shown.append((pictures, texts))
        return np.zeros((8, 8, 3), np.uint8)

    monkeypatch.setattr(picture_log, "contact_sheet", sheet)
    log = PictureLog(
        SimpleNamespace(
            common=SimpleNamespace(tensorboard_logdir=str(tmp_path / "log")),
            distributed_training=SimpleNamespace(distributed_rank=0),
        )
    )
    log.begin()
    texts = ["red" if colour == RED else "green" for colour in colours]
    log.add(task._shown(batch, log.wanted), texts)
    log.write(1)
    ((pictures, texts),) = shown
    assert len(pictures) == len(colours)
    for image, text in zip(pictures, texts, strict=True):
        red, green, _ = np.asarray(image).mean(axis=(0, 1))
        assert (red > green) == (text == "red")
