"""A small image tokenizer with random weights, for tests of what uses one."""

from pathlib import Path

import torch

from ofa_fairseq.models.image_tokenizer import ImageTokenizer, TokenizerConfig
from ofa_fairseq.models.vqgan import Architecture


def save_small_tokenizer(folder: Path) -> tuple[str, ...]:
    """Of 16 codes, into last.ckpt and model.yaml; returns the flags that name them."""
    torch.manual_seed(0)
    small = Architecture(ch=32, ch_mult=(1, 1, 1, 1), num_res_blocks=1, z_channels=32, resolution=64)
    config = TokenizerConfig(small, embed_dim=2, n_embed=16, quantizer="fsq", levels=(4, 4))
    ImageTokenizer(config).save(folder / "last.ckpt", folder / "model.yaml")
    return (
        *("--vqgan-model-path", str(folder / "last.ckpt")),
        *("--vqgan-config-path", str(folder / "model.yaml")),
    )
