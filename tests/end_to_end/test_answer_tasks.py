"""vqa, refcoco, snli_ve and instruct through the real command lines: train, stop, resume, generate, score."""

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq import checkpoint_utils, tasks
from omegaconf import DictConfig
from script_runs import PLUGIN, ROOT, parse
from task_builders import TINY_FLAGS, TINY_TASK, picture, write_tsv

COLOURS = {"red": (220, 20, 20), "green": (20, 220, 20), "dark blue": (10, 10, 120)}
SIDES = {"left": "0,0,20,30", "right": "20,0,40,30"}
LABELS = {"yes": "entailment", "no": "contradiction", "maybe": "neutral"}


def scenes(count: int) -> list[tuple[str, str]]:
    """Colours by turns, and pictures of them."""
    names = [list(COLOURS)[i % 3] for i in range(count)]
    return [(name, picture(COLOURS[name], size=(40, 30))) for name in names]


@dataclass
class Case:
    """A task, its rows, and what is asked of it."""

    task: str
    flags: Sequence[str]
    metric: str  # as it is logged
    scoring: str
    label: str  # of the score that fairseq-generate prints
    adopted: Sequence[str]  # options that fairseq-generate takes from the checkpoint

    def rows(self, count: int) -> list[list[str]]:
        return [[f"row {i}", image, *self.columns(i, name)] for i, (name, image) in enumerate(scenes(count))]

    def columns(self, i: int, colour: str) -> list[str]:
        """What follows the picture."""
        raise NotImplementedError

    def reference(self, columns: list[str]) -> str:
        """The T- line of a row."""
        return columns[-1]

    def right(self, columns: list[str], output: str) -> float:
        """The score of an output."""
        return float(output == self.reference(columns))

    def allowed(self, output: str) -> bool:
        return output in COLOURS


class Vqa(Case):
    def columns(self, i: int, colour: str) -> list[str]:
        if i == 1:  # to be answered only
            return ["what colour is it", "", "a&&b"]
        return [f"What colour is scene-{i}", f"1.0|!+violet&&0.6|!+{colour}&&0.3|!+blue", "a&&b"]

    def reference(self, columns: list[str]) -> str:
        return columns[3]

    def right(self, columns: list[str], output: str) -> float:
        rated = dict(reversed(text.split("|!+")) for text in columns[3].split("&&"))
        return float(rated.get(output, 0))


class Refcoco(Case):
    def columns(self, i: int, colour: str) -> list[str]:
        side = list(SIDES)[i % 2]
        return [f"the {colour} {side}", SIDES[side]]

    def reference(self, columns: list[str]) -> str:
        x0, y0, x1, y1 = (float(number) for number in columns[3].split(","))
        # 40 x 30 pixels become 32 x 32, and the last of 16 bins is pixel 32.
        return ",".join(f"{15 * part:.4f}" for part in (x0 / 40, y0 / 30, x1 / 40, y1 / 30))

    def right(self, columns: list[str], output: str) -> float:
        a, b = (
            [int(i) for i in re.findall(r"\d+", output)],
            [float(i) for i in self.reference(columns).split(",")],
        )
        width, height = (min(a[i + 2], b[i + 2]) - max(a[i], b[i]) for i in (0, 1))
        both = max(width, 0) * max(height, 0)
        union = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)) - both
        return float(both > 0 and both / union >= 0.5)

    def allowed(self, output: str) -> bool:
        return re.fullmatch(r"(<bin_\d+>){4}", output.replace(" ", "")) is not None


class SnliVe(Case):
    def columns(self, i: int, colour: str) -> list[str]:
        return [f"it is {colour}", f"number {i}", list(LABELS.values())[i % 3]]

    def reference(self, columns: list[str]) -> str:
        return {label: answer for answer, label in LABELS.items()}[columns[-1]]

    def allowed(self, output: str) -> bool:
        return output in LABELS


class Instruct(Case):
    def columns(self, i: int, colour: str) -> list[str]:
        return [f"thing {i}", colour]


EMA = ("--store-ema", "--ema-fp32", "--ema-decay", "0.9", "--ema-start-update", "0", "--uses-ema")
ANSWERS = ("--ans2label-dict", json.dumps({name: i for i, name in enumerate(COLOURS)}))
CASES = {
    "vqa": Vqa(
        "vqa",
        (*EMA, *ANSWERS, "--add-object", "--prompt-type", "prev_output", "--valid-batch-size", "2"),
        "vqa_score",
        "vqa",
        "VQA accuracy",
        ("ans2label_dict", "add_object"),
    ),
    "vqa_gen": Vqa(
        "vqa_gen",
        (*ANSWERS, "--prompt-type", "src", "--val-inference-type", "beamsearch"),
        "vqa_score",
        "vqa",
        "VQA accuracy",
        ("ans2label_dict", "prompt_type"),
    ),
    "refcoco": Refcoco(
        "refcoco",
        ("--eval-acc", "--max-image-size", "32", "--eval-args", '{"beam": 2, "min_len": 4, "max_len_b": 4}'),
        "score",
        "box_accuracy",
        "Acc@0.5",
        ("max_image_size",),
    ),
    "snli_ve": SnliVe("snli_ve", ("--add-caption",), "snli_score", "accuracy", "Accuracy", ("add_caption",)),
    "instruct": Instruct(
        "instruct",
        (
            *("--instruction", "[image:photo] what colour is the [text:thing]? -> [label:colour]"),
            *("--columns", "id,photo,thing,colour", "--metric", "accuracy"),
        ),
        "score",
        "accuracy",
        "Accuracy",
        ("instruction", "columns", "answers"),
    ),
}
quick_and_slow = [name if name == "vqa" else pytest.param(name, marks=pytest.mark.slow) for name in CASES]

# Starting Python and importing fairseq takes longer than these runs.
IN_ONE_PROCESS = """
import json, logging, sys
logging.basicConfig(format="| %(name)s | %(message)s", level="INFO", stream=sys.stdout)
from fairseq_cli import generate, train
for line in json.loads(sys.argv[1]):
    print("=== line", flush=True)
    sys.argv = ["fairseq", *line]
    (generate if "--path" in line else train).cli_main()
"""


def run(lines: Sequence[Sequence[str]], cwd: Path) -> list[str]:
    """What each of fairseq-train's and fairseq-generate's command lines prints."""
    done = subprocess.run(
        [sys.executable, "-c", IN_ONE_PROCESS, json.dumps(lines)],
        cwd=cwd,
        env={"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-5000:]
    return done.stdout.split("=== line\n")[1:]


@dataclass
class Runs:
    """What came of a case."""

    case: Case
    folder: Path
    through: str  # logs: two epochs in one go,
    stopped: str  # stopped in the first,
    resumed: str  # and gone on with
    generated: str


def train_line(case: Case, folder: Path, bpe_dir: Path, save_dir: str, *more: str) -> list[str]:
    extra = ("--answers", str(folder / "answers.txt")) if case.task == "instruct" else ()
    return [
        f"{folder / 'train.tsv'},{folder / 'valid.tsv'}",
        *("--user-dir", PLUGIN, "--task", case.task, "--bpe-dir", str(bpe_dir), *TINY_FLAGS, *TINY_TASK),
        *("--criterion", "adjust_label_smoothed_cross_entropy", "--label-smoothing", "0.1"),
        *(
            "--optimizer",
            "adam",
            "--lr",
            "1e-2",
            "--lr-scheduler",
            "polynomial_decay",
            "--warmup-ratio",
            "0.1",
        ),
        *("--batch-size", "4", "--max-epoch", "2", "--clip-norm", "1.0", "--num-workers", "0"),
        *("--log-format", "simple", "--log-interval", "1", "--no-epoch-checkpoints"),
        *("--best-checkpoint-metric", case.metric, "--maximize-best-checkpoint-metric"),
        *("--save-dir", str(folder / save_dir), *case.flags, *extra, *more),
    ]


def generate_line(case: Case, folder: Path, data: str, *more: str) -> list[str]:
    """What the checkpoint knows is not repeated."""
    return [
        *(str(folder / data), "--user-dir", PLUGIN, "--task", case.task, "--scoring", case.scoring),
        *(
            "--path",
            str(folder / "stopped" / "checkpoint_last.pt"),
            "--batch-size",
            "3",
            "--beam",
            "2",
            *more,
        ),
    ]


def runs_of(case: Case, folder: Path, bpe_dir: Path) -> Runs:
    write_tsv(folder / "train.tsv", case.rows(12)[:1] + case.rows(12)[2:])
    write_tsv(folder / "valid.tsv", case.rows(5))
    (folder / "answers.txt").write_text("\n".join(COLOURS))
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    train = [
        train_line(case, folder, bpe_dir, name, *more)
        for name, more in (("through", ()), ("stopped", ("--max-update", "2")), ("stopped", ()))
    ]
    more: Sequence[str] = ()
    if case.task == "vqa":
        more = ("--ema-eval", "--nbest", "2", "--candidates", str(folder / "candidates.jsonl"))
    return Runs(case, folder, *run([*train, generate_line(case, folder, "valid.tsv", *more)], elsewhere))


@pytest.fixture(scope="module")
def runs(request: pytest.FixtureRequest, sentencepiece_dir: Path, tmp_path_factory: Any) -> Runs:
    return runs_of(CASES[request.param], tmp_path_factory.mktemp(request.param), sentencepiece_dir)


each_task = pytest.mark.parametrize("runs", quick_and_slow, indirect=True)


def checkpoint(folder: Path, name: str = "checkpoint_last.pt") -> dict[str, Any]:
    return checkpoint_utils.load_checkpoint_to_cpu(str(folder / name))


def logged(log: str, tag: str, key: str) -> list[float]:
    lines = [line for line in log.splitlines() if f"| {tag} |" in line]
    found = [re.search(rf"[ ,|]{key}[ =]([\d.e-]+)", line) for line in lines]
    return [float(match[1]) for match in found if match]


def printed(output: str, kind: str) -> dict[str, str]:
    """The last column of the lines of a kind (S, T, H, D), by row."""
    lines = re.findall(rf"^{kind}-(row \d+)\t(.*)$", output, re.MULTILINE)
    return {name: rest.split("\t")[-1].strip() for name, rest in reversed(lines)}  # the first is the best


@each_task
def test_two_epochs_train_and_validate_by_the_tasks_metric(runs: Runs) -> None:
    losses, scores = (
        logged(runs.through, *which) for which in (("train_inner", "loss"), ("valid", runs.case.metric))
    )
    assert len(losses) == 2 * 3  # 11 rows, 4 a batch
    assert min(losses) < losses[0]
    assert len(scores) == 2
    assert all(0 <= score <= 1 for score in scores)
    assert logged(runs.through, "valid", "loss")
    best = checkpoint(runs.folder / "through", "checkpoint_best.pt")
    assert best["extra_state"]["best"] == pytest.approx(max(scores), abs=1e-4)
    assert not (runs.folder / "through" / "bad_rows.tsv").exists()


@each_task
def test_a_stopped_run_goes_on_as_if_nothing_had_happened(runs: Runs) -> None:
    losses = [logged(log, "train_inner", "loss") for log in (runs.through, runs.stopped, runs.resumed)]
    assert losses[1] + losses[2] == losses[0]
    whole, resumed = (checkpoint(runs.folder / name) for name in ("through", "stopped"))
    pairs = [(whole["model"], resumed["model"])]
    if runs.case.task == "vqa":
        pairs += [(whole["extra_state"][k], resumed["extra_state"][k]) for k in ("ema", "ema_fp32_params")]
    for a, b in pairs:
        assert a.keys() == b.keys()
        for name, value in a.items():
            torch.testing.assert_close(value, b[name], atol=1e-6, rtol=1e-6, msg=name)


@each_task
def test_generation_scores_what_it_prints(runs: Runs) -> None:
    """From another folder, with the options of the checkpoint."""
    case = runs.case
    rows = {row[0]: row for row in case.rows(5)}
    outputs, references = printed(runs.generated, "D"), printed(runs.generated, "T")
    assert outputs.keys() == references.keys() == printed(runs.generated, "S").keys() == rows.keys()
    assert references == {name: case.reference(row) for name, row in rows.items()}
    assert all(case.allowed(output) for output in outputs.values())
    scored = {name: row for name, row in rows.items() if case.reference(row)}
    mean = 100 * sum(case.right(row, outputs[name]) for name, row in scored.items()) / len(scored)
    found = re.search(
        rf"^Generate test with beam=2: {re.escape(case.label)} = ([\d.]+) over (\d+) rows",
        runs.generated,
        re.M,
    )
    assert found, runs.generated[-2000:]
    assert float(found[1]) == pytest.approx(mean, abs=0.01)
    assert int(found[2]) == len(scored)
    adopted = re.search(r"options from the checkpoint: (.*)", runs.generated)
    assert adopted
    assert all(f"'{name}'" in adopted[1] for name in case.adopted)
    # Scores are probabilities, logarithms to base 2: an answer can be told from a poor one by a threshold.
    scores = [float(score) for score in re.findall(r"^H-row \d+\t(\S+)\t", runs.generated, re.MULTILINE)]
    assert len(scores) >= len(rows)
    assert all(score <= 1e-6 for score in scores)


@each_task
def test_generation_repeats_the_last_validation(runs: Runs) -> None:
    """The same rows, weights (for vqa the averaged ones) and, of the answers that are allowed, the same best."""
    found = re.search(r"^Generate test .* = ([\d.]+) over", runs.generated, re.M)
    assert found
    assert float(found[1]) / 100 == pytest.approx(
        logged(runs.resumed, "valid", runs.case.metric)[-1], abs=1e-4
    )


@pytest.mark.parametrize("runs", ["vqa"], indirect=True)
def test_averages_are_kept_beside_the_weights(runs: Runs) -> None:
    state = checkpoint(runs.folder / "stopped")
    model, ema = state["model"], state["extra_state"]["ema"]
    assert model.keys() == ema.keys()
    assert all(value.is_floating_point() for value in ema.values())
    assert any(not torch.equal(model[name], ema[name]) for name in ema)
    assert "the checkpoint lacks" not in runs.through + runs.resumed + runs.generated


@pytest.mark.parametrize("runs", ["vqa"], indirect=True)
def test_the_probabilities_of_all_answers_are_written(runs: Runs) -> None:
    lines = [json.loads(line) for line in (runs.folder / "candidates.jsonl").read_text().splitlines()]
    best = {line["id"]: next(iter(line["answers"])) for line in lines}
    assert best == printed(runs.generated, "D")
    for line in lines:
        assert line["answers"].keys() == COLOURS.keys()
        assert sum(line["answers"].values()) == pytest.approx(1, abs=1e-4)
    # H- lines have the logarithms to base 2 of the two best.
    for line in lines:
        shown = re.findall(rf"^H-{line['id']}\t(\S+)\t", runs.generated, re.MULTILINE)
        probabilities = list(line["answers"].values())[:2]
        assert [2 ** float(score) for score in shown] == pytest.approx(probabilities, abs=1e-4)


# Published command lines, after the launcher became `fairseq-train` and --user-dir ours

COMMON = [
    *(f"--user-dir={PLUGIN}", "--bpe-dir=../../utils/BPE", "--restore-file=../../checkpoints/ofa_large.pt"),
    *("--reset-optimizer", "--reset-dataloader", "--reset-meters", "--save-dir=./checkpoints"),
    *("--criterion=adjust_label_smoothed_cross_entropy", "--arch=ofa_large", "--encoder-normalize-before"),
    *("--decoder-normalize-before", "--share-decoder-input-output-embed", "--share-all-embeddings"),
    *("--layernorm-embedding", "--patch-layernorm-embedding", "--code-layernorm-embedding"),
    *("--resnet-drop-path-rate=0.0", "--encoder-drop-path-rate=0.2", "--decoder-drop-path-rate=0.2"),
    *("--dropout=0.1", "--attention-dropout=0.0", "--weight-decay=0.01", "--optimizer=adam"),
    *("--adam-betas=(0.9,0.999)", "--adam-eps=1e-08", "--clip-norm=1.0", "--lr-scheduler=polynomial_decay"),
    *("--log-format=simple", "--log-interval=10", "--fixed-validation-seed=7", "--save-interval=1"),
    *("--validate-interval=1", "--maximize-best-checkpoint-metric", "--max-src-length=80"),
    *("--find-unused-parameters", "--add-type-embedding", "--scale-attn", "--scale-fc", "--scale-heads"),
    *("--disable-entangle", "--num-bins=1000", "--fp16", "--fp16-scale-window=512", "--num-workers=0"),
]
EACH_500 = ["--save-interval-updates=500", "--validate-interval-updates=500"]
BOXES = '--eval-args={"beam":5,"min_len":4,"max_len_a":0,"max_len_b":4}'
TRAINING = {
    "vqa_gen": [
        *("train.tsv,valid.tsv", "--selected-cols=0,5,2,3,4", "--task=vqa_gen", "--label-smoothing=0.1"),
        *("--batch-size=4", "--update-freq=4", "--lr=5e-5", "--max-update=40000", "--warmup-updates=1000"),
        *("--total-num-update=40000", "--keep-last-epochs=15", "--best-checkpoint-metric=vqa_score"),
        *("--max-object-length=30", "--max-tgt-length=30", "--freeze-encoder-embedding"),
        *("--freeze-decoder-embedding", "--ans2label-file=trainval_ans2label.pkl", "--valid-batch-size=20"),
        *("--add-object", "--patch-image-size=480", "--prompt-type=prev_output", "--uses-ema", "--store-ema"),
        *("--ema-fp32", "--ema-decay=0.9999", "--ema-start-update=0", "--val-inference-type=allcand"),
    ],
    "refcoco": [
        *("train.tsv,valid.tsv", "--selected-cols=0,4,2,3", "--task=refcoco", "--label-smoothing=0.1"),
        *("--batch-size=4", "--update-freq=8", "--lr=3e-5", "--max-epoch=10", "--warmup-ratio=0.06"),
        *("--no-epoch-checkpoints", "--keep-best-checkpoints=1", *EACH_500, "--eval-acc", BOXES),
        *("--best-checkpoint-metric=score", "--max-tgt-length=20", "--patch-image-size=512"),
    ],
    "snli_ve": [
        *("train.tsv,valid.tsv", "--selected-cols=0,2,3,4,5", "--task=snli_ve", "--label-smoothing=0.0"),
        *("--batch-size=8", "--update-freq=4", "--lr=2e-5", "--max-epoch=6", "--warmup-ratio=0.06"),
        *("--keep-best-checkpoints=1", *EACH_500, "--best-checkpoint-metric=snli_score"),
        *("--max-tgt-length=20", "--patch-image-size=480", "--add-caption", "--prompt-type=prev_output"),
    ],
}
OVERRIDES = '--model-overrides={"data":"test.tsv","bpe_dir":"../../utils/BPE","selected_cols":"0,5,2,3,4"}'
GENERATION = [
    *("test.tsv", "--path=best.pt", f"--user-dir={PLUGIN}", "--log-format=simple", "--log-interval=10"),
    *(
        "--seed=7",
        "--gen-subset=test",
        "--results-path=../../results",
        "--fp16",
        "--num-workers=0",
        OVERRIDES,
    ),
]
EVALUATION = {
    "vqa all candidates": ["--task=vqa_gen", "--batch-size=8", "--ema-eval"],
    "vqa beam": [
        *("--task=vqa_gen", "--batch-size=16", "--ema-eval", "--beam-search-vqa-eval", "--beam=5"),
        *("--unnormalized", "--temperature=1.0"),
    ],
    "vqa zero-shot": [
        *("--task=vqa_gen", "--batch-size=16", "--zero-shot", "--prompt-type=none", "--beam=20"),
        *("--unnormalized", "--patch-image-size=480", "--bpe-dir=../../utils/BPE"),
    ],
    "refcoco": [
        *("--task=refcoco", "--batch-size=16", "--beam=5", "--min-len=4", "--max-len-a=0", "--max-len-b=4"),
        "--no-repeat-ngram-size=3",
    ],
    "snli_ve": ["--task=snli_ve", "--batch-size=8"],
    "snli_ve zero-shot": [
        *("--task=snli_ve", "--batch-size=8", "--zero-shot", "--prompt-type=prev_output"),
        *("--patch-image-size=384", "--bpe-dir=../../utils/BPE"),
    ],
}


def task_of(cfg: DictConfig, folder: Path) -> Any:
    """The task of a configuration, with an answer list that is there."""
    (folder / "answers.txt").write_text("yes\nno\n")
    if cfg.task.get("ans2label_file"):
        cfg.task.ans2label_file = str(folder / "answers.txt")
    return tasks.setup_task(cfg.task)


@pytest.mark.parametrize("name", TRAINING)
def test_published_training_lines_set_the_task_up(name: str, tmp_path: Path) -> None:
    cfg = parse("training", [*TRAINING[name], *COMMON])
    task = task_of(cfg, tmp_path)
    assert cfg.checkpoint.best_checkpoint_metric == task.score_name
    assert task.cfg.max_src_length == 80
    expected: dict[str, dict[str, Any]] = {
        "vqa_gen": {
            "add_object": True,
            "answers": ["yes", "no"],
            "prompt_type": "prev_output",
            "max_object_length": 30,
            "uses_ema": True,
            "patch_image_size": 480,
        },
        "refcoco": {"eval_acc": True, "max_image_size": 512, "patch_image_size": 512},
        "snli_ve": {"add_caption": True, "answers": ["no", "yes", "maybe"], "prompt_type": "prev_output"},
    }
    for option, value in expected[name].items():
        assert getattr(task, option, getattr(task.cfg, option, None)) == value, option
    assert task.validation_metric() is not None
    if name == "vqa_gen":
        assert (cfg.ema.store_ema, cfg.ema.ema_fp32, cfg.ema.ema_decay) == (True, True, 0.9999)
    if name == "refcoco":
        assert task._eval_options() == {"beam": 5, "min_len": 4, "max_len_a": 0, "max_len_b": 4}


@pytest.mark.parametrize("name", EVALUATION)
def test_published_evaluation_lines_set_the_task_up(name: str, tmp_path: Path) -> None:
    cfg = parse("generation", [*GENERATION, *EVALUATION[name]])
    task = task_of(cfg, tmp_path)
    assert task.generating
    assert task.cfg.ema_eval == ("--ema-eval" in EVALUATION[name])
    assert task.cfg.zero_shot == ("zero-shot" in name)
    if name == "vqa beam":
        assert (task.cfg.beam_search_vqa_eval, cfg.generation.unnormalized, cfg.generation.beam) == (
            True,
            True,
            5,
        )
