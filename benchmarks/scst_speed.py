"""Time an update of self-critical training (SCST) with 5 samples against a cross-entropy update of the same pictures.

Both run in one process, alternating, on the same model. The pictures are noise and the captions random words; before
the timing, some updates with cross entropy teach the model how long captions are, since random weights would fill
every sample up to its limit. While updates are timed the learning rate is 0, which costs the same.

    python benchmarks/scst_speed.py
    python benchmarks/scst_speed.py --arch ofa_tiny --pixels 480 --batch 2
"""

import argparse
import logging
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fairseq import optim, options, tasks, utils
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from PIL import Image

import ofa_fairseq  # noqa: F401  (registers models and tasks)
from ofa_fairseq.data.images import encode_image
from ofa_fairseq.metrics.rewards import frequencies_with_ends
from ofa_fairseq.models.config import PRESETS
from ofa_fairseq.prepare.sentencepiece_model import train_sentencepiece

SYLLABLES = [consonant + vowel for consonant in "bdfgklmnrst" for vowel in "aiou"]
WORDS = [first + second for first in SYLLABLES for second in SYLLABLES][::5]
NUM_REFERENCES = 5
RELEASED_VOCABULARY = 59_457
NANO_VOCABULARY = ("--code-dict-size", "512", "--num-bins", "128")
SAMPLES = {
    "beam search": '{"beam": 5, "max_len_b": 16, "no_repeat_ngram_size": 3}',
    "drawn": '{"beam": 5, "max_len_b": 16, "sampling": true}',
}
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def caption(draw: random.Random) -> str:
    """8 to 12 words, the first ones of the list far more often."""
    return " ".join(WORDS[int(len(WORDS) ** draw.random()) - 1] for _ in range(draw.randint(8, 12)))


def references(draw: random.Random) -> list[str]:
    return [caption(draw) for _ in range(NUM_REFERENCES)]


def write_data(folder: Path, rows: int, documents: int) -> None:
    """The vocabulary, the rows once with one caption and once with all, and document frequencies."""
    draw = random.Random(1)
    train_sentencepiece(WORDS, folder, vocab_size=1000)
    noise = np.random.default_rng(1)
    with (folder / "caption.tsv").open("w") as single, (folder / "references.tsv").open("w") as joined:
        for i in range(rows):
            image = encode_image(Image.fromarray(noise.integers(0, 256, (64, 64, 3), np.uint8)))
            texts = references(draw)
            single.write(f"{i}\t{image}\t{texts[0]}\n")
            joined.write(f"{i}\t{image}\t{'&&'.join(texts)}\n")
    frequencies_with_ends([references(draw) for _ in range(documents)]).save(folder / "frequencies.json.gz")


class Updates:
    """A task's updates of a model with one batch, as fairseq's trainer makes them."""

    def __init__(self, file: Path, flags: Sequence[str]) -> None:
        parser = options.get_training_parser()
        files = f"{file},{file}"
        args = options.parse_args_and_arch(parser, [files, "--task", "caption", *flags])
        self.cfg = convert_namespace_to_omegaconf(args)
        self.task: Any = tasks.setup_task(self.cfg.task)
        assert self.task.vocabulary  # read first, as building the model does
        self.task.load_dataset("train")
        dataset = self.task.dataset("train")
        batch = dataset.collater([dataset[i] for i in range(len(dataset))])
        self.batch = utils.move_to_cuda(batch) if DEVICE.type == "cuda" else batch
        self.criterion = self.task.build_criterion(self.cfg.criterion)
        self.logged: dict[str, Any] = {}

    def __call__(self, model: Any, optimizer: Any) -> float:
        """Make one; returns seconds."""
        start = now()
        optimizer.zero_grad()
        _, size, self.logged = self.task.train_step(
            self.batch, model, self.criterion, optimizer, update_num=0
        )
        optimizer.multiply_grads(1 / size)
        optimizer.clip_grad_norm(1.0)
        optimizer.step()
        return now() - start


def now() -> float:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


class Timed:
    """A function that keeps the seconds of its last call."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.seconds = function, 0.0

    def __call__(self, *args: Any) -> Any:
        start = now()
        result = self.function(*args)
        self.seconds = now() - start
        return result


def common_flags(args: argparse.Namespace, folder: Path) -> list[str]:
    codes = NANO_VOCABULARY
    if args.arch != "ofa_nano":  # codes make up for what the text has less than the released vocabulary
        text = 5 + sum(1 for _ in (folder / "dict.txt").open())
        codes = ("--code-dict-size", str(RELEASED_VOCABULARY - 1000 - text), "--num-bins", "1000")
    return [
        *("--arch", args.arch, "--patch-image-size", str(args.pixels), *codes),
        *("--bpe-dir", str(folder), "--bad-rows", str(folder / "bad_rows.tsv")),
        *("--optimizer", "adam", "--adam-betas", "(0.9,0.999)", "--lr", "1e-3"),
        *(("--amp",) if args.amp else ()),
    ]


def report(name: str, seconds: Sequence[float], baseline: Sequence[float], details: str = "") -> None:
    ratio = statistics.median(s / b for s, b in zip(seconds, baseline))
    print(f"  {name:<18} {1e3 * statistics.median(seconds):8.1f} ms   ratio {ratio:5.2f}{details}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arch", default="ofa_nano", choices=PRESETS)
    for name, value in (("pixels", 64), ("batch", 16), ("rounds", 15), ("warm-up", 60), ("documents", 5000)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--amp", action="store_true", help="mixed precision, as the embedded runs have it")
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    torch.manual_seed(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_data(folder, args.batch, args.documents)
        flags = common_flags(args, folder)
        entropy_flags = ("--criterion", "adjust_label_smoothed_cross_entropy")
        cross_entropy = Updates(folder / "caption.tsv", [*flags, *entropy_flags])
        scst_flags = ("--criterion", "scst_reward_criterion", "--scst", "--scst-cider-cached-tokens")
        flags += [*scst_flags, str(folder / "frequencies.json.gz")]
        scst = {
            name: Updates(folder / "references.tsv", [*flags, "--scst-args", samples])
            for name, samples in SAMPLES.items()
        }
    rewards = {name: Timed(updates.criterion.rewards) for name, updates in scst.items()}
    for name, updates in scst.items():
        updates.criterion.rewards = rewards[name]
    model = cross_entropy.task.build_model(cross_entropy.cfg.model).to(DEVICE)
    optimizer: Any = optim.build_optimizer(cross_entropy.cfg.optimizer, list(model.parameters()))
    for _ in range(args.warm_up):
        cross_entropy(model, optimizer)
    optimizer.set_lr(0.0)

    arms: dict[str, Updates] = {"cross entropy": cross_entropy, **scst}
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    shares: dict[str, list[float]] = {name: [] for name in scst}
    lengths: dict[str, list[float]] = {name: [] for name in scst}
    for round_number in range(args.rounds + 1):
        for name in list(arms)[:: 1 if round_number % 2 else -1]:
            taken = arms[name](model, optimizer)
            if round_number == 0:
                continue  # the first of each is for warming up
            seconds[name].append(taken)
            if name in scst:
                shares[name].append(rewards[name].seconds / taken)
                logged = arms[name].logged
                lengths[name].append(logged["sample_length"] / logged["nsentences"])

    print(
        f"{args.arch} on {DEVICE.type}: {args.batch} pictures of {args.pixels} pixels,"
        f" {len(cross_entropy.task.dictionary)} tokens in the vocabulary, captions of"
        f" {cross_entropy.batch['ntokens'] / args.batch - 1:.1f} tokens, medians of {args.rounds} rounds"
    )
    report("cross entropy", seconds["cross entropy"], seconds["cross entropy"])
    for name in scst:
        share, length = 100 * statistics.median(shares[name]), statistics.mean(lengths[name])
        details = f"   rewards {share:4.1f} %   {length:.1f} tokens a sample"
        report(f"SCST, {name}", seconds[name], seconds["cross entropy"], details)


if __name__ == "__main__":
    main()
