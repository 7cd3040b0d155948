"""Tasks as fairseq-train sets them up, a very small model for them, TSV rows, and the original's rows."""

import json
from collections.abc import Iterable, Sequence
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from fairseq import options, tasks
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from omegaconf import DictConfig, OmegaConf, open_dict
from PIL import Image

import ofa_fairseq  # noqa: F401  (registers models and tasks)
from ofa_fairseq.data.images import encode_image

# One layer a side on pictures of 32 pixels, and a vocabulary with few codes and bins.
TINY_FLAGS = (
    *("--arch", "ofa_nano", "--encoder-layers", "1", "--decoder-layers", "1"),
    *("--encoder-embed-dim", "32", "--decoder-embed-dim", "32"),
    *("--encoder-ffn-embed-dim", "64", "--decoder-ffn-embed-dim", "64"),
)
TINY_TASK = ("--code-dict-size", "16", "--num-bins", "16", "--patch-image-size", "32")


PAD, EOS = 1, 2


class Run(NamedTuple):
    """A task and the whole configuration it was set up from."""

    task: Any
    cfg: DictConfig

    def model(self) -> Any:
        return self.task.build_model(self.cfg.model).eval()


def training_config(data: str, *flags: str, task: str = "caption") -> DictConfig:
    """What fairseq-train makes of a command line."""
    cfg = deepcopy(_parsed(task, flags))
    with open_dict(cfg):
        cfg.task.data = data
    return cfg


@lru_cache
def _parsed(task: str, flags: tuple[str, ...]) -> DictConfig:
    """fairseq takes half a second for it, and most tests differ in nothing but their data."""
    parser = options.get_training_parser()
    args = options.parse_args_and_arch(parser, ["", "--task", task, *TINY_FLAGS, *TINY_TASK, *flags])
    return convert_namespace_to_omegaconf(args)


def task_run(task: str, data: str, bpe_dir: Path, *flags: str) -> Run:
    """The task of these flags, in a fresh dictionary."""
    cfg = training_config(data, "--bpe-dir", str(bpe_dir), *flags, task=task)
    return Run(tasks.setup_task(cfg.task), cfg)


def caption_run(data: str, bpe_dir: Path, *flags: str) -> Run:
    """`task_run` of task `caption`."""
    return task_run("caption", data, bpe_dir, *flags)


def save_checkpoint(path: Path, run: Run, **extra_state: Any) -> dict[str, torch.Tensor]:
    """A file as fairseq-train writes it; returns the weights in it."""
    weights = run.model().state_dict()
    state = {
        "cfg": OmegaConf.to_container(run.cfg),
        "args": None,
        "model": weights,
        "optimizer_history": [{"optimizer_name": "FairseqAdam", "lr_scheduler_state": {}, "num_updates": 3}],
        "extra_state": {"train_iterator": {"epoch": 1}, **extra_state},
    }
    torch.save(state, path)
    return weights


def captioning(digits_dir: Path) -> tuple[Run, Any, dict[str, Any]]:
    """A task, a model with random weights, and a batch of four validation rows."""
    run = caption_run(str(digits_dir / "valid.tsv"), digits_dir, "--selected-cols", "0,4,2")
    torch.manual_seed(1)
    model = run.model()
    # Peaked distributions, so that outputs differ from each other and repeat themselves.
    with torch.no_grad():
        model.decoder.output_projection.weight.mul_(20)
    run.task.load_dataset("valid")
    dataset = run.task.dataset("valid")
    return run, model, dataset.collater([dataset[i] for i in range(4)])


def rows_run(
    task: str, folder: Path, rows: Iterable[Sequence[str]], bpe_dir: Path, *flags: str, split: str = "train"
) -> Run:
    """The task of a file with these rows, which is loaded as `split`; bad rows go to `folder`."""
    file = write_tsv(folder / "rows.tsv", rows)
    cfg = training_config(f"{file},{file}", "--bpe-dir", str(bpe_dir), *flags, task=task)
    with open_dict(cfg):
        cfg.task.bad_rows = str(folder / "bad_rows.tsv")
    run = Run(tasks.setup_task(cfg.task), cfg)
    assert run.task.vocabulary  # read first, as building the model does
    run.task.load_dataset(split)
    return run


def dataset_of(
    task: str, folder: Path, rows: Iterable[Sequence[str]], bpe_dir: Path, *flags: str, split: str = "train"
) -> Any:
    """The dataset of `rows_run`."""
    return rows_run(task, folder, rows, bpe_dir, *flags, split=split).task.dataset(split)


def batch_of(dataset: Any) -> dict[str, Any]:
    """All rows of a dataset as one batch."""
    return dataset.collater([dataset[i] for i in range(len(dataset))])


def source_of(dataset: Any, index: int = 0) -> str:
    """The source of a row, decoded."""
    return dataset.build.task.decode(dataset[index].source)


def target_of(dataset: Any, index: int = 0) -> str:
    """The target of a row, decoded."""
    return dataset.build.task.decode(dataset[index].target)


def validated(task: Any, outputs: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """What a task logs of its validation rows if these are their outputs."""
    monkeypatch.setattr(task, "generate_texts", lambda *_: outputs)
    return task.validate(batch_of(task.dataset("valid")), torch.nn.Identity())


def bad_rows(folder: Path) -> list[str]:
    """Why rows were left out, in order."""
    file = folder / "bad_rows.tsv"
    return [line.split("\t")[2] for line in file.read_text().splitlines()] if file.exists() else []


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


def each_reference_row(task: str) -> Any:
    """For tests of a `case`: each row of a task that went through the original's own dataset."""
    path = Path(__file__).parent / "reference" / "rows.json"
    cases = [case for case in json.loads(path.read_text()) if case["task"] == task]
    return pytest.mark.parametrize("case", cases, ids=_name_of)


def _name_of(case: dict[str, Any]) -> str:
    options = case["options"]
    named = [case["split"], case["id"], options.get("prompt_type"), options.get("patch_image_size")]
    return "-".join(str(part) for part in named if part is not None)


def batch_like(case: dict[str, Any], folder: Path, bpe_dir: Path) -> dict[str, Any]:
    """The batch that our task makes of a reference row; what every task has is compared."""
    released = ["--code-dict-size", "8192", "--num-bins", "1000"]
    for name, value in case["options"].items():
        flag = f"--{name}".replace("_", "-")
        released += [flag] if value is True else [] if value is False else [flag, str(value)]
    if "answers" in case:
        released += ["--ans2label-dict", json.dumps(case["answers"])]
    run = rows_run(case["task"], folder, [case["row"]], bpe_dir, *released, split=case["split"])
    batch = batch_of(run.task.dataset(case["split"]))
    net_input = batch["net_input"]
    assert batch["id"].tolist() == [case["id"]]
    assert net_input["src_tokens"].tolist() == [case["source"]]
    assert batch["target"].tolist() == [case["target"]]
    assert net_input["prev_output_tokens"].tolist() == [case["prev_output_tokens"]]
    assert net_input["patch_masks"].tolist() == case["patch_mask"]
    expected, image = case["patch_image"], net_input["patch_images"][0].numpy()
    assert list(image.shape) == expected["shape"]
    # 2/255 of the pixel range, which is 2 wide after normalisation.
    grid = image[:, expected["rows"]][:, :, expected["cols"]]
    np.testing.assert_allclose(grid, expected["values"], atol=2 * 2 / 255)
    assert image.mean() == pytest.approx(expected["mean"], abs=0.002)
    assert image.std() == pytest.approx(expected["std"], abs=0.005)
    return batch


def assert_answers_like(case: dict[str, Any], batch: dict[str, Any]) -> None:
    """Prompt, confidence and allowed tokens are those of a reference row."""
    prompt = batch["prefix_tokens"][0].tolist() if "prefix_tokens" in batch else []
    assert [0, *prompt] == case["decoder_prompt"]
    if "conf" in case:
        weights = batch["conf"].tolist() if "conf" in batch else [1.0]
        assert weights == pytest.approx(case["conf"])
    if "allowed" in case:
        supervised = batch["target"].ne(PAD)
        masks = batch["answer_space"].target_masks(batch["target"], supervised)
        allowed = [row.nonzero().flatten().tolist() for row in masks]
        assert allowed == [row for row in case["allowed"] if row]  # prompts are nobody's business
    else:
        assert "answer_space" not in batch
