"""Boxes of a column as bins and back, at any picture size."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ofa_fairseq.data.boxes import BoxFrame, box_text, parse_box
from ofa_fairseq.data.image_transforms import scale_box
from ofa_fairseq.metrics.box_accuracy import parse_box as parse_output

sizes = st.tuples(st.integers(1, 5000), st.integers(1, 5000))
# The model input's side and what the last bin stands for; 480 under 512 is the released zero-shot setting.
sides = st.sampled_from([(512, 512), (480, 512), (480, 480), (64, 512), (32, 33)])
shares = st.lists(st.floats(0, 1), min_size=4, max_size=4)


def inside(size: tuple[int, int], share: list[float]) -> tuple[float, float, float, float]:
    """A box in a picture; its corners may be in any order."""
    return (share[0] * size[0], share[1] * size[1], share[2] * size[0], share[3] * size[1])


@given(sizes, sides, st.integers(2, 1000), shares)
def test_the_round_trip_is_within_half_a_bin(
    size: tuple[int, int], side: tuple[int, int], num_bins: int, share: list[float]
) -> None:
    frame, box = BoxFrame(*size, *side, num_bins), inside(size, share)
    bins = frame.quantize(box)
    assert all(0 <= number < num_bins for number in bins)
    widths = [side[1] / (num_bins - 1) * length / side[0] for length in size] * 2  # of a bin, in pixels
    for found, coordinate, width in zip(frame.to_pixels(bins), box, widths):
        assert abs(found - coordinate) <= width / 2 + 1e-5 * max(size)  # single precision, as released


@given(sizes, sides, shares)
def test_bins_are_those_of_the_released_formula(
    size: tuple[int, int], side: tuple[int, int], share: list[float]
) -> None:
    box = inside(size, share)
    resized = scale_box(box, *size, side[0])  # torch's float32
    expected = (resized / side[1] * (1000 - 1)).round().int().tolist()
    assert BoxFrame(*size, *side, 1000).quantize(box) == expected


@given(sizes, sides, shares)
def test_unrounded_bins_go_back_exactly(
    size: tuple[int, int], side: tuple[int, int], share: list[float]
) -> None:
    frame, box = BoxFrame(*size, *side, 1000), inside(size, share)
    assert frame.to_pixels(frame.to_bins(box)) == pytest.approx(box, rel=1e-5, abs=1e-5 * max(size))


def test_halves_go_to_the_even_bin() -> None:
    frame = BoxFrame(12, 12, 12, 12, 13)  # a bin a pixel
    assert frame.quantize((0.5, 1.5, 2.5, 3.5)) == [0, 2, 2, 4]


def test_a_small_input_under_a_wide_span() -> None:
    frame = BoxFrame(100, 200, 480, 512, 1000)
    assert frame.quantize((0, 0, 100, 200)) == [0, 0, 937, 937]  # 480 / 512 * 999 = 936.6
    assert frame.to_pixels([937] * 4) == pytest.approx([100.05, 200.1] * 2, abs=0.01)


@given(sizes, sides, shares)
def test_a_reference_is_read_as_the_metric_reads_it(
    size: tuple[int, int], side: tuple[int, int], share: list[float]
) -> None:
    bins = BoxFrame(*size, *side, 1000).to_bins(inside(size, share))
    assert parse_output(box_text(bins)) == pytest.approx(bins, abs=6e-5)


# Columns


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10.5,20.0,90.25,70.75", (10.5, 20.0, 90.25, 70.75)),
        (" 0, 0 ,100, 80 ", (0, 0, 100, 80)),
        ("1e1,0,20,2.5e1", (10, 0, 20, 25)),
        ("-0.0005,0,100.0005,80.01", (0, 0, 100, 80)),  # a sum of numbers that were rounded
    ],
)
def test_columns(text: str, expected: tuple[float, ...]) -> None:
    assert parse_box(text, (100, 80)) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected four numbers x0,y0,x1,y1"),
        ("1,2,3", "expected four numbers x0,y0,x1,y1"),
        ("1,2,3,4,5", "expected four numbers x0,y0,x1,y1"),
        ("1 2 3 4", "expected four numbers x0,y0,x1,y1"),
        ("1,2,3,x", "expected four numbers x0,y0,x1,y1"),
        ("1,2,3,", "expected four numbers x0,y0,x1,y1"),
        ("-0.1,2,3,4", "reaches out of the picture of 100 x 80 pixels"),
        ("1,2,100.1,4", "reaches out of the picture of 100 x 80 pixels"),
        ("1,2,3,81", "reaches out of the picture of 100 x 80 pixels"),
        ("1,2,nan,4", "reaches out of the picture of 100 x 80 pixels"),
        ("1,2,inf,4", "reaches out of the picture of 100 x 80 pixels"),
        ("3,2,3,4", "has no area: expected x0 < x1 and y0 < y1"),
        ("3,4,1,2", "has no area: expected x0 < x1 and y0 < y1"),
        ("99.9999,2,100.0005,2", "has no area: expected x0 < x1 and y0 < y1"),
        ("100,2,100.0005,4", "has no area: expected x0 < x1 and y0 < y1"),
    ],
)
def test_columns_that_are_no_box(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_box(text, (100, 80))


@given(sizes, shares)
def test_what_is_read_is_the_box_unless_it_has_no_area(size: tuple[int, int], share: list[float]) -> None:
    box = inside(size, share)
    text = ",".join(map(repr, box))
    if box[0] < box[2] and box[1] < box[3]:
        assert parse_box(text, size) == box
    else:
        with pytest.raises(ValueError, match="has no area"):
            parse_box(text, size)
