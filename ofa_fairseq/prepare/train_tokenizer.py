"""Trains a small image tokenizer on a folder of pictures or on the picture column of a TSV.

Writes last.ckpt and model.yaml, which ImageTokenizer.load and the command `image_codes` read; train_log.tsv, with the
use of the codes; and before_after.png: held-out pictures, each above its reconstruction. Started again with the same
options, an interrupted training goes on where its last state was written, and a finished one is left alone.
"""

import argparse
import json
import logging
import math
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from ..data.drawing import contact_sheet
from ..files import atomic_write
from ..models.image_tokenizer import QUANTIZERS, ImageTokenizer, TokenizerConfig, scaled, to_images
from ..models.quantizers import DeadCodes, NearestQuantizer
from ..models.vqgan import Architecture
from .picture_sources import PictureSource, open_source, read_squares

logger = logging.getLogger(__name__)

FACTOR = 8  # pixels per code along a side
EMBED_DIM = {"gumbel": 64, "nearest": 16}
WARMUP_SHARE = 0.05
GROUND_SHARE = 0.5  # of the updates, until the weight of the ground's codes is reached
PATIENCE = 200  # updates that a code may go unused
SHEET_PICTURES = 16
MOST_HELD_OUT = 200  # pictures, unless told
EVALUATION_BATCH = 100
REACH = 4  # pixels around a figure that weigh as much as it does
PLAIN = 0.02  # distance from the ground, of 1, up to which a pixel belongs to it

STATE, SETTINGS, LOG, SHEET = "state.pt", "settings.json", "train_log.tsv", "before_after.png"
CHECKPOINT, CONFIG = "last.ckpt", "model.yaml"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data", type=Path, required=True, help="folder of pictures, searched through, or a TSV file"
    )
    parser.add_argument("--column", type=int, default=2, help="of the pictures in a TSV, from 0 (default 2)")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument(
        "--side",
        type=int,
        default=64,
        help="pixels along a side of the squares that pictures are made (default 64)",
    )
    parser.add_argument(
        "--crop",
        type=int,
        default=32,
        help="pixels along a side of the part of a picture that is learned from, drawn by its foreground (default 32)",
    )
    parser.add_argument("--codes", type=int, default=512, help="number of codes (default 512)")
    parser.add_argument(
        "--quantizer", choices=QUANTIZERS, default="fsq", help="fsq: a power of two of codes (default fsq)"
    )
    parser.add_argument(
        "--channels",
        type=int,
        default=48,
        help="of the finest level; the other has twice as many (default 48)",
    )
    parser.add_argument("--updates", type=int, default=3200, help="default 3200")
    parser.add_argument("--batch-size", type=int, default=32, help="default 32")
    parser.add_argument("--lr", type=float, default=3e-3, help="highest learning rate (default 3e-3)")
    parser.add_argument("--seed", type=int, default=1, help="default 1")
    parser.add_argument(
        "--foreground-weight",
        type=float,
        default=10.0,
        help="how much more a pixel's error weighs that is as far from the picture's median colour as black from white,"
        " and those around it, so that small figures on plain ground are not lost (default 10)",
    )
    parser.add_argument(
        "--ground-weight",
        type=float,
        default=1.0,
        help="how much it weighs that plain ground has codes other than one in a picture (default 1)",
    )
    parser.add_argument("--valid", type=int, help="pictures held out (default: a tenth, at most 200)")
    parser.add_argument(
        "--max-pictures", type=int, default=200_000, help="of more, so many are drawn (default 200000)"
    )
    parser.add_argument(
        "--bf16", action="store_true", help="mixed precision, where the machine calculates in bfloat16"
    )
    parser.add_argument("--log-interval", type=int, default=100, help="updates (default 100)")
    parser.add_argument("--save-interval", type=int, default=500, help="updates (default 500)")


def run(args: argparse.Namespace) -> None:
    """Raises ValueError for unusable options or too few pictures."""
    _check(args)
    source = open_source(args.data, args.column)
    settings = {name: getattr(args, name) for name in _RESULT_OPTIONS} | {"data": source.digest}
    stamp = args.out / SETTINGS
    before = json.loads(stamp.read_text(encoding="utf-8")) if stamp.exists() else None
    same = before == json.loads(json.dumps(settings))
    if same and (args.out / CHECKPOINT).exists() and not (args.out / STATE).exists():
        logger.info("%s has this tokenizer already", args.out)
        return
    args.out.mkdir(parents=True, exist_ok=True)
    if not same:
        for name in (STATE, CHECKPOINT, CONFIG, LOG, SHEET):
            (args.out / name).unlink(missing_ok=True)
        with atomic_write(stamp) as file:
            json.dump(settings, file)
    train, valid = _read_pictures(source, args)
    training = Training(args, train, valid)
    with suppress(FileNotFoundError):
        training.load_state(args.out / STATE)
    training.run()


# What the result depends on.
_RESULT_OPTIONS = (
    "side", "crop", "codes", "quantizer", "channels", "updates", "batch_size", "lr", "seed", "foreground_weight",
    "ground_weight", "valid", "max_pictures", "bf16", "log_interval",
)  # fmt: skip


def _check(args: argparse.Namespace) -> None:
    for name in (
        "codes",
        "channels",
        "updates",
        "batch_size",
        "valid",
        "max_pictures",
        "log_interval",
        "save_interval",
    ):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} {getattr(args, name)}: expected a number from 1")
    for name in ("side", "crop"):
        if getattr(args, name) < FACTOR or getattr(args, name) % FACTOR:
            raise ValueError(f"--{name} {getattr(args, name)}: expected a multiple of {FACTOR}")
    if not args.lr > 0 or min(args.foreground_weight, args.ground_weight) < 0:
        raise ValueError("expected --lr above 0, --foreground-weight and --ground-weight from 0")
    small_config(args)


def small_config(args: argparse.Namespace) -> TokenizerConfig:
    """The small build: nothing is calculated at the full size, and codes depend on what is near."""
    levels = _levels(args.codes) if args.quantizer == "fsq" else ()
    architecture = Architecture(
        ch=args.channels,
        ch_mult=(1, 2),
        num_res_blocks=1,
        z_channels=args.channels,
        resolution=args.side,
        patch_size=FACTOR // 2,
        norm="position",
        middle=False,
    )
    return TokenizerConfig(
        architecture, EMBED_DIM.get(args.quantizer, len(levels)), args.codes, args.quantizer, levels
    )


def _levels(codes: int) -> tuple[int, ...]:
    """Levels of channels, as equal as can be and at most 8, whose product is `codes`: 512 -> 8, 8, 8."""
    bits = codes.bit_length() - 1
    if codes != 2**bits or bits < 1:
        raise ValueError(f"--codes {codes}: fsq needs a power of two")
    channels = math.ceil(bits / 3)
    return tuple(2 ** len(range(i, bits, channels)) for i in range(channels))


def _read_pictures(source: PictureSource, args: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """Training and held-out pictures as bytes [n, 3, side, side]."""
    order = np.random.default_rng(args.seed).permutation(len(source))[: args.max_pictures]
    pictures, failures = read_squares(source, order.tolist(), args.side)
    if failures:
        logger.warning(
            "left out %d unreadable pictures of %d, the first: %s", len(failures), len(order), failures[0]
        )
    valid = args.valid or min(MOST_HELD_OUT, max(1, len(pictures) // 10))
    if len(pictures) <= valid:
        raise ValueError(
            f"{args.data}: {len(pictures)} readable pictures, too few to hold out {valid} of them (--valid; in a TSV,"
            f" are they in --column {args.column}?)"
        )
    logger.info("%d pictures for training, %d held out", len(pictures) - valid, valid)
    return pictures[valid:], pictures[:valid]


def distance_from_ground(pictures: Tensor) -> Tensor:
    """Of each pixel of pictures [B, 3, H, W] in -1..1 from its picture's median colour, 0..1 [B, 1, H, W].

    It is the largest one of the three channels.
    """
    median = pictures.flatten(2).median(dim=2).values[..., None, None]
    return (pictures - median).abs().amax(dim=1, keepdim=True) / 2


def foreground_crops(pictures: Tensor, distance: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """A square of each picture [B, 3, H, W] and of its pixels' distances from the ground [B, 1, H, W].

    Its corner is that of a code, and it is drawn in proportion to the foreground in it.
    """
    share = F.avg_pool2d(distance, side, FACTOR)
    chosen = torch.multinomial(share.flatten(1) + 1e-3, 1)[:, 0].tolist()
    corners = [(FACTOR * (number // share.shape[3]), FACTOR * (number % share.shape[3])) for number in chosen]

    def cut(x: Tensor) -> Tensor:
        return torch.stack(
            [x[i, :, top : top + side, left : left + side] for i, (top, left) in enumerate(corners)]
        )

    return cut(pictures), cut(distance)


def weighted_error(pictures: Tensor, reconstructions: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean [] of absolute and squared errors of pictures [B, 3, H, W]; weights are [B, 1, H, W]."""
    error = (pictures - reconstructions).abs()
    return (weight * (error + error.square())).mean() / weight.mean()


def ground_error(vectors: Tensor, distance: Tensor) -> Tensor:
    """How far the codes of plain ground are from one code in each picture, mean of squares [].

    Without this the features of plain ground tell of figures far away, in codes that are hard to predict.

    Args:
        vectors: of the codes [B, C, h, w].
        distance: of the pixels from the ground [B, 1, H, W].
    """
    plain = F.max_pool2d(distance, distance.shape[-1] // vectors.shape[-1]) < PLAIN
    of_ground = vectors.detach().masked_fill(~plain, torch.nan).flatten(2)
    # the median is a code that is there, so that most features stay where they are
    usual = of_ground.nanmedian(dim=2).values[..., None, None].nan_to_num()
    return ((vectors - usual).square() * plain).mean()


class Evaluation(NamedTuple):
    """Over held-out pictures."""

    error: float  # mean absolute error, of 0..255
    codes_used: int
    perplexity: float  # of the codes' distribution
    commonest: float  # the commonest code's share


@dataclass
class LogRow:
    update: int
    seconds: float
    loss: float  # of training, the mean since the last row, as `error`, which is the reconstruction's part of it
    error: float
    revived: int  # codes since the last row
    valid_error: float
    codes_used: int
    used_share: float
    perplexity: float
    commonest: float


class Training:
    """A training with all of its state."""

    def __init__(self, args: argparse.Namespace, train: Tensor, valid: Tensor) -> None:
        self.args, self.train, self.valid = args, train, valid
        torch.manual_seed(args.seed)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        tokenizer = ImageTokenizer(small_config(args))
        tokenizer.to(memory_format=torch.channels_last)  # faster on CPUs
        self.tokenizer = tokenizer.to(self.device)
        self.optimizer = torch.optim.AdamW(
            self.tokenizer.parameters(), lr=args.lr, betas=(0.9, 0.99), weight_decay=1e-4
        )
        quantizer = self.tokenizer.quantize
        self.dead_codes = DeadCodes(quantizer, PATIENCE) if isinstance(quantizer, NearestQuantizer) else None
        self.update, self.seconds, self.revived = 0, 0.0, 0
        self.sums = torch.zeros(2, dtype=torch.float64)
        self.log: list[LogRow] = []

    def run(self) -> None:
        """Train to the end and write the results."""
        args = self.args
        begin = time.perf_counter() - self.seconds
        with tqdm(total=args.updates, initial=self.update, desc="training", unit="update") as bar:
            while self.update < args.updates:
                self.step()
                bar.update()
                self.seconds = time.perf_counter() - begin
                if self.update % args.log_interval == 0 or self.update == args.updates:
                    self._add_to_log()
                    row = self.log[-1]
                    bar.set_postfix(error=f"{row.valid_error:.2f}", codes=row.codes_used)
                if self.update % args.save_interval == 0 and self.update < args.updates:
                    self.save_state(args.out / STATE)
        self._write_results()

    def step(self) -> None:
        """One update."""
        args = self.args
        for group in self.optimizer.param_groups:
            group["lr"] = args.lr * _schedule(self.update / args.updates)
        pictures = self._batch(self.update)
        pictures, distance = foreground_crops(
            pictures, distance_from_ground(pictures), min(args.crop, args.side)
        )
        with torch.autocast(self.device.type, torch.bfloat16, enabled=args.bf16):
            features = self.tokenizer.features(pictures)
            reconstructions, quantized = self.tokenizer.reconstruct(features, self.update / args.updates)
        # Gaps and holes of a figure weigh as much as its strokes, or they would be filled.
        near = F.max_pool2d(distance, 2 * REACH + 1, stride=1, padding=REACH)
        error = weighted_error(pictures, reconstructions.float(), 1 + args.foreground_weight * near)
        loss = error + quantized.loss
        if args.ground_weight:
            # Full weight from the beginning can end in one code for everything.
            weight = args.ground_weight * min(1.0, self.update / (GROUND_SHARE * args.updates))
            loss = loss + weight * ground_error(quantized.vectors.float(), distance)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.tokenizer.parameters(), 1.0)
        self.optimizer.step()
        if self.dead_codes is not None:
            self.revived += self.dead_codes.revive(features, quantized.codes)
        self.sums += torch.stack([loss, error]).detach().cpu().double()
        self.update += 1

    def _batch(self, update: int) -> Tensor:
        """Each epoch is in an order of its own; the batch depends on seed and update only."""
        size, count = self.args.batch_size, len(self.train)
        places = [divmod(place, count) for place in range(update * size, (update + 1) * size)]
        rows = [int(_epoch_order(self.args.seed, epoch, count)[place]) for epoch, place in places]
        return scaled(self.train[rows].to(self.device))

    def _add_to_log(self) -> None:
        result = self.evaluate()
        since = self.update - (self.log[-1].update if self.log else 0)
        loss, error = (self.sums / since).tolist()
        used_share = result.codes_used / self.args.codes
        self.log.append(
            LogRow(
                self.update,
                round(self.seconds, 1),
                loss,
                error,
                self.revived,
                result.error,
                result.codes_used,
                used_share,
                result.perplexity,
                result.commonest,
            )
        )
        self.sums.zero_()
        self.revived = 0
        with atomic_write(self.args.out / LOG) as file:
            file.write("\t".join(LogRow.__dataclass_fields__) + "\n")
            for row in self.log:
                file.write("\t".join(f"{value:.6g}" for value in asdict(row).values()) + "\n")

    def evaluate(self) -> Evaluation:
        """Reconstruct the held-out pictures."""
        error, counts = 0.0, torch.zeros(self.args.codes)
        for batch in self.valid.split(EVALUATION_BATCH):
            pictures = scaled(batch.to(self.device))
            codes = self.tokenizer.encode(pictures)
            error += float((self.tokenizer.decode(codes) - pictures).abs().mean()) * 127.5 * len(batch)
            counts += torch.bincount(codes.flatten().cpu(), minlength=self.args.codes)
        share = counts / counts.sum()
        return Evaluation(
            error=error / len(self.valid),
            codes_used=int((counts > 0).sum()),
            perplexity=float(torch.exp(torch.special.entr(share).sum())),
            commonest=float(share.max()),
        )

    def _write_results(self) -> None:
        out = self.args.out
        shown = scaled(self.valid[:SHEET_PICTURES].to(self.device))
        pairs = zip(to_images(shown), to_images(self.tokenizer.decode(self.tokenizer.encode(shown))))
        pictures = [_stack(before, after) for before, after in pairs]
        scale = max(1, 128 // self.args.side)
        with atomic_write(out / SHEET, "wb") as file:
            contact_sheet(pictures, [""] * len(pictures), 8, scale).save(file, format="PNG")
        self.tokenizer.save(out / CHECKPOINT, out / CONFIG)
        (out / STATE).unlink(missing_ok=True)
        last = self.log[-1]
        use = f"{last.codes_used} of {self.args.codes} codes used (perplexity {last.perplexity:.0f})"
        logger.info(
            f"{out}: held-out pictures are reconstructed to {last.valid_error:.2f} of 255; {use}, the commonest for "
            f"{100 * last.commonest:.0f} %; {self.seconds:.0f} s"
        )

    def save_state(self, path: Path) -> None:
        """All that the rest of the training depends on."""
        state: dict[str, Any] = {
            "tokenizer": self.tokenizer.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "random": torch.get_rng_state(),
            "idle": None if self.dead_codes is None else self.dead_codes.idle,
            "update": self.update,
            "seconds": self.seconds,
            "sums": self.sums,
            "revived": self.revived,
            "log": [asdict(row) for row in self.log],
        }
        if self.device.type == "cuda":
            state["random_cuda"] = torch.cuda.get_rng_state()
        with atomic_write(path, "wb") as file:
            torch.save(state, file)

    def load_state(self, path: Path) -> None:
        """Go on from what `save_state` wrote."""
        state = torch.load(path, map_location="cpu", weights_only=True)
        self.tokenizer.load_state_dict(state["tokenizer"])
        self.optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["random"])
        if self.device.type == "cuda" and "random_cuda" in state:
            torch.cuda.set_rng_state(state["random_cuda"])
        if self.dead_codes is not None:
            self.dead_codes.idle = state["idle"]
        self.update, self.seconds, self.revived = state["update"], state["seconds"], state["revived"]
        self.sums = state["sums"]
        self.log = [LogRow(**row) for row in state["log"]]
        logger.info("going on from update %d", self.update)


@lru_cache(maxsize=2)
def _epoch_order(seed: int, epoch: int, count: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(count)


def _schedule(progress: float) -> float:
    """Warm-up, then half a cosine to zero."""
    if progress < WARMUP_SHARE:
        return max(progress / WARMUP_SHARE, 0.01)
    return (1 + math.cos(math.pi * (progress - WARMUP_SHARE) / (1 - WARMUP_SHARE))) / 2


def _stack(above: Image.Image, below: Image.Image) -> Image.Image:
    stacked = Image.new("RGB", (above.width, above.height + below.height))
    stacked.paste(above, (0, 0))
    stacked.paste(below, (0, above.height))
    return stacked
