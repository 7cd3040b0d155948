"""The stem is torchvision's ResNet without its last stage, whole files of which load."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from model_builders import SMALL, build_model, normal_images
from reference_weights import fill
from torch import Tensor, nn

from ofa_fairseq.models.visual_stem import STEM_CHANNELS, STEMS, VisualStem


@pytest.fixture(scope="module")
def resnet50() -> nn.Module:
    return fill(torchvision.models.resnet50()).eval()


def up_to_third_stage(resnet: Any, images: Tensor) -> Tensor:
    x = resnet.maxpool(resnet.relu(resnet.bn1(resnet.conv1(images))))
    return resnet.layer3(resnet.layer2(resnet.layer1(x)))


@pytest.mark.parametrize("frozen", [False, True])
def test_equals_torchvision_with_a_whole_file_of_its_weights(
    resnet50: nn.Module, frozen: bool, tmp_path: Path
) -> None:
    torch.save(resnet50.state_dict(), tmp_path / "resnet50.pth")
    stem = VisualStem("resnet50", freeze_bn=frozen).eval()
    stem.load_pretrained(tmp_path / "resnet50.pth")
    images = normal_images(0, (2, 3, 70, 101))
    with torch.no_grad():
        features, expected = stem(images), up_to_third_stage(resnet50, images)
    assert features.shape == (2, STEM_CHANNELS, 5, 7)
    assert (features - expected).abs().max() < 1e-4 * expected.abs().max()


def test_names_are_those_of_torchvision(resnet50: nn.Module) -> None:
    expected = {
        name: value.shape
        for name, value in resnet50.state_dict().items()
        if not name.startswith(("layer4.", "fc."))
    }
    found = {name: value.shape for name, value in VisualStem("resnet50").state_dict().items()}
    assert found == expected
    assert len(found) == 258


@pytest.mark.parametrize("depth", [101, 152])
def test_deeper_stems_have_the_names_of_their_torchvision_models(depth: int) -> None:
    with torch.device("meta"):
        resnet = getattr(torchvision.models, f"resnet{depth}")()
        stem = VisualStem(f"resnet{depth}")
    expected = {k: v.shape for k, v in resnet.state_dict().items() if not k.startswith(("layer4.", "fc."))}
    assert {k: v.shape for k, v in stem.state_dict().items()} == expected


@pytest.mark.parametrize("resnet_type", STEMS)
def test_every_stem_ends_in_patches_of_16_pixels_with_1024_channels(resnet_type: str) -> None:
    with torch.device("meta"):
        stem = VisualStem(resnet_type)
    for side, patches in ((16, 1), (70, 5), (101, 7), (480, 30)):
        assert stem(torch.empty(2, 3, side, 32, device="meta")).shape == (2, 1024, patches, 2)


def test_the_shallow_stems_have_bottlenecks_too() -> None:
    with torch.device("meta"):
        names = {kind: set(VisualStem(kind).state_dict()) for kind in ("resnet18", "resnet34", "resnet50")}
    assert names["resnet34"] == names["resnet50"]
    assert names["resnet18"] < names["resnet34"]
    assert "layer3.1.conv3.weight" in names["resnet18"]


def test_an_unknown_stem_is_an_error() -> None:
    with pytest.raises(ValueError, match="--resnet-type resnet99: expected one of resnet_nano, resnet18"):
        VisualStem("resnet99")


def test_synchronised_norms_have_their_own_epsilon() -> None:
    synced, plain = VisualStem("resnet_nano", sync_bn=True), VisualStem("resnet_nano")
    norms = [m for m in synced.modules() if isinstance(m, nn.SyncBatchNorm)]
    assert len(norms) == sum(isinstance(m, nn.BatchNorm2d) for m in plain.modules())
    assert {m.eps for m in norms} == {1e-3}
    assert {m.eps for m in plain.modules() if isinstance(m, nn.BatchNorm2d)} == {1e-5}
    # The released option to synchronise wins over the one to freeze.
    both = VisualStem("resnet_nano", sync_bn=True, freeze_bn=True)
    assert isinstance(both.bn1, nn.SyncBatchNorm)


def test_epsilon_changes_the_features() -> None:
    images = normal_images(1, (1, 3, 32, 32))
    features = [
        fill(VisualStem("resnet_nano", sync_bn=synced)).eval()(images).detach() for synced in (False, True)
    ]
    difference = (features[0] - features[1]).abs().max() / features[0].abs().max()
    assert 1e-5 < difference < 1e-2


def test_frozen_norms_are_buffers_and_their_statistics_stay() -> None:
    stem = fill(VisualStem("resnet_nano", freeze_bn=True)).train()
    assert not [name for name, _ in stem.named_parameters() if "bn" in name]
    assert not [name for name in stem.state_dict() if name.endswith("num_batches_tracked")]
    before = {name: value.clone() for name, value in stem.named_buffers()}
    images = normal_images(2, (4, 3, 32, 32))
    trained = stem(images)
    for name, value in stem.named_buffers():
        assert torch.equal(value, before[name]), name
    assert torch.equal(stem.eval()(images), trained)


def test_norms_learn_their_statistics_otherwise() -> None:
    stem = VisualStem("resnet_nano").train()
    stem(normal_images(2, (4, 3, 32, 32)) + 3)
    assert stem.bn1.running_mean.abs().max() > 1e-3
    assert stem.bn1.num_batches_tracked == 1


@pytest.mark.parametrize("frozen", [False, True])
def test_file_for_the_stem_given_by_option(frozen: bool, tmp_path: Path) -> None:
    source = fill(VisualStem("resnet_nano"), "other.").state_dict()
    torch.save(source, tmp_path / "stem.pth")
    model = build_model(
        "ofa_nano", **SMALL, resnet_model_path=str(tmp_path / "stem.pth"), freeze_resnet=frozen
    )
    for name, value in model.encoder.embed_images.state_dict().items():
        assert torch.equal(value, source[name]), name


def test_a_file_of_another_stem_is_an_error(tmp_path: Path) -> None:
    torch.save(VisualStem("resnet18").state_dict(), tmp_path / "stem.pth")
    with pytest.raises(RuntimeError, match="layer1.1.conv1.weight"):
        VisualStem("resnet_nano").load_pretrained(tmp_path / "stem.pth")


def test_drop_path_rates_grow_within_each_stage() -> None:
    stem = VisualStem("resnet50", drop_path_rate=0.3)
    for stage in (stem.layer1, stem.layer2, stem.layer3):
        rates = [getattr(block.drop_path, "rate", 0.0) for block in stage]
        expected = [0.3 * i / (len(stage) - 1) for i in range(len(stage))]
        assert rates == pytest.approx(expected)
        assert isinstance(stage[0].drop_path, nn.Identity)


def test_dropped_residual_branches_leave_the_shortcut() -> None:
    stem = fill(VisualStem("resnet18", drop_path_rate=1 - 1e-7))
    block = stem.layer3[1].train()
    x = torch.rand(4, 1024, 2, 2)
    assert torch.equal(block(x), x)
    assert not torch.equal(block.eval()(x), x)
