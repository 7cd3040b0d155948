"""From feature vectors to codes and back: the quantizers of image tokenizers.

All have `encode`, `lookup` and, for training, `forward`, which gives differentiable vectors, codes and a loss.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

COMMITMENT = 0.25  # weight of the features' distance from their codes, beside the codes' from the features
GUMBEL_KL = 5e-4
GUMBEL_TEMPERATURES = (1.0, 1 / 16)  # at the beginning and the end of a training


class Quantized(NamedTuple):
    vectors: Tensor  # [B, embed_dim, h, w], gradient to the features
    codes: Tensor  # [B, h, w]
    loss: Tensor  # [], what the quantizer adds to the reconstruction error


class Quantizer(nn.Module):
    num_codes: int

    def encode(self, z: Tensor) -> Tensor:
        """Features [B, C, h, w] -> codes [B, h, w]."""
        raise NotImplementedError

    def lookup(self, codes: Tensor) -> Tensor:
        """Codes [B, h, w] -> vectors [B, embed_dim, h, w]."""
        raise NotImplementedError

    def forward(self, z: Tensor, progress: float) -> Quantized:
        """For training; `progress` in 0..1 is how much of the training is done."""
        raise NotImplementedError


class GumbelQuantizer(Quantizer):
    """A 1x1 convolution scores the codes (Jang et al. 2017): samples in training, the best one otherwise."""

    def __init__(self, num_codes: int, features: int, embed_dim: int) -> None:
        super().__init__()
        self.num_codes = num_codes
        self.proj = nn.Conv2d(features, num_codes, 1)
        self.embed = nn.Embedding(num_codes, embed_dim)

    def encode(self, z: Tensor) -> Tensor:
        return self.proj(z).argmax(dim=1)

    def lookup(self, codes: Tensor) -> Tensor:
        return self.embed(codes).movedim(-1, 1)

    def forward(self, z: Tensor, progress: float) -> Quantized:
        scores = self.proj(z).float()
        first, last = GUMBEL_TEMPERATURES
        temperature = last + (first - last) * (1 + math.cos(math.pi * progress)) / 2
        chosen = F.gumbel_softmax(scores, tau=temperature, hard=True, dim=1)
        log_share = scores.log_softmax(dim=1)
        # from the uniform distribution: a training that settles on few codes early never finds the others
        divergence = (log_share.exp() * (log_share + math.log(self.num_codes))).sum(dim=1).mean()
        vectors = torch.einsum("bnhw,nd->bdhw", chosen, self.embed.weight)
        return Quantized(vectors, chosen.argmax(dim=1), GUMBEL_KL * divergence)


class NearestQuantizer(Quantizer):
    """The code whose vector is nearest (van den Oord et al. 2017)."""

    def __init__(self, num_codes: int, embed_dim: int) -> None:
        super().__init__()
        self.num_codes = num_codes
        self.embedding = nn.Embedding(num_codes, embed_dim)
        nn.init.uniform_(self.embedding.weight, -1 / num_codes, 1 / num_codes)

    def encode(self, z: Tensor) -> Tensor:
        return self._distances(z).argmin(dim=-1)

    def lookup(self, codes: Tensor) -> Tensor:
        return self.embedding(codes).movedim(-1, 1)

    def forward(self, z: Tensor, progress: float) -> Quantized:
        z = z.float()
        codes = self.encode(z)
        vectors = self.lookup(codes)
        loss = F.mse_loss(vectors, z.detach()) + COMMITMENT * F.mse_loss(z, vectors.detach())
        return Quantized(z + (vectors - z).detach(), codes, loss)

    def _distances(self, z: Tensor) -> Tensor:
        """Squared, up to a number of each feature's own [B, h, w, num_codes]."""
        weight = self.embedding.weight
        return weight.square().sum(dim=1) - 2 * z.movedim(1, -1) @ weight.T

    @torch.no_grad()
    def move_codes(self, dead: Tensor, z: Tensor) -> None:
        """Put the codes `dead` [n] on features out of z [B, C, h, w], drawn in proportion to their squared error.

        The error draws them to what is badly represented: most features are those of plain background, which has
        its code.
        """
        features = z.movedim(1, -1).flatten(0, -2).float()
        error = (features - self.embedding.weight[self.encode(z.float()).flatten()]).square().sum(dim=1)
        # a small share for all: there may be fewer errors than codes
        chosen = torch.multinomial(
            error + error.mean() * 1e-3 + 1e-12, len(dead), replacement=len(dead) > len(features)
        )
        self.embedding.weight[dead] = features[chosen]


class DeadCodes:
    """Revives codes of a NearestQuantizer that no feature has chosen for `patience` updates; at first all of them."""

    def __init__(self, quantizer: NearestQuantizer, patience: int) -> None:
        self.quantizer, self.patience = quantizer, patience
        self.idle = torch.full((quantizer.num_codes,), patience)  # updates since a code was chosen

    def revive(self, z: Tensor, codes: Tensor) -> int:
        """Count an update with features z [B, C, h, w] and their codes; returns how many codes were moved."""
        self.idle += 1
        self.idle[codes.flatten().unique().cpu()] = 0
        dead = torch.nonzero(self.idle > self.patience).flatten()
        if len(dead):
            self.quantizer.move_codes(dead.to(z.device), z.detach())
            self.idle[dead] = 0
        return len(dead)


class FiniteScalarQuantizer(Quantizer):
    """Each channel is rounded to one of a few levels (Mentzer et al. 2023); no codebook, so no dead codes.

    A code's digits are the channels' levels, the first channel the lowest digit: with levels 8, 8, 8 the code is
    a + 8 b + 64 c.
    """

    levels: Tensor
    basis: Tensor

    def __init__(self, levels: Sequence[int]) -> None:
        super().__init__()
        self.num_codes = math.prod(levels)
        self.register_buffer("levels", torch.tensor(levels), persistent=False)
        basis = [math.prod(levels[:i]) for i in range(len(levels))]
        self.register_buffer("basis", torch.tensor(basis), persistent=False)

    def encode(self, z: Tensor) -> Tensor:
        numbers = self._bounded(z).round().long()
        return (numbers * self.basis[:, None, None]).sum(dim=1)

    def lookup(self, codes: Tensor) -> Tensor:
        numbers = codes.unsqueeze(1) // self.basis[:, None, None] % self.levels[:, None, None]
        return self._centred(numbers)

    def forward(self, z: Tensor, progress: float) -> Quantized:
        bounded = self._bounded(z.float())
        vectors = self._centred(bounded + (bounded.round() - bounded).detach())
        return Quantized(vectors, self.encode(z.float()), z.new_zeros(()))

    def _bounded(self, z: Tensor) -> Tensor:
        """In -0.5 .. levels - 0.5, open: each level has an interval of the same length."""
        # a hair less: the border itself would round to a level too many
        return (self.levels[:, None, None] * (1 - 1e-3)) * (z.tanh() / 2) + (
            self.levels[:, None, None] - 1
        ) / 2

    def _centred(self, numbers: Tensor) -> Tensor:
        """Levels 0 .. n - 1 to -1 .. 1."""
        return 2 * numbers / (self.levels[:, None, None] - 1) - 1
