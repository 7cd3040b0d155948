"""The caption task as fairseq-train sets it up, a very small model for it, and TSV rows."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from fairseq import options, tasks
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from omegaconf import DictConfig
from PIL import Image

import ofa_fairseq  # noqa: F401  (registers model and task)
from ofa_fairseq.data.images import encode_image
from ofa_fairseq.tasks.caption import CaptionTask

# One layer a side on pictures of 32 pixels, and a vocabulary with few codes and bins.
TINY_FLAGS = (
    *("--arch", "ofa_nano", "--encoder-layers", "1", "--decoder-layers", "1"),
    *("--encoder-embed-dim", "32", "--decoder-embed-dim", "32"),
    *("--encoder-ffn-embed-dim", "64", "--decoder-ffn-embed-dim", "64"),
)
TINY_TASK = ("--code-dict-size", "16", "--num-bins", "16", "--patch-image-size", "32")


class Run(NamedTuple):
    """A task and the whole configuration it was set up from."""

    task: CaptionTask
    cfg: DictConfig

    def model(self) -> Any:
        return self.task.build_model(self.cfg.model).eval()


def training_config(data: str, *flags: str) -> DictConfig:
    """What fairseq-train makes of a command line for task `caption`."""
    parser = options.get_training_parser()
    args = options.parse_args_and_arch(parser, [data, "--task", "caption", *TINY_FLAGS, *TINY_TASK, *flags])
    return convert_namespace_to_omegaconf(args)


def caption_run(data: str, bpe_dir: Path, *flags: str) -> Run:
    """The task of these flags, in a fresh dictionary."""
    cfg = training_config(data, "--bpe-dir", str(bpe_dir), *flags)
    return Run(tasks.setup_task(cfg.task), cfg)


def picture(color: tuple[int, int, int] = (200, 30, 30), size: tuple[int, int] = (40, 30)) -> str:
    """Base64 of a picture with something to see in it."""
    image = Image.linear_gradient("L").resize(size).convert("RGB")
    return encode_image(Image.blend(image, Image.new("RGB", size, color), 0.5))


def write_tsv(path: Path, rows: Iterable[Iterable[str | bytes]]) -> Path:
    """A TSV file of rows of columns."""
    encoded = ([c if isinstance(c, bytes) else c.encode() for c in row] for row in rows)
    path.write_bytes(b"".join(b"\t".join(columns) + b"\n" for columns in encoded))
    return path


def write_captions(path: Path, captions: Iterable[str], image: Any = None) -> Path:
    """A TSV file with the columns id (from 0), picture, caption."""
    return write_tsv(path, ([str(i), image or picture(), text] for i, text in enumerate(captions)))
