import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from clip_builders import small_clip
from PIL import Image
from task_builders import Run, batch_of, caption_run, rows_run, save_checkpoint, task_run

from ofa_fairseq.data.images import encode_image
from ofa_fairseq.drawing.picture_scorers import CaptionLikelihood, ClipScorer, picture_scorer

CLIP_MEAN = [0.48145466, 0.4578275, 0.40821073]  # as published with CLIP
CLIP_STD = [0.26862954, 0.26130258, 0.27577711]
TEXTS = [
    "a red ball",
    "two dogs run on the grass near a big red ball",
    "a dog",
    "a red ball",
    "a man on a horse",
]


def noise(count: int = len(TEXTS), size: tuple[int, int] = (32, 32)) -> list[Image.Image]:
    """Different pictures, the same ones in every call."""
    rng = np.random.default_rng(3)
    return [Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), np.uint8)) for _ in range(count)]


# CLIP


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A small model with random weights, and the file of them."""
    folder = tmp_path_factory.mktemp("clip")
    return small_clip(folder), folder / "weights.pt"


@pytest.fixture(scope="module")
def clip_model(clip: tuple[Any, Path]) -> Any:
    return clip[0]


@pytest.fixture(scope="module")
def clip_weights(clip: tuple[Any, Path]) -> Path:
    return clip[1]


@pytest.fixture(scope="module")
def open_clip(clip: tuple[Any, Path]) -> Any:
    """The package, once the small model is known to it."""
    return pytest.importorskip("open_clip")


def cosines(open_clip: Any, model: Any, pictures: Sequence[Image.Image], texts: Sequence[str]) -> np.ndarray:
    """Of pictures of 32 x 32 pixels, with CLIP's own preparation of them written out."""
    pixels = np.stack([np.asarray(picture, np.float32) for picture in pictures]) / 255
    normalised = (pixels - np.float32(CLIP_MEAN)) / np.float32(CLIP_STD)
    with torch.no_grad():
        a = model.encode_image(torch.tensor(normalised).permute(0, 3, 1, 2)).numpy()
        b = model.encode_text(open_clip.tokenize(list(texts))).numpy()
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


@pytest.mark.parametrize("batch_size", [2, 64])
def test_clip_scores_are_cosines_of_embeddings(
    batch_size: int, open_clip: Any, clip_model: Any, clip_weights: Path
) -> None:
    scores = ClipScorer(str(clip_weights), "small", batch_size=batch_size)(noise(), TEXTS)
    assert scores.dtype == np.float64
    np.testing.assert_allclose(scores, cosines(open_clip, clip_model, noise(), TEXTS), atol=1e-6)
    assert len(set(scores.round(4))) == len(TEXTS)


def test_clip_scores_in_mixed_precision_are_the_same(clip_weights: Path) -> None:
    scorer = ClipScorer(str(clip_weights), "small", "cpu")
    with torch.autocast("cpu", torch.bfloat16):
        mixed = scorer(noise(), TEXTS)
    np.testing.assert_array_equal(mixed, scorer(noise(), TEXTS))


def test_pictures_are_compared_with_pictures(clip_weights: Path) -> None:
    scorer = ClipScorer(str(clip_weights), "small", device="cpu")
    one, other = Image.linear_gradient("L").convert("RGB"), Image.radial_gradient("L").convert("RGB")
    same, there, back = scorer([one, one, other], [one, other, one])
    assert same == pytest.approx(1, abs=1e-5)
    assert there == pytest.approx(back, abs=1e-5)
    assert there < 0.999


def test_nothing_to_score(clip_weights: Path) -> None:
    assert ClipScorer(str(clip_weights), "small")([], []).shape == (0,)


def test_long_texts_are_cut_as_clip_does(clip_weights: Path) -> None:
    words = ["dog", "cat"] * 60  # one token each, and 77 take a start and an end
    scorer = ClipScorer(str(clip_weights), "small")
    short, long, shorter = scorer(noise(1) * 3, [" ".join(words[:n]) for n in (75, 120, 74)])
    assert short == pytest.approx(long, abs=1e-6)
    assert abs(short - shorter) > 1e-4


def torchscript_of(state: dict[str, torch.Tensor]) -> Any:
    """A TorchScript module that has these weights, in half precision as OpenAI's, and does nothing."""
    root = torch.nn.Module()
    for key, value in state.items():
        *folders, name = key.split(".")
        module = root
        for folder in folders:
            if not hasattr(module, folder):
                module.add_module(folder, torch.nn.Module())
            module = getattr(module, folder)
        module.register_buffer(name, value.half())
    return torch.jit.script(root)


def test_openais_archive_is_taken_by_its_digest(
    open_clip: Any, clip_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = tmp_path / "ViT.pt"
    torchscript_of(clip_model.state_dict()).save(str(archive))
    with pytest.raises(ValueError, match=r"ViT.pt: a TorchScript archive, .*expected none: there is no such"):
        ClipScorer(str(archive), "small")
    with pytest.raises(
        ValueError, match=r"not the one that OpenAI published for ViT-B-16 .*expected 5806e77cd80f"
    ):
        ClipScorer(str(archive), "ViT-B-16")

    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    monkeypatch.setattr(open_clip, "get_pretrained_url", lambda *_: f"https://nowhere/models/{digest}/ViT.pt")
    quick = open_clip.create_model("small-quickgelu").eval()  # OpenAI's activation
    quick.load_state_dict(clip_model.state_dict())
    # OpenAI's weights are rounded to half precision.
    scores = ClipScorer(str(archive), "small")(noise(), TEXTS)
    np.testing.assert_allclose(scores, cosines(open_clip, quick, noise(), TEXTS), atol=2e-3)
    assert np.abs(scores - cosines(open_clip, clip_model, noise(), TEXTS)).max() > 4e-3


def test_code_in_a_file_of_weights_is_not_run(open_clip: Any, tmp_path: Path) -> None:
    class Harmful:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "was_run",)

    torch.save({"state_dict": Harmful()}, tmp_path / "harmful.pt")
    with pytest.raises(
        ValueError, match="harmful.pt: can't be loaded as weights of CLIP model small: Weights only"
    ):
        ClipScorer(str(tmp_path / "harmful.pt"), "small")
    assert not (tmp_path / "was_run").exists()


def test_unusable_clip_weights_and_models_are_named(clip_weights: Path, tmp_path: Path) -> None:
    def refused(weights: Path, model: str, reason: str) -> None:
        with pytest.raises((ValueError, FileNotFoundError), match=reason):
            ClipScorer(str(weights), model)

    (tmp_path / "text.pt").write_text("no weights")
    torch.save({"visual.proj": torch.zeros(3)}, tmp_path / "few.pt")
    refused(tmp_path / "text.pt", "small", "text.pt: can't be loaded as weights of CLIP model small")
    refused(
        tmp_path / "few.pt", "small", "few.pt: can't be loaded as weights of CLIP model small: .*Missing key"
    )
    refused(tmp_path / "absent.pt", "small", "absent.pt: no such file of CLIP weights")
    refused(Path("openai"), "ViT-B-16", "openai: no such file")  # a name that open_clip would download
    refused(clip_weights, "large", "open_clip has no model 'large'")
    refused(clip_weights, "hf-hub:someone/clip", "open_clip has no model 'hf-hub:someone/clip'")
    refused(clip_weights, "roberta-ViT-B-32", "the tokenizer of roberta-ViT-B-32 would be downloaded")
    refused(clip_weights, "ViT-B-16-SigLIP", "the tokenizer of ViT-B-16-SigLIP would be downloaded")


def test_a_missing_package_is_named_with_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)
    (tmp_path / "weights.pt").touch()
    with pytest.raises(
        ValueError, match=r"^open_clip can't be imported .*: pip install 'ofa_fairseq\[clip\]'$"
    ):
        ClipScorer(str(tmp_path / "weights.pt"))


# Captioning models


@pytest.fixture(scope="module")
def captioner(digits_dir: Path) -> tuple[Run, Any]:
    """A task and a model with random weights and peaked distributions."""
    run = caption_run("unused.tsv", digits_dir, "--max-tgt-length", "6")
    torch.manual_seed(1)
    model = run.model()
    with torch.no_grad():
        model.decoder.output_projection.weight.mul_(20)
    return run, model


def log_likelihood(model: Any, picture: Image.Image, text: str, folder: Path, bpe_dir: Path) -> float:
    """Mean over the tokens of a training row with this caption."""
    row = ["1", encode_image(picture), text]
    batch = batch_of(
        rows_run("caption", folder, [row], bpe_dir, "--max-tgt-length", "6").task.dataset("train")
    )
    with torch.no_grad():
        log_probs = model(**batch["net_input"])[0].log_softmax(-1)[0]
    target = batch["target"][0].tolist()
    return sum(float(log_probs[i, token]) for i, token in enumerate(target)) / len(target)


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_likelihood_is_that_of_training_rows(
    batch_size: int, captioner: tuple[Run, Any], digits_dir: Path, tmp_path: Path
) -> None:
    run, model = captioner
    pictures = noise(size=(40, 30))
    scores = CaptionLikelihood(model, run.task, batch_size)(pictures, TEXTS)
    expected = [log_likelihood(model, p, text, tmp_path, digits_dir) for p, text in zip(pictures, TEXTS)]
    np.testing.assert_allclose(scores, expected, rtol=1e-5)
    assert scores.dtype == np.float64
    assert len(set(scores.round(4))) == len(TEXTS)


def test_texts_get_the_form_of_training_captions(captioner: tuple[Run, Any]) -> None:
    run, model = captioner
    texts = ["one two three four five six", " one,  two, three. four five six seven eight!"]
    given, cleaned = CaptionLikelihood(model, run.task)(noise(1) * 2, texts)
    assert given == cleaned


def test_nothing_to_caption(captioner: tuple[Run, Any]) -> None:
    assert CaptionLikelihood(captioner[1], captioner[0].task)([], []).shape == (0,)


def test_a_checkpoint_brings_model_and_options(captioner: tuple[Run, Any], tmp_path: Path) -> None:
    run, _ = captioner
    torch.manual_seed(2)
    saved = save_checkpoint(tmp_path / "model.pt", run)
    model = run.model()
    model.load_state_dict(saved)
    scores = picture_scorer("caption", caption_model=str(tmp_path / "model.pt"))(noise(), TEXTS)
    np.testing.assert_allclose(scores, CaptionLikelihood(model, run.task)(noise(), TEXTS), rtol=1e-6)


def test_another_task_can_not_caption(digits_dir: Path) -> None:
    run = task_run("snli_ve", "unused.tsv", digits_dir)
    with pytest.raises(
        ValueError, match=r"expected a captioning model \(task caption\), got one of SnliVeTask"
    ):
        CaptionLikelihood(torch.nn.Identity(), run.task)


# By name


@pytest.fixture
def own_scorers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "own_picture_scorers.py").write_text(
        "def widths(pictures, texts):\n    return [p.width + len(t) for p, t in zip(pictures, texts)]\n"
        "def mean(pictures, texts):\n    return 1.0\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    return "own_picture_scorers"


def test_scorers_of_ones_own(own_scorers: str) -> None:
    assert picture_scorer(f"{own_scorers}:widths")(noise(2), ["a", "abc"]).tolist() == [33, 35]
    with pytest.raises(
        ValueError, match="picture scorer 'own_picture_scorers:mean': expected one score for each of 2"
    ):
        picture_scorer(f"{own_scorers}:mean")(noise(2), ["a", "abc"])
    with pytest.raises(
        ValueError, match="picture scorer 'own_picture_scorers:other': .* has no function other"
    ):
        picture_scorer(f"{own_scorers}:other")


def test_clip_by_name(clip_weights: Path) -> None:
    named = picture_scorer("clip", clip_weights=str(clip_weights), clip_model="small")
    np.testing.assert_array_equal(
        named(noise(), TEXTS), ClipScorer(str(clip_weights), "small")(noise(), TEXTS)
    )


def test_what_a_scorer_lacks_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="scorer clip needs a file of CLIP weights"):
        picture_scorer("clip")
    with pytest.raises(ValueError, match="scorer caption needs a captioning checkpoint"):
        picture_scorer("caption")
    with pytest.raises(
        ValueError, match="unknown picture scorer 'beauty': expected clip, caption or package"
    ):
        picture_scorer("beauty")
    with pytest.raises(OSError, match=r"absent.pt"):
        picture_scorer("caption", caption_model=str(tmp_path / "absent.pt"))


def test_a_text_for_each_picture(captioner: tuple[Run, Any], clip_weights: Path) -> None:
    for scorer in (
        CaptionLikelihood(captioner[1], captioner[0].task),
        ClipScorer(str(clip_weights), "small"),
    ):
        with pytest.raises(ValueError, match="expected a text for each picture, got 2 pictures, 1 texts"):
            scorer(noise(2), ["a dog"])
