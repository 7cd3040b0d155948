"""FID, Inception Score and CLIP similarity of the command, against computations by hand on one picture at a time."""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from clip_builders import small_clip
from PIL import Image

from ofa_fairseq.data.images import encode_image
from ofa_fairseq.drawing.drawn_pictures import DrawnPicture, write_drawn_pictures
from ofa_fairseq.drawing.picture_scorers import ClipScorer
from ofa_fairseq.prepare import picture_metrics

CAPTIONS = ["a red dog", "a large red seven", "two cats"]


def run(*flags: str | Path) -> None:
    parser = argparse.ArgumentParser()
    picture_metrics.add_arguments(parser)
    picture_metrics.run(parser.parse_args(list(map(str, flags))))


def result(out: str, name: str) -> float:
    match = re.search(rf"^{name} +(\S+)", out, re.MULTILINE)
    assert match, out
    return float(match[1])


def pictures(count: int, seed: int, sizes: Sequence[tuple[int, int]]) -> list[Image.Image]:
    """Noise that is finer or coarser, of several colours."""
    rng = np.random.default_rng(seed)
    found = []
    for i in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (2 + 3 * i, 2 + i, 3), np.uint8))
        found.append(coarse.resize(sizes[i % len(sizes)], Image.Resampling.NEAREST))
    return found


DRAWN = pictures(6, 1, [(32, 32)])
REAL = pictures(4, 2, [(32, 32), (40, 24)])


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two samples for each caption in drawn.tsv, and real.tsv, which has rows that can't be read."""
    folder = tmp_path_factory.mktemp("drawn")
    drawn = []
    for i, picture in enumerate(DRAWN):
        caption, rank = divmod(i, 2)
        picture.save(folder / f"{i}.png")
        drawn.append(DrawnPicture(str(caption), CAPTIONS[caption], rank, 0.0, folder / f"{i}.png"))
    write_drawn_pictures(folder / "drawn.tsv", drawn)
    lines = [f"{i}\t{encode_image(picture)}" for i, picture in enumerate(REAL)]
    (folder / "real.tsv").write_text("\n".join([lines[0], "9\tabsent.png", "7", *lines[1:]]))
    return folder


# Inception


@pytest.fixture(scope="module")
def inception(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Inception with random weights, as large as usual in its features, and the file of its weights."""
    module = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    pytest.importorskip("torchmetrics.image")
    cls = module.FeatureExtractorInceptionV3
    with patch.object(module, "load_state_dict_from_url"), patch.object(cls, "load_state_dict"):
        network = cls("inception-v3-compat", ["192", "logits_unbiased"])
    generator = torch.Generator().manual_seed(0)
    for layer in network.modules():
        if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear):
            torch.nn.init.kaiming_normal_(layer.weight, generator=generator)
    with torch.no_grad():
        network.fc.weight.mul_(20)  # classes that differ between pictures
        network.fc.bias.normal_(std=5, generator=generator)  # which the score leaves out
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save(network.state_dict(), path)
    return network, path


def features(network: Any, shown: Sequence[Image.Image]) -> tuple[np.ndarray, np.ndarray]:
    """Pooled and logits."""
    rows = [network(torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None]) for picture in shown]
    return tuple(torch.cat(column).double().numpy() for column in zip(*rows))  # type: ignore[return-value]


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Of two sets of features. With centred rows A and B and S = A'A, T = B'B the trace of (S T)^1/2 is the sum of
    the singular values of A B'."""
    centred = [(x - x.mean(0)) / np.sqrt(len(x) - 1) for x in (a, b)]
    overlap = np.linalg.svd(centred[0] @ centred[1].T, compute_uv=False).sum()
    return ((a.mean(0) - b.mean(0)) ** 2).sum() + sum((c**2).sum() for c in centred) - 2 * overlap


def test_fid_and_inception_score_of_local_weights(
    files: Path, inception: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    network, weights = inception
    monkeypatch.setattr(picture_metrics, "POOLED", 192)  # with 2048 features FID takes ten seconds
    monkeypatch.setattr(picture_metrics, "BATCH_SIZE", 3)
    run("--pictures", files / "drawn.tsv", "--ranks", "all", "--inception-weights", weights,
        "--real", files / "real.tsv", "--column", "1")  # fmt: skip
    out = capsys.readouterr().out

    pooled, logits = features(network, DRAWN)
    log_p = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    marginal = np.exp(log_p).mean(0)
    score = np.exp((np.exp(log_p) * (log_p - np.log(marginal))).sum(1).mean())
    assert score > 1.05  # 1 is that of pictures that are all alike
    assert result(out, "Inception Score") == pytest.approx(score, abs=2e-4)
    distance = frechet_distance(pooled, features(network, REAL)[0])
    assert distance > 0.1
    assert result(out, "FID") == pytest.approx(distance, rel=1e-3)
    assert "(against 4 real pictures)" in out
    assert "CLIP" not in out


def test_code_in_a_file_of_weights_is_not_run(files: Path, inception: Any, tmp_path: Path) -> None:
    class Harmful:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "was_run",)

    torch.save(Harmful(), tmp_path / "harmful.pth")
    with pytest.raises(
        ValueError, match=r"harmful.pth: can't be loaded as weights of torch-fidelity's Inception"
    ):
        run("--pictures", files / "drawn.tsv", "--inception-weights", tmp_path / "harmful.pth")
    assert not (tmp_path / "was_run").exists()


def test_unusable_inception_weights_are_named(files: Path, inception: Any, tmp_path: Path) -> None:
    torch.save({"fc.weight": torch.zeros(3)}, tmp_path / "few.pth")
    torch.save(3, tmp_path / "three.pth")
    (tmp_path / "text.pth").write_text("no weights")
    for name in ("few.pth", "three.pth", "text.pth"):
        with pytest.raises(
            ValueError, match=f"{name}: can't be loaded as weights of torch-fidelity's Inception: "
        ):
            run("--pictures", files / "drawn.tsv", "--inception-weights", tmp_path / name)
    with pytest.raises(FileNotFoundError, match="absent.pth: no such file"):
        run("--pictures", files / "drawn.tsv", "--inception-weights", tmp_path / "absent.pth")


@pytest.mark.parametrize("package", ["torch_fidelity", "torchmetrics"])
def test_a_missing_package_is_named_with_its_extra(
    package: str, files: Path, inception: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        ValueError, match=rf"^{package}.* can't be imported .*: pip install 'ofa_fairseq\[metrics\]'$"
    ):
        run("--pictures", files / "drawn.tsv", "--inception-weights", inception[1])


# CLIP


def test_clip_similarity_is_the_mean_over_the_best_or_all_samples(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    small_clip(tmp_path)
    flags = "--clip-weights", tmp_path / "weights.pt", "--clip-model", "small"
    monkeypatch.setattr(picture_metrics, "BATCH_SIZE", 2)
    scores = ClipScorer(str(tmp_path / "weights.pt"), "small")(DRAWN, [c for c in CAPTIONS for _ in range(2)])
    for ranks, chosen in (("first", scores[::2]), ("all", scores)):
        run("--pictures", files / "drawn.tsv", "--ranks", ranks, *flags)
        out = capsys.readouterr().out
        assert result(out, "CLIP similarity") == pytest.approx(chosen.mean(), abs=1e-4)
        assert result(out, "pictures") == len(chosen)
        assert "Inception" not in out
    assert abs(scores[::2].mean() - scores.mean()) > 1e-3


# Options


def test_nothing_to_measure_is_an_error(files: Path) -> None:
    with pytest.raises(
        ValueError, match="nothing to measure: give --inception-weights, --clip-weights or both"
    ):
        run("--pictures", files / "drawn.tsv")
    with pytest.raises(ValueError, match="--real is for FID: give --inception-weights"):
        run("--pictures", files / "drawn.tsv", "--real", files / "real.tsv", "--clip-weights", "w.pt")


def test_too_few_pictures_are_an_error(files: Path, inception: Any, tmp_path: Path) -> None:
    write_drawn_pictures(tmp_path / "one.tsv", [DrawnPicture("1", "a dog", 0, 0.0, files / "0.png")])
    with pytest.raises(ValueError, match="one.tsv: expected at least two pictures of rank 0, found 1"):
        run("--pictures", tmp_path / "one.tsv", "--inception-weights", inception[1])
    (tmp_path / "real.tsv").write_text(f"{encode_image(REAL[0])}\nabsent.png\n")
    with pytest.raises(ValueError, match="real.tsv: FID needs at least two real pictures, 1 can be read"):
        run("--pictures", files / "drawn.tsv", "--inception-weights", inception[1],
            "--real", tmp_path / "real.tsv", "--column", "0")  # fmt: skip
