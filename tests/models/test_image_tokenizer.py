"""The released tokenizer against numbers measured on it, and what small tokenizers must be able to do."""

import json
import sys
import types
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from reference_weights import fill
from torch import Tensor

from ofa_fairseq.models.image_tokenizer import (
    QUANTIZERS,
    ImageTokenizer,
    TokenizerConfig,
    picture_input,
    to_images,
)
from ofa_fairseq.models.quantizers import DeadCodes, FiniteScalarQuantizer, GumbelQuantizer, NearestQuantizer
from ofa_fairseq.models.vqgan import Architecture

# As published with the checkpoint, but for the settings of its training.
RELEASED_YAML = """
model:
  base_learning_rate: 4.5e-06
  target: taming.models.vqgan.GumbelVQ
  params:
    kl_weight: 1.0e-08
    embed_dim: 256
    n_embed: 8192
    monitor: val/rec_loss
    temperature_scheduler_config: {target: taming.lr_scheduler.LambdaWarmUpCosineScheduler, params: {}}
    ddconfig:
      double_z: false
      z_channels: 256
      resolution: 256
      in_channels: 3
      out_ch: 3
      ch: 128
      ch_mult: [1, 1, 2, 4]
      num_res_blocks: 2
      attn_resolutions: [32]
      dropout: 0.0
    lossconfig: {target: taming.modules.losses.vqperceptual.DummyLoss}
"""

SMALL = TokenizerConfig(
    Architecture(
        ch=8, ch_mult=(1, 2), num_res_blocks=1, z_channels=8, resolution=16, patch_size=4, norm="position"
    ),
    embed_dim=4,
    n_embed=32,
    quantizer="nearest",
)
BY_QUANTIZER = {
    "gumbel": replace(SMALL, quantizer="gumbel"),
    "nearest": SMALL,
    "fsq": replace(SMALL, quantizer="fsq", levels=(4, 4, 2), embed_dim=3),
}


def small(quantizer: str = "nearest") -> ImageTokenizer:
    torch.manual_seed(3)
    return ImageTokenizer(BY_QUANTIZER[quantizer]).eval()


def random_pictures(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(5)) * 2 - 1


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> ImageTokenizer:
    """Of the released YAML, filled as the model that the reference was measured on."""
    path = tmp_path_factory.mktemp("released") / "model.yaml"
    path.write_text(RELEASED_YAML)
    return fill(ImageTokenizer(TokenizerConfig.from_yaml(path))).eval()


@pytest.fixture(scope="module")
def reference(reference_dir: Path) -> dict[str, np.ndarray]:
    return dict(np.load(reference_dir / "vqgan_gumbel_f8.npz"))


def test_keys_and_shapes_are_the_released_ones(released: ImageTokenizer, reference_dir: Path) -> None:
    own = {key: list(value.shape) for key, value in released.state_dict().items()}
    assert own == json.loads((reference_dir / "vqgan_gumbel_f8_keys.json").read_text())
    assert (released.factor, released.num_codes) == (8, 8192)


@pytest.mark.usefixtures("no_grad")
def test_codes_equal_the_reference(released: ImageTokenizer, reference: dict[str, np.ndarray]) -> None:
    pictures = np.random.RandomState(31).uniform(-1, 1, (2, 3, 64, 64)).astype(np.float32)
    features = released.features(torch.from_numpy(pictures))
    np.testing.assert_allclose(features[:, :8], reference["prequant_first8"], atol=2e-5)
    clear = reference["logit_margin"] > 0.01
    assert clear.mean() > 0.8
    codes = released.encode(torch.from_numpy(pictures)).numpy()
    np.testing.assert_array_equal(codes[clear], reference["codes"][clear])


def test_pictures_equal_the_reference(released: ImageTokenizer, reference: dict[str, np.ndarray]) -> None:
    decoded = released.decode(torch.from_numpy(reference["decode_codes"]))
    np.testing.assert_allclose(decoded, reference["decoded"].clip(-1, 1), atol=1e-4)


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_a_saved_tokenizer_loads_as_it_was(quantizer: str, tmp_path: Path) -> None:
    tokenizer = small(quantizer)
    tokenizer.save(tmp_path / "last.ckpt", tmp_path / "model.yaml")
    loaded = ImageTokenizer.load(tmp_path / "last.ckpt", tmp_path / "model.yaml")
    pictures = random_pictures(2, 3, 32, 16)
    assert loaded.config == tokenizer.config
    assert not loaded.training
    codes = loaded.encode(pictures)
    assert codes.shape == (2, 4, 2)
    assert torch.equal(codes, tokenizer.encode(pictures))
    assert torch.equal(loaded.decode(codes), tokenizer.decode(codes))
    assert loaded.decode(codes).shape == pictures.shape


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_training_mode_does_not_change_codes(quantizer: str) -> None:
    tokenizer, pictures = small(quantizer), random_pictures(2, 3, 16, 16)
    codes = tokenizer.encode(tokenizer.decode(tokenizer.encode(pictures)))
    tokenizer.train()
    assert all(
        torch.equal(codes, tokenizer.encode(tokenizer.decode(tokenizer.encode(pictures)))) for _ in range(3)
    )


def lightning_checkpoint(path: Path, state: dict[str, Tensor], name: str = "ModelCheckpoint") -> None:
    """With the class of a callback as a key, as the published files have it."""
    module_name = "pytorch_lightning.callbacks.model_checkpoint"
    callback = type(name, (), {"__module__": module_name})
    module = types.ModuleType(module_name)
    setattr(module, name, callback)
    # pickle imports the packages above a module first
    packages = {".".join(module_name.split(".")[:i]): types.ModuleType("package") for i in (1, 2)}
    with mock.patch.dict(sys.modules, packages | {module_name: module}):
        torch.save({"callbacks": {callback: {"best": 1.0}}, "epoch": 9, "state_dict": state}, path)


def test_a_lightning_checkpoint_loads_without_its_loss(tmp_path: Path) -> None:
    tokenizer = small()
    tokenizer.config.to_yaml(tmp_path / "model.yaml")
    state = tokenizer.state_dict() | {"loss.discriminator.main.0.weight": torch.zeros(3)}
    lightning_checkpoint(tmp_path / "last.ckpt", state)
    loaded = ImageTokenizer.load(tmp_path / "last.ckpt", tmp_path / "model.yaml")
    assert all(torch.equal(value, tokenizer.state_dict()[key]) for key, value in loaded.state_dict().items())


def test_other_classes_in_a_checkpoint_are_refused(tmp_path: Path) -> None:
    small().config.to_yaml(tmp_path / "model.yaml")
    lightning_checkpoint(tmp_path / "last.ckpt", small().state_dict(), name="Other")
    with pytest.raises(ValueError, match=r"last.ckpt: expected a checkpoint of weights"):
        ImageTokenizer.load(tmp_path / "last.ckpt", tmp_path / "model.yaml")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("quant_conv.bias"), r"lacks 1 entries \(quant_conv.bias\)"),
        (lambda state: state.update(other=torch.zeros(1)), r"has 1 others \(other\)"),
        (
            lambda state: state.update({"quant_conv.bias": torch.zeros(7)}),
            r"has 1 of another shape \(quant_conv.bias \[7\], expected \[4\]\)",
        ),
        (lambda state: state.update(epoch=3), "expected a checkpoint with an entry state_dict of tensors"),
    ],
)
def test_checkpoints_that_do_not_fit_are_named(change: Any, message: str, tmp_path: Path) -> None:
    state = dict(small().state_dict())
    change(state)
    torch.save({"state_dict": state}, tmp_path / "last.ckpt")
    SMALL.to_yaml(tmp_path / "model.yaml")
    with pytest.raises(ValueError, match=message) as raised:
        ImageTokenizer.load(tmp_path / "last.ckpt", tmp_path / "model.yaml")
    assert "last.ckpt" in str(raised.value)


def test_files_that_are_missing_or_foreign_are_named(tmp_path: Path) -> None:
    checkpoint, config = tmp_path / "last.ckpt", tmp_path / "model.yaml"
    with pytest.raises(FileNotFoundError, match="model.yaml"):
        ImageTokenizer.load(checkpoint, config)
    SMALL.to_yaml(config)
    with pytest.raises(FileNotFoundError, match="last.ckpt"):
        ImageTokenizer.load(checkpoint, config)
    for content in (b"", b"no checkpoint", b"PK\x03\x04"):
        checkpoint.write_bytes(content)
        with pytest.raises(ValueError, match="last.ckpt: expected a checkpoint"):
            ImageTokenizer.load(checkpoint, config)
    for text in ("a: [", "[1, 2]", "model: 3", "model: {params: {embed_dim: 2}}", ""):
        config.write_text(text)
        with pytest.raises(ValueError, match="model.yaml: expected"):
            TokenizerConfig.from_yaml(config)


@pytest.mark.parametrize(
    ("where", "setting", "value", "message"),
    [
        ("ddconfig", "double_z", True, "double_z: True is not supported, expected False"),
        ("ddconfig", "attn_type", "linear", "attn_type: linear is not supported"),
        ("ddconfig", "strange", 1, "unknown setting strange"),
        ("ddconfig", "ch", "128", "ch: expected a whole number from 1, got '128'"),
        ("ddconfig", "ch_mult", 2, "ch_mult: expected a list"),
        ("params", "remap", "used.txt", "remap"),
        ("params", "n_embed", 0, "n_embed: expected a whole number"),
        ("params", "quantizer", "product", "expected one of gumbel, nearest, fsq"),
        ("params", "quantizer", "fsq", r"levels \[\]: expected numbers from 2 whose product is n_embed"),
    ],
)
def test_settings_that_there_is_no_code_for_are_refused(
    where: str, setting: str, value: Any, message: str, tmp_path: Path
) -> None:
    content = yaml.safe_load(RELEASED_YAML)
    params = content["model"]["params"]
    (params if where == "params" else params[where])[setting] = value
    (tmp_path / "model.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(ValueError, match=f"model.yaml: .*{message}"):
        TokenizerConfig.from_yaml(tmp_path / "model.yaml")


def test_published_models_of_nearest_codes_are_known_by_their_class(tmp_path: Path) -> None:
    (tmp_path / "model.yaml").write_text(RELEASED_YAML.replace("GumbelVQ", "VQModel"))
    assert TokenizerConfig.from_yaml(tmp_path / "model.yaml").quantizer == "nearest"


@pytest.mark.parametrize(
    "shape", [(2, 3, 16, 20), (2, 3, 12, 16), (3, 16, 16), (1, 1, 16, 16), (0, 3, 16, 16), (1, 3, 0, 16)]
)
def test_pictures_of_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="multiples of 8"):
        small().encode(torch.zeros(shape))


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        ([[[0, 32]]], "from 0 to 31, got 32"),
        ([[[-1, 3]]], "from 0 to 31, got -1"),
        ([[1, 2]], r"codes \[B, h, w\]"),
        ([[[0.5]]], "whole numbers"),
        ([[[]]], "codes"),
    ],
)
def test_codes_out_of_range_are_refused(codes: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small().decode(torch.tensor(codes))


@pytest.mark.parametrize("size", [(64, 64), (200, 100), (33, 90), (3, 400)])
def test_a_picture_is_resized_by_its_shorter_side_and_cropped(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (*size[::-1], 3), dtype=np.uint8))
    pixels = picture_input(image, 32)
    ratio = 32 / min(size)
    resized = image.resize((round(size[0] * ratio), round(size[1] * ratio)), Image.Resampling.LANCZOS)
    left, top = round((resized.width - 32) / 2), round((resized.height - 32) / 2)
    expected = np.asarray(resized.crop((left, top, left + 32, top + 32))).transpose(2, 0, 1) / 127.5 - 1
    np.testing.assert_allclose(pixels, expected, atol=1e-6)


def test_pictures_come_back_as_they_were() -> None:
    gradient = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image = Image.fromarray(np.stack([gradient, gradient.T, 255 - gradient], axis=2))
    (back,) = to_images(picture_input(image, 16)[None])
    assert np.array_equal(np.asarray(back), np.asarray(image))
    assert picture_input(image.convert("L"), 16).shape == (3, 16, 16)
    outside = torch.tensor([-3.0, 0.0, 5.0]).reshape(1, 3, 1, 1)
    assert np.asarray(to_images(outside)[0]).tolist() == [[[0, 128, 255]]]


@given(st.lists(st.integers(2, 9), min_size=1, max_size=4))
def test_every_code_of_finite_scalars_comes_back(levels: list[int]) -> None:
    quantizer = FiniteScalarQuantizer(levels)
    codes = torch.arange(quantizer.num_codes).reshape(1, 1, -1)
    vectors = quantizer.lookup(codes)
    assert vectors.min() == -1
    assert vectors.max() == 1
    assert len(torch.unique(vectors.flatten(2), dim=2)[0].T) == quantizer.num_codes
    # the features that tanh maps to the middle of each level's interval
    middle = codes.unsqueeze(1) // quantizer.basis[:, None, None] % quantizer.levels[:, None, None] + 0.5
    features = torch.atanh(2 * middle / quantizer.levels[:, None, None] - 1)
    assert torch.equal(quantizer.encode(features), codes)
    assert torch.equal(
        quantizer.encode(torch.full((1, len(levels), 1, 1), 1e9)).flatten(), codes.flatten()[-1:]
    )
    assert torch.equal(
        quantizer.encode(torch.full((1, len(levels), 1, 1), -1e9)).flatten(), codes.flatten()[:1]
    )


def test_nearest_codes_equal_brute_force() -> None:
    torch.manual_seed(1)
    quantizer, z = NearestQuantizer(50, 6), torch.randn(2, 6, 3, 4) / 50
    distances = torch.cdist(z.movedim(1, -1).reshape(-1, 6), quantizer.embedding.weight)
    assert torch.equal(quantizer.encode(z).flatten(), distances.argmin(dim=1))


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_training_vectors_are_those_of_the_codes_and_pass_the_gradient_on(quantizer: str) -> None:
    tokenizer = small(quantizer)
    features = tokenizer.features(random_pictures(2, 3, 16, 16)).detach().requires_grad_()
    quantized = tokenizer.quantize(features, 0.5)
    torch.testing.assert_close(
        quantized.vectors, tokenizer.quantize.lookup(quantized.codes), atol=1e-5, rtol=0
    )
    (quantized.vectors * torch.randn_like(quantized.vectors)).sum().backward()
    assert features.grad is not None
    assert features.grad.abs().min() > 0


def test_gumbel_samples_codes_by_their_probability_in_training_only() -> None:
    torch.manual_seed(0)
    quantizer = GumbelQuantizer(4, 2, 3)
    z = torch.tensor([0.7, -0.4]).reshape(1, 2, 1, 1).expand(1, 2, 100, 100)
    expected = quantizer.proj(z).softmax(dim=1)[0, :, 0, 0].detach()
    drawn = torch.bincount(quantizer(z, 0.0).codes.flatten(), minlength=4) / 1e4
    torch.testing.assert_close(drawn, expected, atol=0.02, rtol=0)
    assert (quantizer.encode(z) == expected.argmax()).all()


def test_dead_codes_are_moved_to_features_and_live() -> None:
    torch.manual_seed(0)
    quantizer = NearestQuantizer(8, 2)
    with torch.no_grad():
        quantizer.embedding.weight.copy_(torch.tensor([[0.0, 0.0]] + [[99.0, 99.0]] * 7))
    dead_codes = DeadCodes(quantizer, patience=3)
    dead_codes.idle.zero_()
    z = torch.randn(4, 2, 5, 5)
    for _ in range(3):
        assert dead_codes.revive(z, quantizer.encode(z)) == 0
    assert dead_codes.revive(z, quantizer.encode(z)) == 7
    features = z.movedim(1, -1).reshape(-1, 2)
    assert all((features == code).all(dim=1).any() for code in quantizer.embedding.weight[1:])
    assert len(quantizer.encode(z).unique()) == 8
    assert dead_codes.revive(z, quantizer.encode(z)) == 0


def test_dead_codes_go_where_the_error_is() -> None:
    quantizer = NearestQuantizer(4, 1)
    with torch.no_grad():
        quantizer.embedding.weight.copy_(torch.tensor([[0.0], [50.0], [50.0], [50.0]]))
    z = torch.zeros(1, 1, 40, 40)
    z[0, 0, 0, :3] = torch.tensor([5.0, 6.0, 7.0])  # three figures on plain ground, which has its code
    quantizer.move_codes(torch.tensor([1, 2, 3]), z)
    assert sorted(quantizer.embedding.weight[1:].flatten().tolist()) == pytest.approx([5, 6, 7])
