import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.ops import box_iou as torchvision_box_iou

from ofa_fairseq.metrics.box_accuracy import box_accuracy, box_iou, parse_box


def as_text(box: np.ndarray) -> str:
    return ",".join(map(repr, box.tolist()))


def random_boxes(seed: int, count: int, multiple: int | None = None) -> np.ndarray:
    """[count, 4] proper boxes; with `multiple`, corners on a coarse grid, where an IoU of exactly half is common."""
    random = np.random.RandomState(seed)
    if multiple is None:
        corners = random.uniform(0, 640, (count, 2, 2))
    else:
        low = random.randint(0, 4, (count, 1, 2))
        corners = multiple * np.concatenate([low, low + random.randint(1, 4, (count, 1, 2))], axis=1)
    return np.sort(corners, axis=1).reshape(count, 4)


def test_iou_equals_torchvision() -> None:
    outputs, references = random_boxes(1, 500), random_boxes(2, 500)
    expected = torchvision_box_iou(torch.from_numpy(outputs), torch.from_numpy(references)).diagonal().numpy()
    found = box_iou(list(map(as_text, outputs)), [[as_text(box)] for box in references])
    assert found.dtype == np.float64
    assert (expected > 0.3).sum() > 10
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_the_best_reference_counts_however_many_there_are() -> None:
    outputs, references = random_boxes(3, 60), random_boxes(4, 120)
    counts = np.random.RandomState(5).multinomial(60, np.ones(60) / 60) + 1
    ends = np.cumsum(counts)
    texts = [list(map(as_text, references[end - n : end])) for end, n in zip(ends, counts)]
    every = torchvision_box_iou(torch.from_numpy(outputs), torch.from_numpy(references)).numpy()
    expected = [every[i, end - n : end].max() for i, (end, n) in enumerate(zip(ends, counts))]
    np.testing.assert_allclose(box_iou(list(map(as_text, outputs)), texts), expected, rtol=1e-12)


def released_correct(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The released criterion in its single precision: 1e-6 in the union, both sides of the intersection positive."""
    sides = torch.min(a[:, 2:], b[:, 2:]) - torch.max(a[:, :2], b[:, :2])
    inter = sides[:, 0] * sides[:, 1]
    area_a, area_b = ((box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1]) for box in (a, b))
    iou = inter / (area_a + area_b - inter + 1e-6)
    return (iou >= 0.5) & (sides > 0).all(dim=1)


@pytest.mark.parametrize("multiple", [8, None])
def test_accuracy_equals_the_released_formula_on_pixel_boxes(multiple: int | None) -> None:
    outputs, references = random_boxes(6, 3000, multiple), random_boxes(7, 3000, multiple)
    expected = released_correct(torch.from_numpy(outputs).float(), torch.from_numpy(references).float())
    texts, reference_texts = list(map(as_text, outputs)), [[as_text(box)] for box in references]
    if multiple:
        assert (box_iou(texts, reference_texts) == 0.5).sum() > 50
    assert box_accuracy(texts, reference_texts).tolist() == expected.double().tolist()


def test_stretching_the_axes_changes_nothing() -> None:
    outputs, references = random_boxes(8, 100), random_boxes(9, 100)
    stretch = np.array([0.3, 1.7, 0.3, 1.7]) / 640
    pixels = box_iou(list(map(as_text, outputs)), [[as_text(box)] for box in references])
    fractions = box_iou(
        list(map(as_text, outputs * stretch)), [[as_text(box)] for box in references * stretch]
    )
    np.testing.assert_allclose(fractions, pixels, rtol=1e-9)


@given(st.lists(st.integers(0, 999), min_size=4, max_size=4), st.sampled_from(["", " ", "  "]))
def test_bins_stand_for_their_numbers(bins: list[int], between: str) -> None:
    text = between.join(f"<bin_{bin_}>" for bin_ in bins)
    assert parse_box(f" {text}\n") == tuple(bins)


@pytest.mark.parametrize("text", ["1,2.5,-3,4e1", "1 2.5 -3 4e1", " 1, 2.5 ,-3,  4e1 "])
def test_numbers_between_commas_or_spaces(text: str) -> None:
    assert parse_box(text) == (1, 2.5, -3, 40)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a red box",
        "1,2,3",
        "1,2,3,4,5",
        "1,,2,3,4",
        "1,2,3,4,",
        "1,2,3,nan",
        "1,2,3,inf",
        "<bin_1><bin_2><bin_3>",
        "<bin_1><bin_2><bin_3><bin_4><bin_5>",
        "<bin_1><bin_2><bin_3><bin_-4>",
        "<bin_1>,<bin_2>,<bin_3>,<bin_4>",
        "<bin_1><bin_2><bin_3> 4",
    ],
)
def test_what_is_no_box_scores_nothing_and_is_refused_as_reference(text: str) -> None:
    box = "0,0,1,1"
    assert parse_box(text) is None
    assert box_iou([text, box], [[box], [box]]).tolist() == [0, 1]
    assert box_accuracy([text, box], [[box], [box]]).tolist() == [0, 1]
    with pytest.raises(ValueError, match=r"row 1: the reference .* is no box: expected four numbers"):
        box_iou([box, box], [[box], [box, text]])


@pytest.mark.parametrize(
    "box",
    ["5,5,5,5", "5,0,5,10", "0,5,10,5", "0,0,0,0", "10,0,0,10", "0,10,10,0", "10,10,0,0", "20,20,30,30"],
)
def test_boxes_without_area_or_with_swapped_corners_find_nothing(box: str) -> None:
    proper = "0,0,10,10"
    for output, reference in [(box, proper), (proper, box)]:
        assert box_iou([output], [[reference]]).tolist() == [0]
        assert box_accuracy([output], [[reference]]).tolist() == [0]
    area = np.diff(np.array(list(map(float, box.split(",")))).reshape(2, 2), axis=0).min()
    assert box_iou([box], [[box]]).tolist() == [float(area > 0)]


def test_output_in_bins_against_a_reference_in_units_of_bins() -> None:
    assert box_iou(["<bin_0><bin_0><bin_5><bin_10>"], [["0,0,10,10"]]) == pytest.approx([0.5])
    assert box_accuracy(["<bin_0><bin_0><bin_5><bin_10>"], [["0,0,10,10"]]).tolist() == [1]


def test_no_rows_and_rows_without_references() -> None:
    assert box_iou([], []).shape == box_accuracy([], []).shape == (0,)
    with pytest.raises(ValueError, match="hypothesis 0 .* has no references"):
        box_iou(["0,0,1,1"], [[]])
