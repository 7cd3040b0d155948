"""More of the real command lines: what they score, several processes, damaged data, other places of the plugin."""

import math
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from command_lines import (
    CIDER,
    PLUGIN,
    assert_same_weights,
    command,
    logged,
    run,
    train,
    train_args,
    train_in_two_processes,
)
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


class Trained:
    """Three epochs with validation by CIDEr, and what they logged."""

    def __init__(self, digits: Path, folder: Path) -> None:
        self.folder = folder
        self.log = train(digits, folder, "--max-epoch", "3", *CIDER, "--tensorboard-logdir", folder / "tb")
        self.last, self.best = folder / "checkpoint_last.pt", folder / "checkpoint_best.pt"

    def events(self, name: str) -> EventAccumulator:
        """What TensorBoard would show of one of its folders."""
        accumulator = EventAccumulator(str(self.folder / "tb" / name))
        accumulator.Reload()
        return accumulator


@pytest.fixture(scope="module")
def trained(digits_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return Trained(digits_dir, tmp_path_factory.mktemp("trained"))


def generate(data: Path, checkpoint: Path, *flags: Any, cwd: Path | None = None) -> str:
    """The command line of the documentation: what the checkpoint knows is not repeated."""
    args = (
        data,
        "--user-dir",
        PLUGIN,
        "--task",
        "caption",
        "--path",
        checkpoint,
        "--scoring",
        "cider",
        *flags,
    )
    return run([*command("fairseq-generate"), *args], cwd=cwd)


def cider_of(output: str) -> float:
    found = re.search(r"^Generate .*CIDEr = ([0-9.]+) \(BLEU-4 = [0-9.]+, ROUGE-L = [0-9.]+\)$", output, re.M)
    assert found, output[-3000:]
    return float(found[1])


# Train, validate, generate, score


def test_train_then_generate_from_another_folder(trained: Trained, digits_dir: Path, tmp_path: Path) -> None:
    losses = logged(trained.log, "train_inner", "loss")
    assert len(losses) == 24  # three epochs of eight batches
    assert losses[0] == pytest.approx(math.log(734), rel=0.1)  # about uniform over the vocabulary
    assert losses[-1] < 0.6 * losses[0]
    assert max(logged(trained.log, "valid", "cider")) > 0.05

    output = generate(digits_dir / "valid.tsv", trained.last, "--beam", 2, "--max-len-b", 20, cwd=tmp_path)
    lines = [line.split("\t") for line in output.splitlines()]
    hypotheses = {head[2:]: rest for head, *rest in lines if head.startswith("H-")}
    captions = {head[2:]: rest for head, *rest in lines if head.startswith("D-")}
    assert sorted(captions, key=int) == sorted(hypotheses, key=int) == [str(i) for i in range(12)]
    assert all(float(score) < 0 and text.split() for score, text in captions.values())
    assert all("▁" not in text for _, text in captions.values())
    # The same file, the same search: the validation's number.
    assert cider_of(output) == pytest.approx(logged(trained.log, "valid", "cider")[-1], abs=6e-4)


def test_rows_of_several_batches_come_once_and_results_go_to_a_folder(
    trained: Trained, digits_dir: Path, tmp_path: Path
) -> None:
    flags = ("--beam", 2, "--batch-size", 5, "--num-workers", 2, "--results-path", tmp_path, "--nbest", 2)
    generate(digits_dir / "test.tsv", trained.best, *flags)
    output = (tmp_path / "generate-test.txt").read_text()
    heads = [line.split("\t")[0] for line in output.splitlines() if line.startswith("D-")]
    assert sorted(heads, key=lambda head: int(head[2:])) == [f"D-{i}" for i in range(12) for _ in range(2)]
    cider_of(output)


@pytest.mark.slow
def test_an_ensemble_in_half_precision(trained: Trained, digits_dir: Path) -> None:
    flags = ("--beam", 2, "--max-len-b", 20, "--fp16", "--cpu")
    paths = f"{trained.last}:{trained.last}"
    output = generate(digits_dir / "valid.tsv", Path(paths), *flags)
    assert cider_of(output) == pytest.approx(logged(trained.log, "valid", "cider")[-1], abs=0.1)


def test_tensorboard_shows_scores_and_pictures(trained: Trained) -> None:
    ciders = [event.value for event in trained.events("valid").Scalars("cider")]
    assert ciders == pytest.approx(logged(trained.log, "valid", "cider"), abs=1e-6)
    assert {"loss", "lr", "wps"} <= set(trained.events("train_inner").Tags()["scalars"])
    assert [event.step for event in trained.events("train_inner").Scalars("loss")] == list(range(1, 25))
    pictures = trained.events("valid_pictures").Images("pictures")
    assert len(pictures) == len(ciders) == 3
    assert pictures[0].width > 4 * 32
    assert pictures[0].encoded_image_string.startswith(b"\x89PNG")


def test_pictures_stand_at_the_update_of_their_score(trained: Trained) -> None:
    steps = [event.step for event in trained.events("valid").Scalars("cider")]
    assert [picture.step for picture in trained.events("valid_pictures").Images("pictures")] == steps


# Several processes


@pytest.mark.slow
def test_two_processes_equal_one_also_where_one_has_nothing_left(digits_dir: Path, tmp_path: Path) -> None:
    """Nine batches an epoch: in its last update the second process has none."""
    # Each process has its own batch statistics, unless BatchNorm is frozen. The bias of an attention's keys shifts
    # all logits of a query alike, so its gradient is rounding error, which Adam would blow up to whole steps.
    flags = ("--batch-size", "7", "--freeze-resnet", "--max-epoch", "2", "--disable-validation")
    flags = (*flags, "--optimizer", "sgd", "--lr", "0.1")
    alone = train(digits_dir, tmp_path / "alone", *flags, "--update-freq", "2")
    together, _ = train_in_two_processes(digits_dir, tmp_path, *flags)
    assert len(logged(alone, "train_inner", "loss")) == 10
    for key in ("loss", "gnorm", "lr", "bsz"):
        expected = logged(alone, "train_inner", key)
        assert logged(together, "train_inner", key) == pytest.approx(expected, abs=2e-3)
    assert_same_weights(
        tmp_path / "run" / "checkpoint_last.pt", tmp_path / "alone" / "checkpoint_last.pt", 1e-5
    )


@pytest.mark.slow
def test_two_processes_validate_all_rows_once(trained: Trained, digits_dir: Path, tmp_path: Path) -> None:
    """Two ranks score what one scores, with three batches (so that one rank has none at the end)."""
    flags = (
        *("--restore-file", trained.last, "--reset-optimizer", "--reset-lr-scheduler", "--reset-meters"),
        *(
            "--reset-dataloader",
            "--freeze-resnet",
            "--lr",
            "0",
            "--max-update",
            "1",
            "--batch-size-valid",
            "5",
        ),
        *("--tensorboard-logdir", tmp_path / "tb", *CIDER),
    )
    together, _ = train_in_two_processes(digits_dir, tmp_path, *flags)
    alone = train(digits_dir, tmp_path / "alone", *flags)
    for key in ("cider", "loss"):
        [value] = logged(alone, "valid", key)
        assert logged(together, "valid", key) == [pytest.approx(value, abs=1.1e-3)]
    assert logged(alone, "valid", "cider")[0] > 0.05


# Data as users have it


def damaged(path: Path, source: Path, rows: range) -> Path:
    """Some rows of a file, of which the third lacks a column, and the fifth its picture."""
    lines = [source.read_text().splitlines()[i].split("\t") for i in rows]
    del lines[2][3]
    lines[4][4] = "broken"
    path.write_text("".join("\t".join(line) + "\n" for line in lines))
    return path


def test_files_rotate_and_bad_rows_are_counted(digits_dir: Path, tmp_path: Path) -> None:
    for name, rows in (("a.tsv", range(12)), ("b.tsv", range(12, 40))):
        damaged(tmp_path / name, digits_dir / "train.tsv", rows)
    damaged(tmp_path / "valid.tsv", digits_dir / "valid.tsv", range(12))
    data = ",".join(str(tmp_path / name) for name in ("a.tsv", "b.tsv", "valid.tsv"))
    flags = ("--max-epoch", 3, "--num-workers", 2, "--drop-worst-ratio", 0.2, "--drop-worst-after", 2)
    log = train(digits_dir, tmp_path / "run", *flags, data=data)

    # Two batches of 12 rows, four of 28, two of 12 again; bad rows are missing from them.
    assert logged(log, "train_inner", "num_updates") == list(range(1, 9))
    assert logged(log, "train", "skipped_rows") == [2, 2, 2]
    assert logged(log, "train", "num_updates") == [2, 6, 8]
    assert sum(logged(log, "train_inner", "bsz")) == 10 + 26 + 10
    assert logged(log, "train_inner", "lr")[-1] == 0  # the schedule knew the length
    assert logged(log, "valid", "skipped_rows") == [2, 2, 2]
    listed = [line.split("\t") for line in (tmp_path / "run" / "bad_rows.tsv").read_text().splitlines()]
    expected = {(str(tmp_path / name), row) for name in ("a.tsv", "b.tsv", "valid.tsv") for row in ("3", "5")}
    assert {(path, row) for path, row, _ in listed} == expected
    assert len(listed) == len(expected)
    assert all(value > 0 and math.isfinite(value) for value in logged(log, "train_inner", "loss"))


@pytest.mark.slow
def test_a_checkpoint_trained_with_relative_paths_is_used_elsewhere(digits_dir: Path, tmp_path: Path) -> None:
    arguments = [
        str(part).replace(f"{digits_dir}/", "")
        for part in train_args(digits_dir, tmp_path / "run", "--max-update", 1)
    ]
    arguments = ["." if part == str(digits_dir) else part for part in arguments]
    run([*command("fairseq-train"), *arguments], cwd=digits_dir)
    generate(
        digits_dir / "test.tsv",
        tmp_path / "run" / "checkpoint_last.pt",
        "--beam",
        1,
        "--max-len-b",
        5,
        cwd=tmp_path,
    )


@pytest.mark.slow
def test_generation_does_not_need_the_document_frequencies_of_training(
    digits_dir: Path, tmp_path: Path
) -> None:
    from ofa_fairseq.metrics.cider import DocumentFrequencies

    file = tmp_path / "frequencies.gz"
    DocumentFrequencies.from_references([["a red one"], ["a blue two"]]).save(file)
    train(digits_dir, tmp_path / "run", *CIDER, "--eval-cider-cached-tokens", file, "--max-update", 1)
    file.unlink()
    generate(digits_dir / "test.tsv", tmp_path / "run" / "checkpoint_last.pt", "--beam", 1, "--max-len-b", 5)


# Precision


@pytest.mark.slow
@pytest.mark.parametrize("flag", ["--bf16", "--memory-efficient-fp16"])
def test_lower_precision_follows_full_precision_and_validates(
    flag: str, trained: Trained, digits_dir: Path, tmp_path: Path
) -> None:
    log = train(digits_dir, tmp_path, "--max-epoch", "3", "--max-update", "8", flag, *CIDER)
    expected = logged(trained.log, "train_inner", "loss")[:8]
    assert logged(log, "train_inner", "loss") == pytest.approx(expected, rel=0.05)
    assert len(logged(log, "valid", "cider")) == 1


# The plugin

IN_ONE_PROCESS = """
import sys
{first}
from fairseq_cli import generate, train
for arguments in {lines}:
    sys.argv = arguments
    (generate if "--path" in arguments else train).cli_main()
"""


def run_in_one_process(lines: Sequence[Sequence[Any]], first: str = "", python_path: str = "") -> str:
    """Command lines one after the other, after the statement `first`."""
    texts = [["fairseq", *map(str, line)] for line in lines]
    return run(
        [sys.executable, "-c", IN_ONE_PROCESS.format(first=first, lines=texts)], python_path=python_path
    )


def generate_args(digits: Path, checkpoint: Path, *user_dir: Any) -> list[Any]:
    flags = ("--task", "caption", "--path", checkpoint, "--scoring", "cider", "--beam", 1, "--max-len-b", 5)
    return [digits / "test.tsv", *flags, *user_dir]


def without_user_dir(args: list[Any]) -> list[Any]:
    at = args.index("--user-dir")
    return args[:at] + args[at + 2 :]


@pytest.mark.slow
@pytest.mark.parametrize("installed", [False, True], ids=["user-dir", "installed"])
def test_the_plugin_serves_several_runs_of_one_process(
    installed: bool, digits_dir: Path, tmp_path: Path
) -> None:
    """Installed: imported by its name, with and without --user-dir."""
    lines = [
        train_args(digits_dir, tmp_path / "a", "--max-update", 1, *CIDER),
        train_args(digits_dir, tmp_path / "b", "--max-update", 1),
        generate_args(digits_dir, tmp_path / "a" / "checkpoint_last.pt", "--user-dir", PLUGIN),
    ]
    if installed:
        lines[1] = without_user_dir(lines[1])
        lines[2] = generate_args(digits_dir, tmp_path / "a" / "checkpoint_last.pt")
    first = "import ofa_fairseq" if installed else ""
    output = run_in_one_process(lines, first, str(PLUGIN.parent))
    cider_of(output)
    assert (tmp_path / "b" / "checkpoint_last.pt").is_file()


@pytest.mark.slow
def test_the_plugin_works_from_another_folder_under_another_name(digits_dir: Path, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere" / "my_plugin"
    shutil.copytree(PLUGIN, copy, ignore=shutil.ignore_patterns("__pycache__"))
    lines = [
        [*without_user_dir(train_args(digits_dir, tmp_path / "run", "--max-update", 1)), "--user-dir", copy],
        generate_args(digits_dir, tmp_path / "run" / "checkpoint_last.pt", "--user-dir", copy),
    ]
    cider_of(run_in_one_process(lines))


# Mistakes


def test_mistakes_stop_before_training(digits_dir: Path, tmp_path: Path) -> None:
    args = train_args(digits_dir, tmp_path, "--selected-cols", "0,4")
    log = run([*command("fairseq-train"), *args], fails=True)
    assert re.search(
        r"ValueError: .*has 5 columns between tabs, 2 of them selected.*task caption needs 3 \(id, picture, caption\)",
        log,
    )
    assert not logged(log, "train_inner", "loss")
