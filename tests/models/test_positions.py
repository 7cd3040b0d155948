"""Position ids, buckets and biases against values worked out by hand and against plain loops."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ofa_fairseq.models.positions import (
    PositionTables,
    absolute_bias,
    code_position_ids,
    grid_position_ids,
    image_buckets,
    interpolate_grid,
    relative_bias,
    token_buckets,
)


def token_bucket(distance: int, size: int, positions: int = 1024) -> int:
    """The bucket of one distance (query minus key), from the formula."""
    middle = size // 2
    far = abs(distance)
    if far > middle:
        share = math.log(far / middle) / math.log((positions - 1) / middle)
        far = math.ceil(share * (middle - 1)) + middle
    return int(math.copysign(far, distance)) + size - 1


def test_token_buckets_of_the_released_size() -> None:
    buckets = token_buckets(256)
    assert buckets.shape == (1024, 1024)
    assert buckets.dtype == torch.long
    # Measured on the original: bucket by distance.
    measured = {0: 255, 5: 260, 128: 383, 129: 384, 200: 411, 1023: 510}
    assert {d: int(buckets[d, 0]) for d in measured} == measured
    assert {d: int(buckets[0, d]) for d in measured} == {d: 510 - bucket for d, bucket in measured.items()}


@pytest.mark.parametrize("size", [16, 256])
def test_token_buckets_follow_the_formula_at_every_distance(size: int) -> None:
    buckets = token_buckets(size)
    expected = torch.tensor([token_bucket(d, size) for d in range(1024)])
    # A logarithm may be rounded to either side of a whole number: at the end of the table it is one exactly.
    assert (buckets[:, 0] - expected).abs().max() <= 1
    assert (buckets[:, 0] != expected).sum() <= 1
    assert buckets.min() == 0
    assert buckets.max() == 2 * size - 2


def test_token_buckets_depend_on_the_distance_only() -> None:
    buckets = token_buckets(32)
    assert torch.equal(buckets[1:, 1:], buckets[:-1, :-1])


def test_image_buckets_against_loops() -> None:
    grid = 3
    buckets = image_buckets(grid)
    side = 2 * grid - 1
    for p in range(grid * grid + 1):
        for q in range(grid * grid + 1):
            if p and q:
                (r1, c1), (r2, c2) = divmod(p - 1, grid), divmod(q - 1, grid)
                expected = (r1 - r2 + grid - 1) * side + c1 - c2 + grid - 1
            else:
                expected = side * side + (2 if p == q else 1 if p else 0)
            assert buckets[p, q] == expected, (p, q)


def test_image_buckets_of_the_released_size() -> None:
    buckets = image_buckets(42)
    assert buckets.shape == (1765, 1765)
    assert buckets.max() == (2 * 42 - 1) ** 2 + 2
    assert (int(buckets[0, 7]), int(buckets[7, 0]), int(buckets[0, 0])) == (6889, 6890, 6891)
    assert buckets[1:, 1:].max() == 6888


def test_patches_keep_their_ids_whatever_the_size_of_the_picture() -> None:
    assert grid_position_ids(2, 3, 42).tolist() == [1, 2, 3, 43, 44, 45]
    assert grid_position_ids(3, 2, 42).tolist() == [1, 2, 43, 44, 85, 86]


def test_code_ids() -> None:
    ids = code_position_ids(16, 42)
    assert len(ids) == 1 + 256 + 769
    assert ids[0] == 0
    assert ids[1:257].tolist() == [row * 42 + column + 1 for row in range(16) for column in range(16)]
    assert set(ids[257:].tolist()) == {1024}
    assert len(code_position_ids(32, 42)) == 1794


def test_code_ids_fit_small_tables() -> None:
    assert code_position_ids(4, 8).max() == 64  # the table has 8 * 8 + 1 rows


def test_interpolation_of_the_same_size_changes_nothing() -> None:
    table = torch.randn(4, 5, 3)
    assert torch.allclose(interpolate_grid(table, 4, 5), table.flatten(0, 1))


def test_interpolation_to_twice_the_size_by_hand() -> None:
    # Pixel centres: the new ones stand at -1/4, 1/4, 3/4 and 5/4 of the old; outside, the border counts.
    row = torch.tensor([0.0, 0.25, 0.75, 1.0])
    table = torch.tensor([[0.0, 1.0], [0.0, 1.0]])[..., None]
    assert torch.allclose(interpolate_grid(table, 4, 4).view(4, 4), row.expand(4, 4))
    assert torch.allclose(interpolate_grid(table.transpose(0, 1), 4, 4).view(4, 4), row[:, None].expand(4, 4))


def test_interpolation_is_row_major() -> None:
    table = torch.randn(3, 3, 2)
    expected = F.interpolate(table.permute(2, 0, 1)[None], size=(5, 4), mode="bilinear", align_corners=False)
    result = interpolate_grid(table, 5, 4)
    assert result.shape == (20, 2)
    assert torch.allclose(result[1 * 4 + 2], expected[0, :, 1, 2])


def test_absolute_bias_against_loops() -> None:
    queries, keys = torch.randn(2, 3, 8), torch.randn(2, 4, 8)
    bias = absolute_bias(queries, keys, heads=2, scale=0.5)
    assert bias.shape == (2, 2, 3, 4)
    expected = 0.5 * queries[1, 2, 4:] @ keys[1, 3, 4:]  # row 1, head 1, query 2, key 3
    assert torch.allclose(bias[1, 1, 2, 3], expected)


def test_relative_bias_looks_up_a_number_for_each_head() -> None:
    table = nn.Embedding(10, 3)
    buckets = torch.tensor([[1, 2], [7, 0]])
    bias = relative_bias(table, buckets)
    assert bias.shape == (1, 3, 2, 2)
    assert torch.equal(bias[0, :, 1, 0], table.weight[7])
    by_row = relative_bias(table, torch.stack([buckets, buckets + 1]))
    assert by_row.shape == (2, 3, 2, 2)
    assert torch.equal(by_row[1, :, 1, 0], table.weight[8])


def test_tables_have_a_row_for_every_bucket() -> None:
    tables = PositionTables()
    tables.build_position_tables(dim=4, heads=2, layers=3, positions=20, token_bucket_size=16, grid=5)
    assert tables.embed_positions.num_embeddings == 22
    assert tables.embed_image_positions.num_embeddings == 26
    for relative, buckets in (
        (tables.token_rel_pos_table_list, tables.token_rp_bucket),
        (tables.image_rel_pos_table_list, tables.image_rp_bucket),
    ):
        assert len(relative) == 3
        assert relative[0].num_embeddings == buckets.max() + 1


def test_buckets_of_rows_with_their_own_ids() -> None:
    tables = PositionTables()
    tables.build_position_tables(dim=4, heads=2, layers=1, positions=20, token_bucket_size=16, grid=5)
    ids = torch.tensor([[3, 1], [0, 25]])
    buckets: Tensor = tables.image_buckets_of(ids, ids)
    assert buckets.shape == (2, 2, 2)
    for row in range(2):
        for i in range(2):
            for j in range(2):
                assert buckets[row, i, j] == tables.image_rp_bucket[ids[row, i], ids[row, j]]
