"""Models for tests: of any preset and vocabulary, and small ones filled with weights that make a difference.

They are typed `Any`: tests reach into parts that a model may lack.
"""

from argparse import Namespace
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from fairseq import options as fairseq_options
from fairseq.data import Dictionary
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from omegaconf import DictConfig
from reference_weights import fill
from torch import Tensor

import ofa_fairseq  # noqa: F401  (registers model and task)
from ofa_fairseq.models.config import RECIPE_SWITCHES, apply_preset
from ofa_fairseq.models.ofa import OFAModel

RELEASED_VOCABULARY = 59457
# Two layers a side, pictures of up to 8 x 8 patches, 4 x 4 codes a drawn picture.
SMALL: dict[str, Any] = {
    "encoder_embed_dim": 32,
    "encoder_ffn_embed_dim": 48,
    "encoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_embed_dim": 32,
    "decoder_ffn_embed_dim": 48,
    "decoder_layers": 2,
    "decoder_attention_heads": 2,
    "image_bucket_size": 8,
    "code_image_size": 32,
}


def numbered_dictionary(size: int, mask: bool = True) -> Dictionary:
    """fairseq's four specials, `<mask>` if wanted, and numbered words: `size` symbols in all."""
    dictionary = Dictionary()
    if mask:
        dictionary.add_symbol("<mask>")
    for i in range(size - len(dictionary)):
        dictionary.add_symbol(f"word{i}")
    return dictionary


def task_of(dictionary: Dictionary) -> Any:
    """As much of a task as building a model asks for."""
    return SimpleNamespace(source_dictionary=dictionary, target_dictionary=dictionary)


def build_model(arch: str, vocabulary: int | Dictionary = 40, **options: Any) -> Any:
    """A model of a preset, with the options given; the vocabulary by size or as a dictionary."""
    dictionary = numbered_dictionary(vocabulary) if isinstance(vocabulary, int) else vocabulary
    cfg = Namespace(**options)
    apply_preset(arch, cfg)
    return OFAModel.build_model(cfg, task_of(dictionary))


def small_model(vocabulary: int | Dictionary = 40, prefix: str = "", **options: Any) -> Any:
    """A filled model of about 1.6 million parameters, in evaluation mode."""
    return fill(build_model("ofa_nano", vocabulary, **{**SMALL, **options}), prefix).eval()


def tiny_model(**options: Any) -> Any:
    """The model that the reference outputs were measured on, in evaluation mode."""
    options = {**RECIPE_SWITCHES, "code_image_size": 256, **options}
    return fill(build_model("ofa_tiny", RELEASED_VOCABULARY, **options)).eval()


def normal_images(seed: int, shape: tuple[int, ...]) -> Tensor:
    """Pictures of standard normal numbers, as in the reference outputs."""
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(shape).astype(np.float32))


def random_tokens(seed: int, rows: int, length: int, vocabulary: int = 40, first: int = 5) -> Tensor:
    """`<s>` and then ordinary words, [rows, length]."""
    tokens = torch.randint(first, vocabulary, (rows, length), generator=torch.Generator().manual_seed(seed))
    tokens[:, 0] = 0
    return tokens


def parse_flags(*flags: str) -> DictConfig:
    """The configuration that fairseq-train makes of a command line for task `caption`."""
    parser = fairseq_options.get_training_parser()
    args = fairseq_options.parse_args_and_arch(parser, ["train.tsv,valid.tsv", "--task", "caption", *flags])
    return convert_namespace_to_omegaconf(args)


def model_from_flags(*flags: str, vocabulary: int = 40) -> Any:
    """What fairseq-train builds of these flags."""
    return OFAModel.build_model(parse_flags(*flags).model, task_of(numbered_dictionary(vocabulary)))


# `SMALL` as flags.
SMALL_FLAGS = (
    "--arch",
    "ofa_nano",
    *(part for key, value in SMALL.items() for part in ("--" + key.replace("_", "-"), str(value))),
)
