"""Measures the pictures that a model has drawn: FID, Inception Score, and CLIP similarity to their captions.

FID (against real pictures, --real) and Inception Score (of one split, as released) need --inception-weights:
torch-fidelity's weights-inception-2015-12-05-6726825d.pth. CLIP similarity needs --clip-weights. All files are local,
nothing is downloaded. FID and Inception Score are those of TensorFlow's Inception, as in most papers; the released OFA
reports torchvision's. FID falls as pictures become more: compare it for equal numbers of them only.
"""

import argparse
import logging
import os
import pickle
import warnings
from collections.abc import Iterable, Iterator
from itertools import groupby, islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from ..data.images import ImageError, decode_image
from ..data.tsv import RowError, TsvFile
from ..drawing.drawn_pictures import DrawnPicture, add_ranks_argument, read_drawn_pictures
from ..drawing.picture_scorers import ClipScorer, unusable_weights
from ..extras import import_extra

logger = logging.getLogger(__name__)

Item = TypeVar("Item")

BATCH_SIZE = 32  # pictures at once
POOLED = 2048  # features of Inception that FID compares


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--pictures",
        type=Path,
        required=True,
        help="list of drawn pictures: a TSV file with the header id, caption, rank, score, path",
    )
    add_ranks_argument(parser)
    parser.add_argument("--real", type=Path, help="TSV file with real pictures, base64 or paths")
    parser.add_argument("--column", type=int, default=4, help="its column of pictures, from 0 (default 4)")
    parser.add_argument("--inception-weights", type=Path, help="for FID and Inception Score")
    parser.add_argument("--clip-weights", help="for CLIP similarity: open_clip's or OpenAI's file")
    parser.add_argument(
        "--clip-model", default="ViT-B-16", help="open_clip's name of their model (default ViT-B-16)"
    )


def run(args: argparse.Namespace) -> None:
    """Raises ValueError for options, files or pictures that can't be used."""
    if not (args.inception_weights or args.clip_weights):
        raise ValueError("nothing to measure: give --inception-weights, --clip-weights or both")
    if args.real and not args.inception_weights:
        raise ValueError("--real is for FID: give --inception-weights as well")
    drawn = read_drawn_pictures(args.pictures, args.ranks)
    if len(drawn) < 2:
        raise ValueError(f"{args.pictures}: expected at least two pictures of rank 0, found {len(drawn)}")
    # Both are loaded before the long work begins: a missing package or file is found at once.
    inception = Inception(args.inception_weights) if args.inception_weights else None
    clip = ClipScorer(args.clip_weights, args.clip_model) if args.clip_weights else None
    print(f"pictures          {len(drawn)}")
    if inception:
        for line in inception_lines(inception, drawn, args.real, args.column):
            print(line)
    if clip:
        print(f"CLIP similarity   {clip_similarity(clip, drawn):.4f}")


def clip_similarity(clip: ClipScorer, drawn: list[DrawnPicture]) -> float:
    """Mean cosine similarity of pictures and their captions."""
    scores = [
        clip([picture.load() for picture in batch], [picture.caption for picture in batch])
        for batch in in_batches(tqdm(drawn, "CLIP", unit="picture"))
    ]
    return float(np.concatenate(scores).mean())


def inception_lines(
    inception: "Inception", drawn: list[DrawnPicture], real: Path | None, column: int
) -> Iterator[str]:
    """Inception Score, and FID if there are real pictures, in words; raises ValueError if fewer than two are."""
    fid = inception.metrics_of("fid").FrechetInceptionDistance(GivenFeatures())
    with warnings.catch_warnings():  # that features are kept, and that one split has no deviation
        warnings.simplefilter("ignore")
        score = inception.metrics_of("inception").InceptionScore(nn.Identity(), splits=1)
        for pooled, logits in inception(picture.load() for picture in tqdm(drawn, "drawn", unit="picture")):
            fid.update(pooled, real=False)
            score.update(logits)
        yield f"Inception Score   {score.compute()[0]:.4f}"
    if real is None:
        return
    for pooled, _ in inception(real_pictures(TsvFile(real, [column]))):
        fid.update(pooled, real=True)
    count = int(fid.real_features_num_samples)
    if count < 2:
        raise ValueError(f"{real}: FID needs at least two real pictures, {count} can be read")
    yield f"FID               {fid.compute():.4f} (against {count} real pictures)"


def real_pictures(rows: TsvFile) -> Iterator[Image.Image]:
    """Those that can be read; the others are logged."""
    for i in tqdm(range(len(rows)), "real", unit="picture"):
        try:
            [value] = rows[i]
            yield decode_image(value, rows.path.parent)
        except RowError as error:
            logger.warning("left out: %s", error)
        except ImageError as error:
            logger.warning("left out: %s", rows.row_error(i, str(error)))


class Inception:
    """Features of TensorFlow's Inception from local weights.

    Raises:
        ValueError: a package is missing, or the weights are unusable.
        FileNotFoundError: no such file.
    """

    def __init__(self, weights: Path) -> None:
        module = import_extra("torch_fidelity.feature_extractor_inceptionv3", "metrics")
        self.metrics_of("fid")
        self.metrics_of("inception")
        if not weights.is_file():
            raise FileNotFoundError(f"{weights}: no such file of Inception weights")
        try:
            # torch-fidelity unpickles whatever it is given: only what the safe mode accepts gets there.
            torch.load(weights, map_location="cpu", weights_only=True)
            network = module.FeatureExtractorInceptionV3(
                "inception-v3-compat", [str(POOLED), "logits_unbiased"], os.fspath(weights)
            )
        except (RuntimeError, ValueError, TypeError, EOFError, pickle.UnpicklingError) as error:
            raise unusable_weights(os.fspath(weights), "torch-fidelity's Inception", error) from error
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.network = network.to(self.device)

    @staticmethod
    def metrics_of(name: str) -> Any:
        """A module of torchmetrics' picture metrics."""
        return import_extra(f"torchmetrics.image.{name}", "metrics")

    @torch.no_grad()
    def __call__(self, pictures: Iterable[Image.Image]) -> Iterator[tuple[Tensor, Tensor]]:
        """Pooled features [N, 2048] and logits without bias [N, 1008] of batches of pictures of any sizes."""
        for batch in in_batches(pictures):
            for _, same_size in groupby(sorted(batch, key=_size), key=_size):
                pixels = torch.stack([torch.from_numpy(np.array(picture)) for picture in same_size])
                pooled, logits = self.network(pixels.permute(0, 3, 1, 2).to(self.device))
                yield pooled.cpu(), logits.cpu()


class GivenFeatures(nn.Identity):
    """In the place of the network of torchmetrics' FID: it is given features."""

    def __init__(self) -> None:
        super().__init__()
        self.num_features = POOLED


def _size(picture: Image.Image) -> tuple[int, int]:
    return picture.size


def in_batches(items: Iterable[Item]) -> Iterator[list[Item]]:
    """Lists of `BATCH_SIZE` items, the last one of what is left."""
    rest = iter(items)
    while batch := list(islice(rest, BATCH_SIZE)):
        yield batch
