"""Self-critical training through the real command lines: stop, resume, several processes, precisions, odd rows."""

import json
import math
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from command_lines import CIDER, assert_same_weights, logged, train, train_in_two_processes, weights
from task_builders import picture, write_tsv

LOGGED = ("loss", "reward", "baseline", "reward_spread", "sample_length", "entropy", "collapsed")
DRAWN = '{"beam": 3, "sampling": true, "max_len_b": 12}'
BEAM = '{"beam": 3, "max_len_b": 12}'
# A user's reward, which also writes down what it is asked about, each process in a file of its own.
WRITTEN_REWARD = """
import json
from pathlib import Path
from torch import distributed


def length(outputs, references):
    rank = distributed.get_rank() if distributed.is_initialized() else 0
    with Path(__file__).with_name(f"outputs{rank}.jsonl").open("a") as file:
        file.write(json.dumps([list(map(str, outputs)), list(map(list, references))]) + "\\n")
    return [len(text.split()) for text in outputs]
"""
# fairseq saves what the first rank has.
SAVE_ALL_RANKS = """
from fairseq_cli.train import Trainer, cli_main
Trainer.should_save_checkpoint_on_current_rank = property(lambda self: True)
Trainer.checkpoint_suffix = property(lambda self: f"-rank{self.data_parallel_rank}")
cli_main()
"""


@pytest.fixture(scope="module")
def stage1(digits_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that cross entropy has taught some of the words."""
    folder = tmp_path_factory.mktemp("stage1")
    train(digits_dir, folder, "--max-epoch", 3, "--disable-validation")
    return folder / "checkpoint_last.pt"


def stage2(
    stage1: Path, samples: str = DRAWN, data: Any = "train_references.tsv,valid.tsv"
) -> dict[str, Any]:
    """Stage 2, as the scripts start it, as keywords of `train`."""
    start = ("--finetune-from-model", stage1, "--lr", "1e-3")
    criterion = ("--criterion", "scst_reward_criterion", "--scst", "--scst-args", samples)
    return {"criterion": (*criterion, *start), "data": data}


def written_reward(folder: Path) -> tuple[str, ...]:
    """Flags for the reward that writes down what it is asked about, in `folder`, which is to be on the path."""
    (folder / "written_reward.py").write_text(WRITTEN_REWARD)
    return ("--scst-reward", "written_reward:length")


def asked(folder: Path, rank: int = 0) -> list[tuple[list[str], list[list[str]]]]:
    """Outputs and references of each call of the written reward."""
    return [tuple(json.loads(line)) for line in (folder / f"outputs{rank}.jsonl").read_text().splitlines()]


def assert_all_finite(log: str, tag: str = "train_inner") -> None:
    for key in LOGGED:
        values = logged(log, tag, key)
        assert values, key
        assert all(map(math.isfinite, values)), key


def changed(before: Path, after: Path) -> list[str]:
    """The weights in a checkpoint that differ from another one's."""
    old = weights(before)
    return [name for name, value in weights(after).items() if not torch.equal(value, old[name])]


# Stop and resume


@pytest.mark.parametrize(
    "samples",
    [pytest.param(DRAWN, id="drawn"), pytest.param(BEAM, id="beam", marks=pytest.mark.slow)],
)
def test_a_run_stopped_within_an_epoch_goes_on_as_if_nothing_had_happened(
    samples: str, stage1: Path, digits_dir: Path, tmp_path: Path
) -> None:
    """Killed after it had saved its third of eight updates an epoch: weights and logs are those of the whole run."""
    flags = (*CIDER, "--dropout", 0.1, "--max-update", 10, "--max-epoch", 0)
    flags = (*flags, "--save-interval-updates", 3, "--validate-interval-updates", 3)
    whole = train(digits_dir, tmp_path / "whole", *flags, **stage2(stage1, samples))
    assert_all_finite(whole)
    assert_all_finite(whole, "valid")
    assert max(logged(whole, "train_inner", "reward_spread")) > 0  # there is something to learn
    (tmp_path / "killed").mkdir()
    shutil.copy(tmp_path / "whole" / "checkpoint_1_3.pt", tmp_path / "killed" / "checkpoint_last.pt")
    rest = train(digits_dir, tmp_path / "killed", *flags, **stage2(stage1, samples))
    for key in (*LOGGED, "gnorm", "lr", "num_updates"):
        assert logged(rest, "train_inner", key) == logged(whole, "train_inner", key)[3:], key
    assert logged(rest, "valid", "cider") == logged(whole, "valid", "cider")[1:]
    assert_same_weights(
        tmp_path / "whole" / "checkpoint_last.pt", tmp_path / "killed" / "checkpoint_last.pt", 0
    )


# Several processes


@pytest.mark.slow
def test_two_processes_draw_different_samples_and_stay_alike(
    stage1: Path, digits_dir: Path, tmp_path: Path
) -> None:
    """All rows are alike, and so are the ranks until they draw: their samples differ, their weights never do."""
    columns = (digits_dir / "train_references.tsv").read_text().splitlines()[0].split("\t")
    data = write_tsv(tmp_path / "alike.tsv", ([str(i), str(i), *columns[2:]] for i in range(32)))
    train_in_two_processes(
        digits_dir,
        tmp_path,
        *(*written_reward(tmp_path), *CIDER, "--freeze-resnet", "--tensorboard-logdir", tmp_path / "tb"),
        program=[sys.executable, "-c", SAVE_ALL_RANKS],
        python_path=tmp_path,
        **stage2(stage1, DRAWN, f"{data},valid.tsv"),
    )
    log = (tmp_path / "0.log").read_text()
    assert len(logged(log, "train_inner", "loss")) == 2
    for tag in ("train_inner", "valid"):
        assert_all_finite(log, tag)
    assert len(logged(log, "valid", "cider")) == 1

    first, second = (asked(tmp_path, rank) for rank in range(2))
    assert first[0][1] == second[0][1]  # the same references
    assert first[0][0] != second[0][0]
    ranks = [tmp_path / "run" / f"checkpoint_last-rank{rank}.pt" for rank in range(2)]
    assert_same_weights(*ranks, tolerance=0)
    assert changed(stage1, ranks[0])


# Precision


@pytest.fixture(scope="module")
def in_full_precision(stage1: Path, digits_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The log of three updates with samples of beam search."""
    return three_updates(stage1, digits_dir, tmp_path_factory.mktemp("fp32"))


def three_updates(stage1: Path, digits: Path, folder: Path, *flags: str) -> str:
    # Of weak models CIDEr-D jumps with a few words; ROUGE-L does less.
    flags = (*flags, "--max-update", "3", "--disable-validation", "--scst-reward", "rouge_l")
    return train(digits, folder, *flags, **stage2(stage1, BEAM))


@pytest.mark.parametrize("flag", ["--bf16", "--amp"])
def test_lower_precision_trains(
    flag: str, in_full_precision: str, stage1: Path, digits_dir: Path, tmp_path: Path
) -> None:
    log = three_updates(stage1, digits_dir, tmp_path, flag)
    assert_all_finite(log)
    assert len(logged(log, "train_inner", "loss")) == 3
    for key, tolerance in (("reward", 0.1), ("baseline", 0.1), ("entropy", 0.05)):
        expected = logged(in_full_precision, "train_inner", key)[0]
        assert expected > 0
        assert logged(log, "train_inner", key)[0] == pytest.approx(expected, rel=tolerance), key


# Rows and outputs as they come


def test_references_of_very_different_counts_and_empty_ones(
    stage1: Path, digits_dir: Path, tmp_path: Path
) -> None:
    caption = "a small red {} at the top left"
    many = "&&".join(caption.format(word) for word in ("one", "two", "three", "four") * 10)
    texts = [many, "one", "", "a red one&&", " && ", caption.format("six"), "a&&b&&c", "top left"]
    rows = [[str(i), str(i), text, "", picture()] for i, text in enumerate(texts)]
    data = write_tsv(tmp_path / "train.tsv", rows)
    flags = (*CIDER, "--batch-size", 3)
    log = train(digits_dir, tmp_path / "run", *flags, **stage2(stage1, DRAWN, f"{data},valid.tsv"))
    assert_all_finite(log)
    assert logged(log, "train", "skipped_rows") == [2]
    assert sum(logged(log, "train_inner", "bsz")) == 3 * 6
    listed = [line.split("\t") for line in (tmp_path / "run" / "bad_rows.tsv").read_text().splitlines()]
    assert {(path, row) for path, row, _ in listed} == {(str(data), "3"), (str(data), "5")}
    assert all("caption is empty" in reason for *_, reason in listed), listed


def test_some_outputs_are_empty(stage1: Path, digits_dir: Path, tmp_path: Path) -> None:
    """Outputs are almost uniform over three tokens and the end."""
    flags = (*written_reward(tmp_path), "--constraint-range", "4,7", "--disable-validation")
    samples = '{"beam": 4, "min_len": 0, "sampling": true, "temperature": 50.0, "max_len_b": 3}'
    log = train(digits_dir, tmp_path / "run", *flags, python_path=tmp_path, **stage2(stage1, samples))
    outputs = [text for texts, _ in asked(tmp_path) for text in texts]
    assert 0.1 < outputs.count("") / len(outputs) < 0.5
    assert_all_finite(log)


def test_nothing_is_learnt_where_all_outputs_are_empty(
    stage1: Path, digits_dir: Path, tmp_path: Path
) -> None:
    flags = ("--disable-validation", "--freeze-resnet", "--weight-decay", 0)
    samples = '{"beam": 2, "min_len": 0, "max_len_b": 0}'
    log = train(digits_dir, tmp_path / "run", *flags, **stage2(stage1, samples))
    assert set(logged(log, "train_inner", "reward")) == {0.0}
    assert set(logged(log, "train_inner", "collapsed")) == {1.0}
    assert changed(stage1, tmp_path / "run" / "checkpoint_last.pt") == []
