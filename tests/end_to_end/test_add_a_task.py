"""docs/add_a_task.md: its commands and code run as they stand, and its tables say what happens.

Commands are run by a shell in a folder that stands for the user's clone; flags that make them small come after.
"""

import io
import json
import os
import pickle
import random
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from sentencepiece import SentencePieceTrainer
from sentencepiece.sentencepiece_model_pb2 import ModelProto
from task_builders import TINY_FLAGS, TINY_TASK, bad_rows, picture, rows_run

from ofa_fairseq.data.example import Example
from ofa_fairseq.instruction import parse

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "add_a_task.md").read_text()
COLOURS = {"red": (200, 40, 40), "green": (40, 160, 60), "blue": (40, 70, 200), "yellow": (225, 205, 40)}
PHOTOS = 200


def blocks(language: str) -> list[str]:
    """The page's code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


# Every block has a name here, so that none is left out.
SCRIPTS = {re.match(r"# (\S+)\n", block)[1]: block for block in blocks("python")}  # type: ignore[index]
COMMANDS = dict(
    zip(
        ("prepare", "train", "generate", "finetune", "recipe", "train colour", "generate colour"),
        blocks("bash"),
        strict=True,
    )
)
SMALL = (*TINY_FLAGS, *TINY_TASK, "--max-update", "4")


def table(header: str) -> list[list[str]]:
    """The cells of the page's table that begins with this header."""
    lines = PAGE.split(header, 1)[1].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip(" ") for cell in line.strip("|").split(" | ")] for line in lines]


def code(cell: str) -> str:
    """What stands between backticks in a cell, exactly."""
    return cell.strip(" |").strip("`")


def draw_photos(folder: Path) -> None:
    """A ball or a box in one of four colours, anywhere on a light ground, named as the page says."""
    numbers = random.Random(0)
    folder.mkdir()
    for i in range(PHOTOS):
        colour, thing = numbers.choice(list(COLOURS)), numbers.choice(["ball", "box"])
        photo = Image.new("RGB", (64, 64), tuple(numbers.randint(150, 255) for _ in range(3)))
        x, y, size = numbers.randint(2, 30), numbers.randint(2, 30), numbers.randint(18, 30)
        shape = ImageDraw.Draw(photo)
        (shape.ellipse if thing == "ball" else shape.rectangle)((x, y, x + size, y + size), COLOURS[colour])
        photo.save(folder / f"{colour}_{thing}_{i:03}.png")


class Clone:
    """A folder with the plugin and the scripts, the user's pictures, and what the page lets them save."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("ofa_fairseq", "run_scripts"):
            (folder / name).symlink_to(ROOT / name)
        draw_photos(folder / "photos")
        for name, text in SCRIPTS.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(text)
        self.run("prepare")

    def run(self, command: str, *flags: str) -> str:
        """What a command of the page prints, with further flags at its end."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("OFA_", "SLURM_"))} | {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),  # the page has it installed
            "OFA_PYTHON": sys.executable,
            "OMP_NUM_THREADS": "1",
            "GPUS": "0",
        }
        done = subprocess.run(
            ["bash", "-c", f"{COMMANDS[command].rstrip()} {shlex.join(flags)}"],
            cwd=self.folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert done.returncode == 0, done.stdout[-4000:]
        return done.stdout

    def rows(self, split: str) -> list[list[str]]:
        return [line.split("\t") for line in (self.folder / f"{split}.tsv").read_text().splitlines()]

    def weights(self, path: str) -> dict[str, torch.Tensor]:
        return torch.load(self.folder / path, weights_only=False, map_location="cpu")["model"]


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    return Clone(tmp_path_factory.mktemp("clone"))


@pytest.fixture(scope="module")
def trained(clone: Clone) -> str:
    """The log of a training that is too short to learn anything."""
    return clone.run("train", *SMALL)


def score(output: str, name: str) -> float:
    found = re.search(rf"^Generate .*: {name} = ([0-9.]+) over {PHOTOS // 10} rows$", output, re.MULTILINE)
    assert found, output[-3000:]
    return float(found[1])


# -- commands ----------------------------------------------------------------------------------------------


def test_pictures_become_rows(clone: Clone) -> None:
    rows = {split: clone.rows(split) for split in ("train", "valid", "test")}
    assert {split: len(part) for split, part in rows.items()} == {"train": 160, "valid": 20, "test": 20}
    named = sorted(path for part in rows.values() for _, path, _, _ in part)
    assert named == sorted(f"photos/{path.name}" for path in (clone.folder / "photos").iterdir())
    assert (clone.folder / "answers.txt").read_text().split() == sorted(COLOURS)


def test_trains_and_generates(clone: Clone, trained: str) -> None:
    assert len(re.findall(r"\| valid \|.* score [0-9.]+", trained)) == 1
    output = clone.run("generate")
    score(output, "Accuracy")
    kinds = {kind: dict(re.findall(rf"^{kind}-(\S+)\t(.*)$", output, re.MULTILINE)) for kind in "STHDP"}
    test = clone.rows("test")
    assert all(sorted(lines) == sorted(row[0] for row in test) for lines in kinds.values())
    for name, _, thing, colour in test:
        assert kinds["S"][name] == f" what colour is the {thing}?"
        assert kinds["T"][name] == colour
        log2, answer = kinds["D"][name].split("\t")
        assert answer.strip() in COLOURS
        assert kinds["H"][name].split("\t")[0] == log2
    lines = (clone.folder / "candidates.jsonl").read_text().splitlines()
    candidates = {line["id"]: line["answers"] for line in map(json.loads, lines)}
    for name, answers in candidates.items():
        log2, answer = kinds["D"][name].split("\t")
        assert set(answers) == set(COLOURS)
        assert sum(answers.values()) == pytest.approx(1, abs=1e-4)
        assert answers[answer.strip()] == max(answers.values()) == pytest.approx(2 ** float(log2), abs=1e-4)
    assert re.findall(r"^    ([A-Z])-red_mug_017 ", PAGE, re.MULTILINE) == list("STHDP")


@pytest.mark.slow
def test_a_stopped_run_goes_on_and_learns_the_toy_task(clone: Clone) -> None:
    flags = ("--max-epoch", "3", "--save-dir", "runs/learnt")
    clone.run("train", *flags, "--max-update", "14")
    log = clone.run("train", *flags)
    assert re.search(r"Loaded checkpoint runs/learnt/checkpoint_last.pt \(epoch 2 @ 14 updates\)", log)
    assert re.findall(r"\| train \|.* num_updates (\d+)", log) == ["20", "30"]
    accuracy = score(clone.run("generate", "--path", "runs/learnt/checkpoint_best.pt"), "Accuracy")
    assert accuracy >= 80  # four colours: chance is 25


@pytest.mark.slow
def test_starts_from_a_checkpoint(clone: Clone, trained: str) -> None:
    """A small one in its place; with a learning rate of 0 the weights stay what they were."""
    released = clone.folder / "ofa_base.pt"
    released.write_bytes((clone.folder / "runs/colour/checkpoint_last.pt").read_bytes())
    log = clone.run("finetune", *SMALL, "--bpe-dir", "bpe", "--lr", "0", "--update-freq", "1")
    assert "loading pretrained model from ofa_base.pt" in log
    before, after = clone.weights("ofa_base.pt"), clone.weights("runs/colour_base/checkpoint_last.pt")
    assert before.keys() == after.keys()
    learnt = [name for name in before if not re.search("running_|num_batches", name)]
    assert all(torch.equal(before[name], after[name]) for name in learnt)


def test_the_recipe_is_shown_and_not_run(clone: Clone) -> None:
    shown = clone.run("recipe")
    (command,) = [line for line in shown.splitlines() if line.startswith("+ fairseq-train")]
    flags = shlex.split(command)
    switches = re.findall(r"^    ((?:--[a-z-]+ )+)\\$", COMMANDS["finetune"], re.MULTILINE)
    assert len(switches) == 1
    assert set(switches[0].split()) <= set(flags)
    assert flags[flags.index("--arch") + 1] == "ofa_base"
    assert "--weight-decay" in flags
    assert not list(clone.folder.glob("runs/caption*"))


@pytest.mark.slow
def test_a_registered_task_and_its_metric(clone: Clone) -> None:
    log = clone.run("train colour", "--max-epoch", "4")
    values = [float(value) for value in re.findall(r"\| valid \|.* near ([0-9.]+)", log)]
    assert len(values) == 4
    best = torch.load(clone.folder / "runs/near/checkpoint_best.pt", weights_only=False)
    assert best["extra_state"]["best"] == max(values)
    seeing = score(clone.run("generate colour"), "Near")
    blind = score(clone.run("generate colour", "--blind"), "Near")
    assert seeing >= 85
    assert blind <= 65  # one colour for all: right for a quarter, half right for another quarter

    log = clone.run("train", *SMALL, "--user-dir", "my_tasks", "--metric", "my_tasks:near", "--save-dir", "x")
    assert re.search(r"\| valid \|.* score [0-9.]+", log)


# -- tables ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", table("| instruction | `--columns` | `--metric` |"), ids=lambda row: row[0])
def test_other_instructions(row: list[str], tmp_path: Path, sentencepiece_dir: Path) -> None:
    """Rows of these columns can be used, and what they ask for scores best."""
    line, columns, metric = map(code, row)
    slots = {slot.name: slot.type for side in ("source", "target") for slot in parse(line).slots(side)}  # type: ignore[arg-type]
    values = {"image": picture(), "box": "4,3,30,25", "text": "a red mug on wood", "label": "good"}
    data = [[f"{i}", *(values[slots[name]] for name in columns.split(",")[1:])] for i in range(2)]
    if metric == "cider":
        data[1][-1] = "two blue chairs in rain"  # an n-gram of every picture tells nothing
    flags = ("--instruction", line, "--columns", columns, "--metric", metric)
    run = rows_run("instruct", tmp_path, data, sentencepiece_dir, *flags, split="valid")
    assert bad_rows(tmp_path) == []
    examples = [run.task.dataset("valid")[i] for i in range(2)]
    outputs = [run.task.clean_output(run.task.decode(example.target)) for example in examples]
    scores = run.task.validation_metric()(outputs, [example.references for example in examples])
    np.testing.assert_allclose(scores, 10 if metric == "cider" else 1)
    with_space = [not metric.startswith("box")] * 2
    assert [run.task.decode(example.target).startswith(" ") for example in examples] == with_space


class Case(NamedTuple):
    """Rows that a task gets, and what is true of the first one where it is used."""

    task: str
    rows: Sequence[Sequence[str]]
    flags: Sequence[str] = ()
    split: str = "train"
    check: Callable[[Any, Example], bool] = lambda task, example: True

    def outcome(self, folder: Path, bpe_dir: Path) -> tuple[str, str]:
        """The page's word for it, and the message."""
        flags = [flag.replace("FOLDER", str(folder)) for flag in (*TASK_FLAGS[self.task], *self.flags)]
        try:
            run = rows_run(self.task, folder, self.rows, bpe_dir, *flags, split=self.split)
        except (ValueError, pickle.UnpicklingError) as error:
            return "stops", str(error)
        dataset = run.task.dataset(self.split)
        examples = [dataset[i] for i in range(len(dataset))]
        assert len(bad_rows(folder)) == examples.count(None) <= 1
        if bad_rows(folder):
            return "skipped", bad_rows(folder)[0]
        assert self.check(run.task, examples[0])
        return "used", ""


COLUMNS = ("--columns", "id,photo,thing,colour")
TASK_FLAGS: dict[str, tuple[str, ...]] = {
    "instruct": (
        "--instruction",
        "[image:photo] what colour is the [text:thing]? -> [text:colour]",
        *COLUMNS,
    ),
    **dict.fromkeys(("caption", "vqa", "refcoco", "snli_ve"), ()),
}
BOX_FLAGS = ("--instruction", "[image:photo] where is the [text:thing]? -> [box:place]")
BOXES = (*BOX_FLAGS, "--columns", "id,photo,thing,place")
ANSWERS = ("--ans2label-dict", '["red", "blue"]')
LONG = "one two three four five"
TWO_SLOTS = ("--instruction", "[image:photo] what is it? -> [text:colour] [text:thing]")

# Rows that can be used.
GOOD = {
    "instruct": ["1", picture(), "mug", "red"],
    "caption": ["1", picture(), "a red mug"],
    "vqa": ["1", picture(), "what colour is it?", "red"],
    "refcoco": ["1", picture(), "mug", "4,3,30,25"],
    "snli_ve": ["1", picture(), "a mug", "a photo", "entailment"],
}


def with_bad(task: str, column: int, value: str, *flags: str, **more: Any) -> Case:
    """A row whose column holds something else, before one that can be used."""
    row = list(GOOD[task])
    row[column] = value
    return Case(task, [row, GOOD[task]], flags, **more)


def box_cases(box: str) -> list[Case]:
    good = [*GOOD["instruct"][:3], "4,3,30,25"]
    return [Case("instruct", [[*good[:3], box], good], BOXES), with_bad("refcoco", 3, box)]


def learnt(task: Any, example: Example) -> list[int]:
    """The tokens that the loss counts."""
    return [token for token in example.target.tolist() if token != task.dictionary.pad()]


def scored_but_not_learnt(task: Any, example: Example) -> bool:
    return list(example.references) == ["mauve"] and not learnt(task, example)


def source_is(text: str) -> Callable[[Any, Example], bool]:
    return lambda task, example: task.decode(example.source) == text


CASES: dict[str, list[Case]] = {
    "no answer of a training row is in the answer list": [
        with_bad("instruct", 3, "mauve", *ANSWERS),
        with_bad("vqa", 3, "mauve", *ANSWERS),
    ],
    "the same in another split": [
        with_bad(task, 3, "mauve", *ANSWERS, split="valid", check=scored_but_not_learnt)
        for task in ("instruct", "vqa")
    ],
    "a label that is none of the three": [with_bad("snli_ve", 4, "perhaps")],
    "a confidence that is no number, or not from 0 to 1": [
        with_bad("instruct", 3, "high|!+red"),
        with_bad("vqa", 3, "high|!+red"),
        with_bad("vqa", 3, "1.5|!+red"),
    ],
    "a confidence and its answer with another sign between them": [
        with_bad("instruct", 3, "0.6|red"),
        with_bad("vqa", 3, "0.6|red"),
    ],
    "answers with confidences beside answers without": [
        with_bad("instruct", 3, "0.6|!+red&&pink"),
        with_bad("vqa", 3, "0.6|!+red&&pink"),
    ],
    "several texts in one of several slots of a target": [
        with_bad("instruct", 3, "red&&pink", *TWO_SLOTS),
    ],
    "a box that reaches out of the picture": box_cases("0,0,50,20"),
    "a box without area": box_cases("9,9,9,20"),
    "an empty question, phrase or hypothesis": [
        with_bad("vqa", 2, " "),
        with_bad("refcoco", 2, " "),
        with_bad("snli_ve", 2, " "),
    ],
    "an empty text before the arrow": [
        with_bad("instruct", 2, "", check=source_is(" what colour is the ?")),
    ],
    "an empty target in training (of `instruct` and `caption` also in validation)": [
        *(with_bad(task, -1, "") for task in GOOD),
        *(with_bad(task, -1, "", split="valid") for task in ("instruct", "caption")),
    ],
    "an empty target in a test file": [
        with_bad(task, -1, "", split="test", check=lambda task, example: not example.references)
        for task in GOOD
    ],
    "a question, phrase or hypothesis of more than `--max-src-length` words": [
        with_bad(task, 2, LONG, "--max-src-length", "3", check=source_is(text))
        for task, text in {
            "vqa": " one two three?",
            "refcoco": ' which region does the text " one two three " describe?',
            "snli_ve": ' does the image describe " one two three "?',
        }.items()
    ],
    "a source of more than `--max-source-positions` tokens": [with_bad("instruct", 2, "mug " * 1000)],
    "a free answer of more than `--max-tgt-length` tokens": [
        with_bad(
            *(task, 3, LONG, "--max-tgt-length", "2"),
            check=lambda task, example: learnt(task, example)[:-1] == task.vocabulary.encode(f" {LONG}")[:2],
        )
        for task in ("instruct", "vqa")
    ],
    "a picture that is missing": [
        with_bad("instruct", 1, "photos/no.jpg"),
        with_bad("instruct", 1, picture()[:100]),
    ],
    "a row with a column too few": [
        Case("instruct", [GOOD["instruct"], GOOD["instruct"][:3], GOOD["instruct"]])
    ],
    "a header line": [
        Case("instruct", [["id", "photo", "thing", "colour"], GOOD["instruct"]]),
        Case("caption", [["id", "picture", "caption"], GOOD["caption"]]),
        Case("refcoco", [["id", "picture", "phrase", "box"], GOOD["refcoco"]]),
    ],
    "a file without a usable row": [Case("instruct", [["1", "no.jpg", "mug", "red"]] * 2)],
    "another number of columns than the task's": [with_bad("instruct", 0, "0", "--selected-cols", "0,1,2")],
    "a slot without a column": [with_bad("instruct", 0, "0", "--columns", "id,photo,colour")],
    "a slot of an unknown type": [
        with_bad("instruct", 0, "0", "--instruction", "[image:photo] what colour is it? -> [colour:colour]")
    ],
    "an answer list that repeats an answer": [
        with_bad(task, 0, "0", "--ans2label-dict", '["red", "blue", "red"]')
        for task in ("instruct", "vqa", "snli_ve")
    ],
    "two answers that the vocabulary writes alike (one without capitals: `Red` and `red`)": [
        with_bad(
            *(task, 0, "0", "--ans2label-dict", '["Red", "blue", "red"]'),
            *("--sentencepiece-model", "FOLDER/lower_case.model"),
        )
        for task in ("instruct", "vqa", "snli_ve")
    ],
    "a pickle that asks for code": [with_bad("instruct", 0, "0", "--answers", "FOLDER/code.pkl")],
}


def without_capitals(bpe_dir: Path) -> bytes:
    """The sentencepiece model of a folder, but that it writes capitals as small letters."""
    folding = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(["a b c"]),
        model_writer=folding,
        vocab_size=10,
        hard_vocab_limit=False,
        normalization_rule_name="nfkc_cf",
        minloglevel=2,
    )
    model, other = ModelProto(), ModelProto()
    model.ParseFromString((bpe_dir / "sentencepiece.model").read_bytes())
    other.ParseFromString(folding.getvalue())
    model.normalizer_spec.precompiled_charsmap = other.normalizer_spec.precompiled_charsmap
    return model.SerializeToString()


@pytest.mark.parametrize("row", table("| input | task | outcome | message |"), ids=lambda row: row[0])
def test_bad_input_has_the_outcome_that_the_page_names(
    row: list[str], tmp_path: Path, sentencepiece_dir: Path
) -> None:
    name, tasks, outcome, message = row
    cases, messages = CASES[name], []
    assert tasks == "all" or {case.task for case in cases} == set(re.findall("`(.*?)`", tasks))
    for i, case in enumerate(cases):
        folder = tmp_path / str(i)
        folder.mkdir()
        (folder / "code.pkl").write_bytes(pickle.dumps(eval))
        (folder / "lower_case.model").write_bytes(without_capitals(sentencepiece_dir))
        found, text = case.outcome(folder, sentencepiece_dir)
        assert outcome.startswith(found), text
        messages.append(text)
    assert any(code(message) in text for text in messages), messages


def test_every_case_is_on_the_page() -> None:
    assert list(CASES) == [row[0] for row in table("| input | task | outcome | message |")]
