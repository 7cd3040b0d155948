"""The square transform against pixels measured on the original's datasets, and against torchvision."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from ofa_fairseq.data.image_transforms import IMAGENET_MEAN, IMAGENET_STD, SquareResize, scale_box
from ofa_fairseq.data.images import decode_image

REFERENCE = Path(__file__).parents[1] / "reference" / "rows.json"
CASES = [case for case in json.loads(REFERENCE.read_text()) if "patch_image" in case]
REFCOCO = [case for case in CASES if case["task"] == "refcoco"]


def picture_of(case: dict) -> Image.Image:
    return decode_image(case["row"][case["columns"].split().index("image")], Path())


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.RandomState(5).randint(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['task']}-{case['split']}")
def test_pixels_of_the_original(case: dict) -> None:
    wanted = case["patch_image"]
    pixels = SquareResize(int(case["options"]["patch_image_size"]))(picture_of(case))
    assert list(pixels.shape) == wanted["shape"]
    assert pixels.dtype == torch.float32
    tolerance = 2 * 2 / 255  # two grey levels; normalised values span 2, not 1
    grid = pixels[:, wanted["rows"]][:, :, wanted["cols"]]
    torch.testing.assert_close(grid, torch.tensor(wanted["values"]), atol=tolerance, rtol=0)
    assert pixels.mean().item() == pytest.approx(wanted["mean"], abs=1e-3)
    assert pixels.std().item() == pytest.approx(wanted["std"], abs=1e-3)


@pytest.mark.parametrize("imagenet", [False, True])
@pytest.mark.parametrize(("width", "height"), [(33, 80), (200, 11), (48, 48), (1, 1)])
def test_equals_torchvision(width: int, height: int, imagenet: bool) -> None:
    mean, std = (IMAGENET_MEAN, IMAGENET_STD) if imagenet else ([0.5] * 3, [0.5] * 3)
    torchvision = v2.Compose(
        [
            v2.Resize((48, 48), interpolation=v2.InterpolationMode.BICUBIC),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(mean, std),
        ]
    )
    image = noise(width, height)
    pixels = SquareResize(48, imagenet_default_mean_and_std=imagenet)(image)
    assert pixels.is_contiguous()
    torch.testing.assert_close(pixels, torch.as_tensor(torchvision(image)), atol=2e-6, rtol=0)


def test_black_and_white_reach_both_ends() -> None:
    transform = SquareResize(4)
    assert transform(Image.new("RGB", (9, 5), "white")).unique().tolist() == [1.0]
    assert transform(Image.new("RGB", (9, 5), "black")).unique().tolist() == [-1.0]


@pytest.mark.parametrize("size", [0, -480])
def test_impossible_sizes(size: int) -> None:
    with pytest.raises(ValueError, match=f"image size must be positive, got {size}"):
        SquareResize(size)


@pytest.mark.parametrize("case", REFCOCO)
def test_boxes_fall_into_the_bins_of_the_original(case: dict) -> None:
    size, largest = int(case["options"]["patch_image_size"]), int(case["options"]["max_image_size"])
    num_bins, vocabulary = int(case["options"]["num_bins"]), 59_457
    image = picture_of(case)
    text = case["row"][case["columns"].split().index("box")]
    box = scale_box([float(number) for number in text.split(",")], image.width, image.height, size)
    bins = (box / largest * (num_bins - 1)).round().long()
    assert (bins + vocabulary - num_bins).tolist() == case["target"][:4]
    ratios = torch.tensor([case["w_resize_ratio"], case["h_resize_ratio"]]).repeat(2)
    assert torch.equal(box, torch.tensor(case["region_coord"]) * ratios)


def test_the_whole_picture_is_the_whole_square() -> None:
    assert scale_box([0, 0, 640, 427], 640, 427, 512).tolist() == pytest.approx([0, 0, 512, 512])
