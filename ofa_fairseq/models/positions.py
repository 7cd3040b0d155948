"""Positions of text, image patches and image codes: ids, relative buckets, attention biases.

OFA never adds positions to the content that attention compares (section 2.1 of the paper: disentangled
position biases). Instead two terms are added to the attention logits of content:

* an absolute bias, the scaled product of projected position embeddings, shared by all layers;
* a relative bias, looked up in a table per layer by the bucket of (query position, key position).

Neither depends on content, so both are computed for a batch of one and broadcast.

Shapes: B batch, H heads, T text tokens, P patches, t queries, s keys, g = `image_bucket_size`.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# The bucket table covers this many text positions whatever `max_source_positions` says: the released
# checkpoints hold a buffer of this size, and the logarithmic part is scaled by it.
MAX_TEXT_POSITIONS = 1024
# Released checkpoints pad the list of code positions with this many copies of one id.
CODE_FILLER_LENGTH, CODE_FILLER_ID = 769, 1024


def token_buckets(bucket_size: int, positions: int = MAX_TEXT_POSITIONS) -> Tensor:
    """Relative buckets of text, [positions, positions]; entry [i, j] is that of query i and key j.

    Distances up to `bucket_size // 2` have a bucket each; farther ones share logarithmic buckets.
    """
    middle = bucket_size // 2
    distance = torch.arange(positions)[:, None] - torch.arange(positions)[None, :]
    magnitude = distance.abs().clamp(min=1)
    far = (
        torch.ceil(torch.log(magnitude / middle) / math.log((positions - 1) / middle) * (middle - 1)) + middle
    )
    bucket = torch.where(distance.abs() <= middle, distance, distance.sign() * far.long())
    return bucket + bucket_size - 1


def image_buckets(grid: int) -> Tensor:
    """Relative buckets of image positions, [g*g + 1, g*g + 1], by row and column distance.

    Position 0 is special (the start of a code sequence): its three kinds of pairs have buckets of their own
    at the end of the table.
    """
    row, column = torch.arange(grid * grid) // grid, torch.arange(grid * grid) % grid
    side = 2 * grid - 1
    buckets = torch.empty(grid * grid + 1, grid * grid + 1, dtype=torch.long)
    buckets[1:, 1:] = (row[:, None] - row[None, :] + grid - 1) * side + (
        column[:, None] - column[None, :] + grid - 1
    )
    buckets[0, 1:], buckets[1:, 0], buckets[0, 0] = side**2, side**2 + 1, side**2 + 2
    return buckets


def grid_position_ids(height: int, width: int, grid: int) -> Tensor:
    """Position ids of a height x width grid of patches, row-major: `row * g + column + 1`, [height * width].

    The row stride is always g, so a patch keeps its id whatever the size of the picture.
    """
    rows, columns = torch.arange(height), torch.arange(width)
    return (rows[:, None] * grid + columns[None, :] + 1).flatten()


def code_position_ids(code_side: int, grid: int) -> Tensor:
    """Position ids of a target made of codes: 0 for the start, the grid of codes, then filler.

    The filler id is one that no code of the largest grid needs; tables smaller than the released ones use
    their last row.
    """
    filler = min(CODE_FILLER_ID, grid * grid)
    return torch.cat(
        [
            torch.zeros(1, dtype=torch.long),
            grid_position_ids(code_side, code_side, grid),
            torch.full((CODE_FILLER_LENGTH,), filler),
        ]
    )


def interpolate_grid(embeddings: Tensor, height: int, width: int) -> Tensor:
    """Bilinear resize of position embeddings [o, o, d] to a grid of patches, [height * width, d]."""
    resized = F.interpolate(embeddings.permute(2, 0, 1)[None], size=(height, width), mode="bilinear")
    return resized[0].flatten(1).transpose(0, 1)


def absolute_bias(queries: Tensor, keys: Tensor, heads: int, scale: float) -> Tensor:
    """Scaled products of projected positions, [B, t, d] and [B, s, d] -> [B, H, t, s]."""
    query = queries.unflatten(-1, (heads, -1)).transpose(1, 2)
    key = keys.unflatten(-1, (heads, -1)).transpose(1, 2)
    return (query * scale) @ key.transpose(-1, -2)


def relative_bias(table: nn.Module, buckets: Tensor) -> Tensor:
    """Look up buckets [t, s] or [B, t, s] in one layer's table -> [1 or B, H, t, s]."""
    bias = table(buckets).movedim(-1, -3)
    return bias if bias.dim() == 4 else bias[None]


class PositionTables(nn.Module):
    """The position tables that encoder and decoder each own, under the released key names."""

    token_rp_bucket: Tensor
    image_rp_bucket: Tensor

    def build_position_tables(
        self, *, dim: int, heads: int, layers: int, positions: int, token_bucket_size: int, grid: int
    ) -> None:
        """Create embeddings, norms, buckets and the relative tables of `layers` layers."""
        self.grid = grid
        # fairseq keeps two rows more than there are positions.
        self.embed_positions = nn.Embedding(positions + 2, dim)
        self.embed_image_positions = nn.Embedding(grid * grid + 1, dim)
        self.pos_ln = nn.LayerNorm(dim)
        self.image_pos_ln = nn.LayerNorm(dim)
        self.register_buffer("token_rp_bucket", token_buckets(token_bucket_size))
        self.register_buffer("image_rp_bucket", image_buckets(grid))
        token_rows, image_rows = 2 * token_bucket_size - 1, (2 * grid - 1) ** 2 + 3
        self.token_rel_pos_table_list = nn.ModuleList(nn.Embedding(token_rows, heads) for _ in range(layers))
        self.image_rel_pos_table_list = nn.ModuleList(nn.Embedding(image_rows, heads) for _ in range(layers))

    @property
    def max_text_length(self) -> int:
        """Longest text that has embeddings and buckets."""
        return min(len(self.token_rp_bucket), self.embed_positions.num_embeddings)

    def image_buckets_of(self, query_ids: Tensor, key_ids: Tensor) -> Tensor:
        """Buckets of image position ids [..., t] and [..., s] -> [..., t, s]."""
        return self.image_rp_bucket[query_ids[..., :, None], key_ids[..., None, :]]
