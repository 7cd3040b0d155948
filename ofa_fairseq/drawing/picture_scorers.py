"""How well pictures fit their texts: to rank drawn samples, to validate drawing, and as its reward.

Scores of one scorer can be compared with each other only, and of `CaptionLikelihood` only those for one text.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from hashlib import file_digest
from typing import Any, Self
from zipfile import ZipFile, is_zipfile

import numpy as np
import torch
from fairseq import checkpoint_utils, utils
from PIL import Image
from torch import Tensor, nn

from ..criterions.label_smoothed import supervised_positions, supervised_tokens, token_losses
from ..data.example import Batch, Example, collate
from ..data.image_transforms import Picture
from ..extras import import_extra
from ..metrics.cider import Floats
from ..metrics.row_metrics import checked_scores, import_function

# Pictures [N] and for each what it should show, a text (or, with --eval-clip-method ii_sim, a picture) -> scores [N],
# higher is better.
PictureScorer = Callable[[Sequence[Image.Image], Sequence[Any]], Floats]
# An image tower's transform: picture -> [3, S, S].
Preprocess = Callable[[Image.Image], Tensor]

Device = str | torch.device | None


def picture_scorer(
    name: str,
    clip_weights: str | None = None,
    caption_model: str | None = None,
    clip_model: str = "ViT-B-16",
    device: Device = None,
) -> PictureScorer:
    """The scorer of this name.

    Args:
        name: `clip`, see `ClipScorer`; `caption`, see `CaptionLikelihood`; or package.module:function, a function of
            your own with the interface of `PictureScorer`.
        clip_weights: file of CLIP's weights, for `clip`.
        caption_model: checkpoint of a captioning model, for `caption`.
        clip_model: open_clip's name of what the weights belong to.
        device: where the models go (default: a GPU if there is one).

    Raises:
        ValueError: no such scorer, or what it needs is missing or unusable.
        OSError: a file can't be read.
    """
    if name == "clip":
        if not clip_weights:
            raise ValueError("the picture scorer clip needs a file of CLIP weights (clip_weights)")
        return ClipScorer(clip_weights, clip_model, device)
    if name == "caption":
        if not caption_model:
            raise ValueError("the picture scorer caption needs a captioning checkpoint (caption_model)")
        return CaptionLikelihood.load(caption_model, device)
    if ":" in name:
        return partial(_own_scores, import_function("picture scorer", name), name)
    raise ValueError(f"unknown picture scorer {name!r}: expected clip, caption or package.module:function")


class ClipScorer:
    """Cosine similarity (-1 to 1) of CLIP's embeddings of picture and text, as released OFA ranks its drawings.

    Nothing is downloaded. A text beyond CLIP's 77 tokens is cut by its tokenizer.

    Args:
        weights: a checkpoint of open_clip (.pt, .bin or .safetensors), or OpenAI's own archive of the model (the
            ViT-B-16.pt that comes with the released OFA). Others than OpenAI's published archives are refused if they
            are TorchScript, which is a program.
        model: open_clip's name of the model that the weights belong to, one with CLIP's own tokenizer. OpenAI's weights
            in a checkpoint of open_clip need the name with -quickgelu; their archive brings the activation with it.
        device: default: a GPU if there is one.
        batch_size: pictures or texts at once.

    Raises:
        ValueError: open_clip is not installed; no such model; unusable weights, or those of another model.
        FileNotFoundError: no such file.
    """

    def __init__(
        self, weights: str, model: str = "ViT-B-16", device: Device = None, batch_size: int = 64
    ) -> None:
        open_clip = import_extra("open_clip", "clip")
        if not os.path.isfile(weights):
            raise FileNotFoundError(f"{weights}: no such file of CLIP weights")
        check_clip_model(model)
        self.device, self.batch_size = _device(device), batch_size
        # An absolute path is never the name of weights to download.
        load = load_openai_archive if is_torchscript(weights) else load_open_clip
        network, self.preprocess = load(os.path.abspath(weights), model)
        self.model = network.to(self.device).eval().requires_grad_(False)
        self.tokenize: Callable[[list[str]], Tensor] = open_clip.get_tokenizer(model)

    @torch.no_grad()
    def __call__(self, pictures: Sequence[Image.Image], targets: Sequence[str | Image.Image]) -> Floats:
        """Similarity of each picture to its text, or picture.

        Raises:
            ValueError: if the numbers of pictures and targets differ.
        """
        _check_as_many(pictures, targets)
        if not pictures:
            return np.zeros(0)
        # Samples of a row share its target.
        keys = [target if isinstance(target, str) else id(target) for target in targets]
        distinct = dict(zip(keys, targets))
        place = {key: i for i, key in enumerate(distinct)}
        # A reward is asked for in the middle of a training step, which may be in mixed precision.
        with torch.autocast(self.device.type, enabled=False):
            of_targets = torch.cat([self._embed(batch) for batch in self._batches(list(distinct.values()))])
            of_pictures = torch.cat([self._embed(batch) for batch in self._batches(pictures)])
        cosines = (of_pictures * of_targets[[place[key] for key in keys]]).sum(1)
        return cosines.double().cpu().numpy()

    def _batches(self, items: Sequence[Any]) -> list[Sequence[Any]]:
        return [items[i : i + self.batch_size] for i in range(0, len(items), self.batch_size)]

    def _embed(self, items: Sequence[Any]) -> Tensor:
        """Texts, or pictures."""
        if isinstance(items[0], str):
            return self.model.encode_text(self.tokenize(list(items)).to(self.device), normalize=True)
        pixels = torch.stack([self.preprocess(picture) for picture in items])
        return self.model.encode_image(pixels.to(self.device), normalize=True)


def check_clip_model(name: str) -> None:
    """Raise a ValueError for a name that open_clip does not know, or whose tokenizer it would download."""
    config = None if ":" in name else import_extra("open_clip", "clip").get_model_config(name)
    if config is None:
        raise ValueError(f"open_clip has no model {name!r}; expected a name as open_clip.list_models() has")
    if any(key.startswith("hf_") for key in config["text_cfg"]) or "siglip" in name.lower():
        raise ValueError(f"the tokenizer of {name} would be downloaded; take a model with CLIP's own")


def is_torchscript(path: str) -> bool:
    """Whether a file is a TorchScript archive."""
    if not is_zipfile(path):
        return False
    with ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def load_open_clip(path: str, name: str) -> tuple[Any, Preprocess]:
    """Model and transform of a checkpoint of open_clip, which is unpickled in torch's safe mode.

    Raises ValueError for unusable weights.
    """
    open_clip = import_extra("open_clip", "clip")
    try:
        model, _, preprocess = open_clip.create_model_and_transforms(name, path, weights_only=True)
    except Exception as error:  # a damaged or foreign file can fail in any way
        raise unusable_weights(path, f"CLIP model {name}", error) from error
    return model, preprocess


def load_openai_archive(path: str, name: str) -> tuple[Any, Preprocess]:
    """Model and transform of the archive that OpenAI published under a name.

    Raises ValueError for any other file, by its SHA-256.
    """
    open_clip = import_extra("open_clip", "clip")
    with open(path, "rb") as file:
        digest = file_digest(file, "sha256").hexdigest()
    # The last folder of OpenAI's address is the digest.
    published = open_clip.get_pretrained_url(name, "openai").split("/")[-2:-1]
    if digest not in published:
        raise ValueError(
            f"{path}: a TorchScript archive, which is a program, and not the one that OpenAI published for {name}"
            f" (SHA-256 {digest}, expected {''.join(published) or 'none: there is no such archive'})"
        )
    model = open_clip.load_openai_model(path, precision="fp32", device="cpu")
    return model, open_clip.image_transform(model.visual.image_size, is_train=False)


def unusable_weights(path: str, what: str, error: Exception) -> ValueError:
    """The error for a file that can't be loaded; of the reason's many lines the beginning."""
    reason = " ".join(str(error).split())
    return ValueError(f"{path}: can't be loaded as weights of {what}: {reason[:300]}")


class CaptionLikelihood:
    """Mean log-probability (base e, at most 0) per token, the end included, of a text as the picture's caption.

    The text gets the form of training captions: punctuation is deleted unless the model's task keeps it, and at most
    `--max-tgt-length` words are scored.

    Args:
        model: a captioning model; it is put into evaluation mode.
        task: its task.
        batch_size: pictures at once.

    Raises:
        ValueError: the task is not captioning.
    """

    def __init__(self, model: nn.Module, task: Any, batch_size: int = 16) -> None:
        if getattr(task, "instruction_name", None) != "caption":
            raise ValueError(f"expected a captioning model (task caption), got one of {type(task).__name__}")
        self.model, self.task, self.batch_size = model.eval(), task, batch_size

    @classmethod
    def load(cls, checkpoint: str, device: Device = None, batch_size: int = 16) -> Self:
        """From a checkpoint of fairseq-train, with the options that it was trained with.

        Raises:
            ValueError: not a captioning model, or a file that the checkpoint names is not here.
            OSError: no such checkpoint.
        """
        [model], _, task = checkpoint_utils.load_model_ensemble_and_task([checkpoint])
        return cls(model.to(_device(device)).requires_grad_(False), task, batch_size)

    @torch.no_grad()
    def __call__(self, pictures: Sequence[Image.Image], texts: Sequence[str]) -> Floats:
        """Raises ValueError if the numbers of pictures and texts differ."""
        _check_as_many(pictures, texts)
        examples = [self._example(picture, text) for picture, text in zip(pictures, texts)]
        batches = [examples[i : i + self.batch_size] for i in range(0, len(examples), self.batch_size)]
        return np.concatenate([np.zeros(0), *map(self._score, batches)])

    def _example(self, picture: Image.Image, text: str) -> Example:
        words = self.task.clean_output(text).split()[: self.task.cfg.max_tgt_length]
        pixels = self.task.transform(picture.convert("RGB"))
        return self.task.make_example("", {"caption": " ".join(words)}, [Picture(pixels, picture.size)])

    def _score(self, examples: Sequence[Example]) -> Floats:
        weight = next(self.model.parameters())
        pad = self.task.dictionary.pad()
        batch: Batch = utils.apply_to_sample(
            lambda tensor: tensor.to(weight if tensor.is_floating_point() else weight.device),
            collate(examples, pad),
        )
        # A reward is asked for in the middle of a training step, which may be in mixed precision.
        with torch.autocast(weight.device.type, enabled=False):
            return mean_log_probabilities(self.model, batch, pad).cpu().numpy()


def mean_log_probabilities(model: nn.Module, batch: Batch, pad: int) -> Tensor:
    """Of each row's targets, float64 [B]."""
    positions = supervised_positions(batch["target"], pad)
    logits = model(**batch["net_input"], output_positions=positions)[0]
    tokens = supervised_tokens(logits, batch, positions, pad)
    nll = token_losses(tokens.logits, tokens.target).nll.double()
    rows, length = batch["target"].shape
    summed = nll.new_zeros(rows).index_add(0, positions // length, nll)
    return -summed / batch["target"].ne(pad).sum(1)


def _check_as_many(pictures: Sequence[Image.Image], texts: Sequence[Any]) -> None:
    if len(pictures) != len(texts):
        raise ValueError(
            f"expected a text for each picture, got {len(pictures)} pictures, {len(texts)} texts"
        )


def _device(device: Device) -> torch.device:
    return torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def _own_scores(
    function: PictureScorer, name: str, pictures: Sequence[Image.Image], texts: Sequence[str]
) -> Floats:
    """Scores of a function that nobody has checked; any sequence of numbers will do."""
    return checked_scores("picture scorer", name, function(pictures, texts), texts)
