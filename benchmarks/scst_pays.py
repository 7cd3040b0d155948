"""Whether self-critical training (SCST) pays: from one captioning model, SCST against more cross entropy.

Both get the same wall time on the embedded data, for several seeds, one run at a time in alternating order. Prints
CIDEr-D on the test scenes (beam 5) with mean and standard deviation over the seeds, and draws CIDEr-D on 300 validation
scenes (greedy) against time. What has finished is not run again.

    bash run_scripts/caption/train.sh
    .venv/bin/python benchmarks/scst_pays.py --minutes 3 --out runs/scst_pays
"""

import argparse
import re
import statistics
import subprocess
import sys
from datetime import datetime
from pathlib import Path

from fairseq.checkpoint_utils import load_checkpoint_to_cpu
from PIL import Image, ImageDraw

import ofa_fairseq  # noqa: F401  (lets checkpoints load in PyTorch's safe mode)

ROOT = Path(__file__).resolve().parents[1]
PLUGIN = ROOT / "ofa_fairseq"
BIN = Path(sys.executable).parent
SHARED = (
    *("--task", "caption", "--arch", "ofa_nano", "--user-dir", str(PLUGIN), "--eval-cider"),
    *("--patch-image-size", "64", "--code-dict-size", "512", "--num-bins", "128", "--max-tgt-length", "40"),
    *("--eval-args", '{"beam": 1, "max_len_b": 30}', "--optimizer", "adam", "--adam-betas", "(0.9,0.98)"),
    *("--weight-decay", "0.01", "--clip-norm", "1.0", "--dropout", "0.0", "--batch-size", "64"),
    *("--batch-size-valid", "100", "--max-update", "100000", "--lr-scheduler", "fixed", "--num-workers", "0"),
    *("--log-format", "simple", "--log-interval", "25", "--max-valid-steps", "3"),
    *("--best-checkpoint-metric", "cider", "--maximize-best-checkpoint-metric", "--no-epoch-checkpoints"),
    *("--no-last-checkpoints", "--selected-cols", "0,4,2"),
)
# Arm -> the training file and what is its own. Validation takes both about the same share of the time.
ARMS = {
    "cross entropy": (
        "train.tsv",
        (
            "--criterion",
            "adjust_label_smoothed_cross_entropy",
            "--lr",
            "1e-4",
            "--validate-interval-updates",
            "150",
        ),
    ),
    "SCST": (
        "train_references.tsv",
        (
            *("--criterion", "scst_reward_criterion", "--lr", "1e-4", "--scst"),
            *("--validate-interval-updates", "20"),
            *("--scst-args", '{"beam": 5, "sampling": true, "max_len_b": 30}'),
        ),
    ),
}
COLOURS = {"cross entropy": (200, 90, 30), "SCST": (40, 90, 200)}
VALIDATED = re.compile(r"valid on 'valid' subset.* cider ([0-9.]+).* num_updates ([0-9]+)")
Curve = list[tuple[float, float]]


def train(arm: str, seed: int, args: argparse.Namespace, folder: Path) -> str:
    """Run one arm, or read the log of a run that has finished."""
    log, finished = folder / "train.log", folder / "finished"
    if not finished.exists():
        folder.mkdir(parents=True, exist_ok=True)
        file, own = ARMS[arm]
        data = f"{args.digits / file},{args.digits / 'valid.tsv'}"
        command = [
            f"{BIN}/fairseq-train",
            data,
            *SHARED,
            *own,
            "--bpe-dir",
            str(args.digits),
            "--seed",
            str(seed),
        ]
        command += ["--finetune-from-model", str(args.checkpoint), "--save-dir", str(folder)]
        # fairseq goes on counting from the time that the checkpoint's own training took.
        before = load_checkpoint_to_cpu(str(args.checkpoint))["extra_state"]["previous_training_time"]
        command += ["--stop-time-hours", str(before / 3600 + args.minutes / 60)]
        with log.open("w") as out:
            subprocess.run(command, check=True, stdout=out, stderr=subprocess.STDOUT)
        finished.touch()
    return log.read_text()


def curve(log: str) -> Curve:
    """Minutes since training began, by the log's clock, and validation CIDEr-D."""
    points: Curve = []
    begin = None
    for line in log.splitlines():
        if "begin training epoch 1" in line:
            begin = _time(line)
        if begin is not None and (found := VALIDATED.search(line)):
            points.append(((_time(line) - begin).total_seconds() / 60, float(found[1])))
    return points


def _time(line: str) -> datetime:
    return datetime.fromisoformat(line[:19])


def test_score(checkpoint: Path, args: argparse.Namespace) -> float:
    """CIDEr-D of beam search on the test scenes."""
    command = [
        f"{BIN}/fairseq-generate",
        str(args.digits / "test.tsv"),
        "--user-dir",
        str(PLUGIN),
        "--task",
        "caption",
    ]
    command += ["--path", str(checkpoint), "--bpe-dir", str(args.digits), "--selected-cols", "1,4,2"]
    command += ["--batch-size", "50", "--beam", "5", "--max-len-b", "50", "--scoring", "cider"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found = re.search(r"CIDEr = ([0-9.]+)", done.stdout)
    assert found is not None, done.stdout[-500:]
    return float(found[1])


def draw(curves: dict[str, list[Curve]], path: Path) -> None:
    """All curves, CIDEr-D from the lowest to the highest value over the minutes."""
    width, height, margin = 640, 360, 45
    points = [point for of_arm in curves.values() for one in of_arm for point in one]
    left, right = 0.0, max(x for x, _ in points)
    low, high = min(y for _, y in points), max(y for _, y in points)
    image = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(image)

    def at(x: float, y: float) -> tuple[float, float]:
        across = (x - left) / max(right - left, 1e-9) * (width - 2 * margin)
        up = (y - low) / max(high - low, 1e-9) * (height - 2 * margin)
        return margin + across, height - margin - up

    pen.rectangle((margin, margin, width - margin, height - margin), outline="black")
    for value in (low, high):
        pen.text((4, at(0, value)[1] - 6), f"{value:.2f}", fill="black")
    pen.text((width - margin - 70, height - margin + 8), f"{right:.1f} minutes", fill="black")
    pen.text((margin, 10), "CIDEr-D on validation scenes (greedy):", fill="black")
    for place, (arm, of_arm) in enumerate(curves.items()):
        pen.text((margin + 240 + 110 * place, 10), arm, fill=COLOURS[arm])
        for one in of_arm:
            for x, y in (at(*point) for point in one):
                pen.ellipse((x - 3, y - 3, x + 3, y + 3), fill=COLOURS[arm])
            if len(one) > 1:
                pen.line([at(x, y) for x, y in one], fill=COLOURS[arm], width=2)
    image.save(path)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", type=Path, default=ROOT / "runs/caption_nano/checkpoint_best.pt")
    parser.add_argument("--digits", type=Path, default=ROOT / "data/digits")
    parser.add_argument("--minutes", type=float, default=3.0, help="of training, for each run (default 3)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--out", type=Path, default=ROOT / "runs/scst_pays")
    args = parser.parse_args()

    curves: dict[str, list[Curve]] = {arm: [] for arm in ARMS}
    scores: dict[str, list[float]] = {arm: [] for arm in ARMS}
    for number, seed in enumerate(args.seeds):
        for arm in list(ARMS) if number % 2 == 0 else list(reversed(ARMS)):
            folder = args.out / f"{arm.replace(' ', '_')}_{seed}"
            curves[arm].append(curve(train(arm, seed, args, folder)))
            result = folder / "test_cider.txt"
            if not result.exists():
                result.write_text(str(test_score(folder / "checkpoint_best.pt", args)))
            scores[arm].append(float(result.read_text()))
    draw(curves, args.out / "scst_pays.png")
    print(f"{'':16s}test CIDEr-D, {len(args.seeds)} seeds, {args.minutes:g} minutes each")
    print(f"{'stage 1':14s}  {test_score(args.checkpoint, args):.3f}")
    for arm, of_arm in scores.items():
        spread = statistics.stdev(of_arm) if len(of_arm) > 1 else 0.0
        print(
            f"{arm:14s}  {statistics.mean(of_arm):.3f} +- {spread:.3f}   ({', '.join(f'{s:.3f}' for s in of_arm)})"
        )
    print(f"curves: {args.out / 'scst_pays.png'}")


if __name__ == "__main__":
    main()
