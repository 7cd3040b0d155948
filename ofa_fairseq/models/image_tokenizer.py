"""Pictures to codes and back: the VQGAN whose codes OFA draws with, and small tokenizers of the same build.

`ImageTokenizer.load` reads the public Gumbel VQGAN (f8, 8,192 codes: `last.ckpt`, `model.yaml`) as well as what
`python -m ofa_fairseq.prepare train_tokenizer` writes. Codes are the best ones, never sampled as the original's are.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.functional import center_crop, pil_to_tensor

from ..files import atomic_write
from .quantizers import FiniteScalarQuantizer, GumbelQuantizer, NearestQuantizer, Quantized, Quantizer
from .vqgan import Architecture, Decoder, Encoder

QUANTIZERS = ("gumbel", "nearest", "fsq")

# What `ddconfig` may also say, and the only value that there is code for; None: it does not change the outputs.
_FIXED_SETTINGS: dict[str, Any] = {
    "double_z": False,
    "in_channels": 3,
    "out_ch": 3,
    "resamp_with_conv": True,
    "give_pre_end": False,
    "tanh_out": False,
    "use_linear_attn": False,
    "attn_type": "vanilla",
    "use_timestep": False,
    "dropout": None,
}


@dataclass(frozen=True)
class TokenizerConfig:
    """What a model.yaml says. `levels` are those of `fsq`, whose number of codes is their product."""

    architecture: Architecture
    embed_dim: int
    n_embed: int
    quantizer: str = "gumbel"
    levels: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Raises ValueError for sizes that do not fit each other."""
        if self.quantizer not in QUANTIZERS:
            raise ValueError(f"quantizer {self.quantizer!r}: expected one of {', '.join(QUANTIZERS)}")
        if self.quantizer == "fsq" and (
            math.prod(self.levels) != self.n_embed or min(self.levels, default=0) < 2
        ):
            raise ValueError(
                f"levels {list(self.levels)}: expected numbers from 2 whose product is n_embed, {self.n_embed}"
            )
        if self.quantizer == "fsq" and len(self.levels) != self.embed_dim:
            raise ValueError(f"embed_dim {self.embed_dim}: expected {len(self.levels)}, the number of levels")

    @classmethod
    def from_yaml(cls, path: str | Path) -> TokenizerConfig:
        """Reads `model.params` of a taming-style YAML.

        Raises:
            OSError: the file can't be read.
            ValueError: no YAML, a setting is missing or has a value that there is no code for.
        """
        try:
            content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: expected a YAML file ({' '.join(str(error).split())})") from error
        try:
            return _parse_model(content["model"])
        except (KeyError, TypeError, AttributeError) as error:
            what = f"the setting {error}" if isinstance(error, KeyError) else "settings by name"
            raise ValueError(
                f"{path}: expected model.params with a ddconfig; {what} is missing or wrong"
            ) from error
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def to_yaml(self, path: Path) -> None:
        """Writes what `from_yaml` reads."""
        ddconfig = {key: _plain(value) for key, value in asdict(self.architecture).items()}
        params = {
            "embed_dim": self.embed_dim,
            "n_embed": self.n_embed,
            "quantizer": self.quantizer,
            "levels": list(self.levels),
            "ddconfig": ddconfig | {"double_z": False, "in_channels": 3, "out_ch": 3, "dropout": 0.0},
        }
        content = {"model": {"target": "ofa_fairseq.models.image_tokenizer.ImageTokenizer", "params": params}}
        with atomic_write(path) as file:
            yaml.safe_dump(content, file, sort_keys=False)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _parse_model(model: dict[str, Any]) -> TokenizerConfig:
    params = model["params"]
    if params.get("remap") is not None:
        raise ValueError("remap: codes are not renumbered here, expected none")
    # The published models of nearest codes tell themselves from the Gumbel one by their class.
    published = "nearest" if str(model.get("target", "")).endswith(".VQModel") else "gumbel"
    return TokenizerConfig(
        architecture=_parse_ddconfig(params["ddconfig"]),
        embed_dim=_number("embed_dim", params["embed_dim"]),
        n_embed=_number("n_embed", params["n_embed"]),
        quantizer=params.get("quantizer", published),
        levels=_numbers("levels", params.get("levels", [])),
    )


def _parse_ddconfig(settings: dict[str, Any]) -> Architecture:
    parsed: dict[str, Any] = {}
    for key, value in settings.items():
        if key in _OWN_SETTINGS:
            parsed[key] = _OWN_SETTINGS[key](key, value)
        elif key not in _FIXED_SETTINGS:
            raise ValueError(f"ddconfig has the unknown setting {key}")
        elif _FIXED_SETTINGS[key] not in (None, value):
            raise ValueError(f"{key}: {value} is not supported, expected {_FIXED_SETTINGS[key]}")
    missing = [
        field.name for field in fields(Architecture) if field.default is MISSING and field.name not in parsed
    ]
    if missing:
        raise ValueError(f"ddconfig: expected it to have {', '.join(missing)}")
    return Architecture(**parsed)


def _number(key: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{key}: expected a whole number from 1, got {value!r}")
    return value


def _numbers(key: str, value: Any) -> tuple[int, ...]:
    if not isinstance(value, list | tuple):
        raise ValueError(f"{key}: expected a list of whole numbers, got {value!r}")
    return tuple(_number(key, item) for item in value)


def _text(key: str, value: Any) -> str:
    return str(value)


def _switch(key: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{key}: expected true or false, got {value!r}")
    return value


_OWN_SETTINGS: dict[str, Callable[[str, Any], Any]] = {
    **dict.fromkeys(("ch", "num_res_blocks", "z_channels", "resolution", "patch_size"), _number),
    **dict.fromkeys(("ch_mult", "attn_resolutions"), _numbers),
    "norm": _text,
    "middle": _switch,
}


class ImageTokenizer(nn.Module):
    """The whole tokenizer.

    Attributes:
        factor: pixels per code along a side.
        num_codes: codes are 0 to num_codes - 1.
        config: what its YAML says.
    """

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        architecture = config.architecture
        self.config = config
        self.factor = architecture.factor
        self.num_codes = config.n_embed
        self.encoder = Encoder(architecture)
        self.decoder = Decoder(architecture)
        self.quantize = _build_quantizer(config)
        features = architecture.z_channels if config.quantizer == "gumbel" else config.embed_dim
        self.quant_conv = nn.Conv2d(architecture.z_channels, features, 1)
        self.post_quant_conv = nn.Conv2d(config.embed_dim, architecture.z_channels, 1)

    @classmethod
    def load(cls, checkpoint: str | Path, config: str | Path) -> ImageTokenizer:
        """The tokenizer of a checkpoint and its YAML, in evaluation mode.

        Args:
            checkpoint: a file with an entry `state_dict`; its `loss.*` (discriminator) is left out.
            config: the taming-style YAML.

        Raises:
            OSError: a file can't be read.
            ValueError: no such checkpoint or YAML, or entries that are missing, left over or of another shape.
        """
        tokenizer = cls(TokenizerConfig.from_yaml(config))
        state = _read_state(Path(checkpoint))
        _check_entries(Path(checkpoint), Path(config), state, tokenizer.state_dict())
        tokenizer.load_state_dict(state)
        return tokenizer.eval()

    def save(self, checkpoint: Path, config: Path) -> None:
        """Writes what `load` reads, the checkpoint last."""
        self.config.to_yaml(config)
        with atomic_write(checkpoint, "wb") as file:
            torch.save({"state_dict": {key: value.cpu() for key, value in self.state_dict().items()}}, file)

    @torch.no_grad()
    def encode(self, pictures: Tensor) -> Tensor:
        """Pictures [B, 3, H, W] in -1..1 -> codes [B, H / factor, W / factor], always the same ones.

        Raises ValueError for another shape or sides that are no multiples of `factor`.
        """
        shape = tuple(pictures.shape)
        if (
            len(shape) != 4
            or shape[1] != 3
            or min(shape) < 1
            or shape[2] % self.factor
            or shape[3] % self.factor
        ):
            raise ValueError(
                f"expected pictures [B, 3, H, W] with sides that are multiples of {self.factor}, got {list(shape)}"
            )
        return self.quantize.encode(self.features(pictures))

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Codes [B, h, w] -> pictures [B, 3, factor h, factor w] in -1..1.

        Raises ValueError for another shape or codes outside 0 .. num_codes - 1.
        """
        if codes.dim() != 3 or codes.is_floating_point() or not codes.numel():
            raise ValueError(
                f"expected whole numbers as codes [B, h, w], got {codes.dtype} {list(codes.shape)}"
            )
        low, high = int(codes.min()), int(codes.max())
        if low < 0 or high >= self.num_codes:
            raise ValueError(f"expected codes from 0 to {self.num_codes - 1}, got {low if low < 0 else high}")
        return self._draw(self.quantize.lookup(codes)).clamp(-1, 1)

    def forward(self, pictures: Tensor, progress: float = 1.0) -> tuple[Tensor, Quantized]:
        """For training: pictures [B, 3, H, W] -> reconstructions, not clamped, and what the quantizer made.

        `progress` in 0..1 is how much of the training is done.
        """
        return self.reconstruct(self.features(pictures), progress)

    def reconstruct(self, features: Tensor, progress: float) -> tuple[Tensor, Quantized]:
        """`forward` from `features` on."""
        quantized = self.quantize(features, progress)
        return self._draw(quantized.vectors), quantized

    def code_vectors(self) -> Tensor:
        """What each code stands for in the decoder [num_codes, embed_dim]."""
        codes = torch.arange(self.num_codes, device=self.post_quant_conv.weight.device)
        return self.quantize.lookup(codes[None, None])[0, :, 0].T

    def features(self, pictures: Tensor) -> Tensor:
        """What the quantizer gets [B, C, H / factor, W / factor]."""
        return self.quant_conv(self.encoder(pictures))

    def _draw(self, vectors: Tensor) -> Tensor:
        return self.decoder(self.post_quant_conv(vectors))


def _build_quantizer(config: TokenizerConfig) -> Quantizer:
    if config.quantizer == "gumbel":
        return GumbelQuantizer(config.n_embed, config.architecture.z_channels, config.embed_dim)
    if config.quantizer == "nearest":
        return NearestQuantizer(config.n_embed, config.embed_dim)
    return FiniteScalarQuantizer(config.levels)


class _Callback:
    """Stands for a class that lightning's checkpoints name beside the weights; nothing is ever made of it."""


_LIGHTNING_CLASSES: list[Any] = [
    (_Callback, f"{package}.callbacks.model_checkpoint.ModelCheckpoint")
    for package in ("pytorch_lightning", "lightning.pytorch")
]


def _read_state(path: Path) -> dict[str, Tensor]:
    """The state dict of a checkpoint without `loss.*`."""
    try:
        with torch.serialization.safe_globals(_LIGHTNING_CLASSES):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (UnpicklingError, EOFError, RuntimeError, KeyError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"{path}: expected a checkpoint of weights and plain values only ({reason})"
        ) from error
    state = content.get("state_dict") if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path}: expected a checkpoint with an entry state_dict of tensors")
    return {key: value for key, value in state.items() if not key.startswith("loss.")}


def _check_entries(path: Path, config: Path, state: dict[str, Tensor], own: dict[str, Tensor]) -> None:
    missing, foreign = [key for key in own if key not in state], [key for key in state if key not in own]
    wrong = [key for key in own if key in state and own[key].shape != state[key].shape]
    problems = []
    if missing:
        problems.append(f"lacks {len(missing)} entries ({_some(missing)})")
    if foreign:
        problems.append(f"has {len(foreign)} others ({_some(foreign)})")
    if wrong:
        key = wrong[0]
        shapes = f"{key} {list(state[key].shape)}, expected {list(own[key].shape)}"
        problems.append(f"has {len(wrong)} of another shape ({shapes})")
    if problems:
        raise ValueError(f"{path} does not fit {config}: it {'; it '.join(problems)}")


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:3]) + (", ..." if len(keys) > 3 else "")


def square(image: Image.Image, side: int) -> Image.Image:
    """RGB with the shorter side resized to `side` (LANCZOS, as for the released codes), and the middle cut out."""
    scale = side / min(image.size)
    size = (max(side, round(image.width * scale)), max(side, round(image.height * scale)))
    return center_crop(image.convert("RGB").resize(size, Image.Resampling.LANCZOS), [side, side])


def picture_input(image: Image.Image, side: int) -> Tensor:
    """The `square` of a picture as the tokenizer wants it [3, side, side], -1 to 1."""
    return scaled(pil_to_tensor(square(image, side)))


def scaled(pixels: Tensor) -> Tensor:
    """Bytes to -1..1."""
    return pixels.float() / 127.5 - 1


def to_images(pixels: Tensor) -> list[Image.Image]:
    """Pixels [B, 3, H, W] in -1..1 (others are cut off) as RGB pictures."""
    values = ((pixels.detach().float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return [Image.fromarray(np.ascontiguousarray(array)) for array in values.movedim(1, -1).cpu().numpy()]
