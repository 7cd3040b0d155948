"""Drawing through the real command lines: scenes, tokenizer, codes, training, PNG files, their score, stage 2."""

import json
import re
import shutil
import subprocess
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from command_lines import (
    CROSS_ENTROPY,
    ENVIRONMENT,
    PLUGIN,
    assert_same_weights,
    command,
    logged,
    run,
    train,
    train_args,
    weights,
)
from numpy.typing import NDArray
from script_runs import ROOT
from task_builders import TINY_TASK, caption_run, save_checkpoint, write_tsv
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ofa_fairseq.data.tsv import TsvFile
from ofa_fairseq.drawing.drawn_pictures import DrawnPicture, read_drawn_pictures
from ofa_fairseq.models.image_tokenizer import ImageTokenizer
from ofa_fairseq.prepare.__main__ import main

COUNTS = {"train": 300, "valid": 6, "test": 5, "unseen": 1, "two": 1}
CODES, SIDE = 64, 8  # of the tokenizer, along a side of a picture
SAMPLES = '{"beam": 2, "sampling_topk": 20}'
SCORED = ("--best-checkpoint-metric", "score", "--maximize-best-checkpoint-metric")
# A user's ranking, which also writes down what it is asked about.
RANKING = """
import json
from pathlib import Path
import numpy as np


def redness(pictures, texts):
    scores = [float((np.asarray(picture) / 255)[..., 0].mean()) for picture in pictures]
    with Path(__file__).with_name("asked.jsonl").open("a") as file:
        file.write(json.dumps([scores, list(texts)]) + "\\n")
    return scores
"""


class Ranking:
    """The user's ranking in a folder that is to be on the path of Python."""

    flags = ("--rank-by", "own_ranking:redness")

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "own_ranking.py").write_text(RANKING)

    def asked(self) -> list[tuple[list[float], list[str]]]:
        """Scores and texts of each call."""
        return [tuple(json.loads(line)) for line in (self.folder / "asked.jsonl").read_text().splitlines()]


class Prepared(NamedTuple):
    """What is there before training: data with a column of codes, and flags that name the tokenizer."""

    digits: Path
    tokenizer: tuple[str, ...]

    @property
    def flags(self) -> tuple[Any, ...]:
        """Of a training on this data."""
        return (
            *("--task", "image_gen", "--selected-cols", "0,2,3", "--max-src-length", 40),
            *("--code-dict-size", CODES, "--code-image-size", 8 * SIDE, "--num-code", SIDE**2),
            *self.tokenizer,
        )


@pytest.fixture(scope="module")
def prepared(digits_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """Made as the scripts make it, but of fewer scenes and by less training."""
    folder = tmp_path_factory.mktemp("drawing")
    digits, tokenizer = folder / "digits", folder / "tokenizer"
    shutil.copytree(digits_dir, digits)
    main(["digit_drawings", "--digits", f"{digits}", *(f"--{name}={n}" for name, n in COUNTS.items())])
    small = ("--codes", f"{CODES}", "--channels", "16", "--batch-size", "16", "--updates", "100")
    # Codes of plain ground may differ, so that a drawing's codes are seen in it.
    small = (*small, "--valid", "16", "--ground-weight", "0")
    main(["train_tokenizer", "--data", f"{digits}/drawings_train.tsv", "--out", f"{tokenizer}", *small])
    flags = ("--vqgan-model-path", f"{tokenizer}/last.ckpt", "--vqgan-config-path", f"{tokenizer}/model.yaml")
    for split in ("train", "valid"):
        files = ("--data", f"{digits}/drawings_{split}.tsv", "--out", f"{digits}/image_gen_{split}.tsv")
        main(["image_codes", *files, "--side", f"{8 * SIDE}", *flags])
    return Prepared(digits, flags)


def train_drawing(prepared: Prepared, save_dir: Path, *flags: Any, **more: Any) -> str:
    """What fairseq-train prints."""
    data = "image_gen_train.tsv,image_gen_valid.tsv"
    return train(prepared.digits, save_dir, *prepared.flags, *flags, data=data, **more)


class Trained(NamedTuple):
    """A training that validates and saves after 3, 6 and 8 updates."""

    folder: Path
    ranking: Ranking
    log: str

    @property
    def last(self) -> Path:
        return self.folder / "checkpoint_last.pt"


INTERRUPTED = (
    *("--max-update", 8, "--max-epoch", 0, "--save-interval-updates", 3, "--validate-interval-updates", 3),
    *("--dropout", 0.1, "--drop-caption", 0.2, "--eval-args", SAMPLES, "--report-accuracy"),
    *(*Ranking.flags, *SCORED),
)


@pytest.fixture(scope="module")
def trained(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder, ranking = tmp_path_factory.mktemp("trained"), Ranking(tmp_path_factory.mktemp("ranking"))
    flags = (*INTERRUPTED, "--tensorboard-logdir", folder / "tb")
    log = train_drawing(prepared, folder, *flags, python_path=ranking.folder)
    return Trained(folder, ranking, log)


def generate_args(prepared: Prepared, checkpoint: Path, out: Path, *flags: Any) -> list[Any]:
    """The command line of the documentation: what the checkpoint knows is not repeated."""
    return [
        *(*command("fairseq-generate"), prepared.digits / "drawings_test.tsv", "--user-dir", PLUGIN),
        *("--task", "image_gen", "--selected-cols", "0,3", "--path", checkpoint, "--gen-images-path", out),
        *("--sampling-topk", 20, *flags),
    ]


class Drawings(NamedTuple):
    """What a fairseq-generate has drawn."""

    listed: list[DrawnPicture]
    codes: list[list[int]]  # of the lines `D-`
    ids: list[str]  # likewise

    @classmethod
    def read(cls, pictures: Path, output: str) -> "Drawings":
        lines = [line.split("\t") for line in output.splitlines() if line.startswith("D-")]
        codes = []
        for _, score, text in lines:
            assert float(score) < 0
            assert re.fullmatch(r"(<code_\d+>)+", text)
            codes.append([int(code) for code in re.findall(r"\d+", text)])
        return cls(read_drawn_pictures(pictures), codes, [head[2:] for head, *_ in lines])

    def pixels(self) -> NDArray[np.int64]:
        """What the files show."""
        return np.stack([np.asarray(drawn.load()) for drawn in self.listed]).astype(int)


FLAGS = ("--guidance", 2, "--sampling-times", 2, "--beam", 3, "--nbest", 6)


def draw(prepared: Prepared, trained: Trained, out: Path, *flags: Any) -> Drawings:
    """The test captions, with guidance, six of each, ranked."""
    args = generate_args(prepared, trained.last, out, *FLAGS, *Ranking.flags, *flags)
    return Drawings.read(out / "pictures.tsv", run(args, python_path=trained.ranking.folder))


@pytest.fixture(scope="module")
def drawings(prepared: Prepared, trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Drawings:
    return draw(prepared, trained, tmp_path_factory.mktemp("drawings"), "--seed", 3)


def decoded(tokenizer: tuple[str, ...], codes: list[list[int]]) -> NDArray[np.int64]:
    """Pixels of codes, by the tokenizer alone."""
    _, weights_path, _, config_path = tokenizer
    grids = torch.tensor(codes).view(-1, SIDE, SIDE)
    with torch.no_grad():
        shown = ImageTokenizer.load(weights_path, config_path).decode(grids)
    return ((shown.clamp(-1, 1) + 1) * 127.5).round().permute(0, 2, 3, 1).numpy().astype(int)


def assert_files_show_the_codes(drawings: Drawings, tokenizer: tuple[str, ...]) -> None:
    """Each file shows the codes of its line and of no other with other codes."""
    assert [drawn.id for drawn in drawings.listed] == drawings.ids
    shown, expected = drawings.pixels(), decoded(tokenizer, drawings.codes)
    assert shown.shape == (len(drawings.ids), 8 * SIDE, 8 * SIDE, 3)
    difference = np.abs(shown[:, None] - expected[None]).max(axis=(2, 3, 4))
    alike = np.array([[a == b for b in drawings.codes] for a in drawings.codes])
    assert difference[alike].max() <= 1  # batches of other sizes round differently
    assert difference[~alike].min() > 1


# Train and validate


def test_validation_draws_and_ranks(trained: Trained) -> None:
    """By the user's function: of each caption's samples the best one counts, and the best update is kept."""
    calls = trained.ranking.asked()[:3]  # drawing comes later
    assert {tuple(map(len, call)) for call in calls} == {(2 * COUNTS["valid"],) * 2}
    expected = [np.reshape(scores, (-1, 2)).max(axis=1).mean() for scores, _ in calls]
    scores = logged(trained.log, "valid", "score")
    assert scores == pytest.approx(expected, rel=1e-3)
    best = torch.load(trained.folder / "checkpoint_best.pt", weights_only=False)
    assert best["optimizer_history"][-1]["num_updates"] == (3, 6, 8)[int(np.argmax(expected))]
    losses = logged(trained.log, "train_inner", "loss")
    assert len(losses) == 8
    assert losses[-1] < 0.8 * losses[0]
    assert len(logged(trained.log, "valid", "accuracy")) == 3


def test_tensorboard_shows_drawings(trained: Trained) -> None:
    accumulator = EventAccumulator(str(trained.folder / "tb" / "valid_pictures"))
    accumulator.Reload()
    sheets = accumulator.Images("pictures")
    assert [sheet.step for sheet in sheets] == [3, 6, 8]
    assert sheets[0].encoded_image_string.startswith(b"\x89PNG")
    assert sheets[0].width > 4 * 2 * 64  # four in a row, twice their size


def test_a_stopped_run_goes_on_as_if_nothing_had_happened(
    prepared: Prepared, trained: Trained, tmp_path: Path
) -> None:
    """Stopped after it had saved its third update: captions are dropped and drawings drawn as in the whole run."""
    (tmp_path / "run").mkdir()
    shutil.copy(trained.folder / "checkpoint_1_3.pt", tmp_path / "run" / "checkpoint_last.pt")
    ranking = Ranking(tmp_path)
    rest = train_drawing(prepared, tmp_path / "run", *INTERRUPTED, python_path=tmp_path)
    for key in ("loss", "accuracy", "gnorm", "lr", "num_updates"):
        expected = logged(trained.log, "train_inner", key)
        assert len(expected) == 8, key
        assert logged(rest, "train_inner", key) == expected[3:], key
    assert ranking.asked() == trained.ranking.asked()[1:3]
    assert logged(rest, "valid", "score") == logged(trained.log, "valid", "score")[1:]
    assert_same_weights(tmp_path / "run" / "checkpoint_last.pt", trained.last, 0)


# Draw


def test_drawings_are_complete_and_show_their_codes(drawings: Drawings, prepared: Prepared) -> None:
    rows = TsvFile(prepared.digits / "drawings_test.tsv", [0, 3])
    captions = {key: caption for key, caption in (rows[i] for i in range(len(rows)))}
    assert len(captions) == COUNTS["test"]
    ranks = defaultdict(list)
    for drawn in drawings.listed:
        assert drawn.caption == captions[drawn.id]
        ranks[drawn.id].append(drawn.rank)
    assert dict(ranks) == {key: list(range(6)) for key in captions}
    assert_files_show_the_codes(drawings, prepared.tokenizer)

    folder = drawings.listed[0].path.parent
    assert set(folder.iterdir()) == {drawn.path for drawn in drawings.listed}
    assert len({drawn.path for drawn in drawings.listed}) == 6 * COUNTS["test"]
    best = {drawn.path.name: drawn.path.read_bytes() for drawn in drawings.listed if drawn.rank == 0}
    assert {path.name: path.read_bytes() for path in (folder.parent / "top1").iterdir()} == best


def test_drawings_are_in_the_order_of_the_ranking(drawings: Drawings) -> None:
    redness = (drawings.pixels()[..., 0] / 255).mean(axis=(1, 2))
    scores = np.array([drawn.score for drawn in drawings.listed])
    assert scores == pytest.approx(redness, abs=1e-6)
    assert (np.diff(scores.reshape(-1, 6)) <= 0).all()
    assert len(set(scores)) > 10


def test_a_seed_is_a_drawing(
    drawings: Drawings, prepared: Prepared, trained: Trained, tmp_path: Path
) -> None:
    again = draw(prepared, trained, tmp_path / "again", "--seed", 3)
    assert again.codes == drawings.codes
    assert np.array_equal(again.pixels(), drawings.pixels())
    assert [d[:4] for d in again.listed] == [d[:4] for d in drawings.listed]
    other = draw(prepared, trained, tmp_path / "other", "--seed", 4)
    assert not {*map(tuple, other.codes)} & {*map(tuple, drawings.codes)}


def test_two_processes_draw_their_shares_into_one_folder(
    prepared: Prepared, trained: Trained, tmp_path: Path
) -> None:
    """As the scripts start them. All captions are alike, so that only their ids keep the files apart."""
    data = write_tsv(tmp_path / "rows.tsv", ([f"row-{i}", "a large red seven"] for i in range(4)))
    out = tmp_path / "drawings"
    args = generate_args(prepared, trained.last, out, "--selected-cols", "0,1", "--batch-size", 1)
    args[1] = data
    line = [*args, "--beam", 2, "--nbest", 2, *Ranking.flags, "--results-path", tmp_path]
    processes = []
    for rank in range(2):
        place = {"RANK": f"{rank}", "LOCAL_RANK": f"{rank}", "WORLD_SIZE": "2"}
        environment = {**ENVIRONMENT, **place, "PYTHONPATH": str(trained.ranking.folder)}
        worker = ["bash", f"{ROOT}/run_scripts/worker.sh", *map(str, line)]
        with (tmp_path / f"{rank}.log").open("w") as log:
            processes.append(subprocess.Popen(worker, env=environment, stdout=log, stderr=subprocess.STDOUT))
    codes = [process.wait(timeout=600) for process in processes]
    assert codes == [0, 0], "".join((tmp_path / f"{rank}.log").read_text()[-3000:] for rank in range(2))

    ids = []
    for rank, name in enumerate(("pictures.tsv", "pictures.1.tsv")):
        output = (tmp_path / str(rank) / "generate-test.txt").read_text()
        share = Drawings.read(out / name, output)
        assert_files_show_the_codes(share, prepared.tokenizer)
        ids += share.ids[::2]
    assert sorted(ids) == [f"row-{i}" for i in range(4)]
    assert len(list((out / "all_results").iterdir())) == 2 * 4


def test_drawings_are_read_and_shown(
    drawings: Drawings, prepared: Prepared, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = str(drawings.listed[0].path.parents[1] / "pictures.tsv")
    main(["read_drawings", "--digits", f"{prepared.digits}", "--pictures", pictures, "--ranks", "all"])
    first, chance = capsys.readouterr().out.split("with the captions of other pictures:")
    for table in (first, chance):
        (line,) = [line.split() for line in table.splitlines() if line.startswith("test ")]
        assert int(line[1]) == len(drawings.listed)
        assert all(0 <= float(share) <= 100 for share in line[2:] if share not in ("-", "nan"))
    main(["contact_sheet", "--pictures", pictures, "--out", f"{tmp_path}/grid.png"])
    assert (tmp_path / "grid.png").read_bytes().startswith(b"\x89PNG")


# Stage 2


def stage2(prepared: Prepared, trained: Trained, folder: Path, *flags: Any) -> str:
    """The log of two updates; three samples of each of four captions."""
    criterion = ("--criterion", "clip_scst_reward_criterion", "--scst")
    samples = ("--scst-args", '{"beam": 3, "sampling_topk": 20}', "--eval-args", SAMPLES, "--batch-size", 4)
    start = ("--finetune-from-model", trained.last, "--max-update", 2, "--lr", "1e-3", *SCORED)
    flags = (*samples, *start, *flags)
    return train_drawing(prepared, folder / "run", *flags, criterion=criterion, python_path=folder)


def test_stage_2_rewards_what_the_users_ranking_says(
    prepared: Prepared, trained: Trained, tmp_path: Path
) -> None:
    ranking = Ranking(tmp_path)
    log = stage2(prepared, trained, tmp_path, *Ranking.flags)
    calls = ranking.asked()
    rewards = [2.5 * np.mean(scores) for scores, texts in calls if len(texts) == 3 * 4]
    valid = [np.reshape(scores, (-1, 2)).max(axis=1).mean() for scores, texts in calls if len(texts) == 2 * 6]
    # The fixture's captions are as many as a batch's samples: updates come first.
    assert logged(log, "train_inner", "reward") == pytest.approx([*rewards[:2]], abs=1e-3)
    assert logged(log, "valid", "score") == pytest.approx(valid[-1:], abs=1e-3)
    assert min(logged(log, "train_inner", "reward_spread")) > 0
    assert logged(log, "train_inner", "sample_length") == [SIDE**2] * 2
    before, after = weights(trained.last), weights(tmp_path / "run" / "checkpoint_last.pt")
    assert any(not torch.equal(value, before[name]) for name, value in after.items())


def test_stage_2_rewards_what_a_captioning_model_says(
    prepared: Prepared, trained: Trained, tmp_path: Path
) -> None:
    """One without training finds all words about as probable."""
    judge = caption_run(f"{prepared.digits}/valid.tsv", prepared.digits, "--selected-cols", "0,4,2")
    torch.manual_seed(0)
    save_checkpoint(tmp_path / "judge.pt", judge)
    flags = ("--rank-by", "caption", "--caption-model-path", tmp_path / "judge.pt")
    log = stage2(prepared, trained, tmp_path, *flags)
    uniform = -np.log(len(judge.task.vocabulary))
    rewards = logged(log, "train_inner", "reward")
    assert rewards == pytest.approx([2.5 * uniform] * 2, rel=0.1)
    assert rewards[0] != rewards[1]
    assert logged(log, "valid", "score") == pytest.approx([uniform], rel=0.1)


# The YAML file


def test_yaml_trains(prepared: Prepared, tmp_path: Path) -> None:
    """The published stage 1 in small."""
    name, data = "image_gen_stage1", prepared.digits
    settings = [
        *(f"common.user_dir={PLUGIN}", "common.fp16=false", f"checkpoint.save_dir={tmp_path}/run"),
        *(f'task.data="{data}/image_gen_train.tsv,{data}/image_gen_valid.tsv"', f"task.bpe_dir={data}"),
        *('task.selected_cols="0,2,3"', f"task.code_image_size={8 * SIDE}", f"task.num_code={SIDE**2}"),
        *(f"+task.code_dict_size={CODES}", "task.num_bins=16", "+task.drop_caption=0.5"),
        *("task.constraint_range=null", "criterion.constraint_range=null"),
        *("model._name=ofa_nano", f"model.code_image_size={8 * SIDE}"),
        *("+model.encoder_layers=1", "+model.decoder_layers=1"),
        *("checkpoint.finetune_from_model=null", "dataset.num_workers=0", "common.log_interval=1"),
        *("optimization.max_update=2", "optimization.update_freq=[1]", "dataset.validate_interval=1"),
    ]
    line = [*command("fairseq-hydra-train"), "--config-dir", f"{PLUGIN}/config", "--config-name", name]
    log = run([*line, *settings], cwd=tmp_path)
    assert len(re.findall(r"valid on 'valid' subset \| loss [0-9.]+ \|", log)) == 1
    assert weights(tmp_path / "run" / "checkpoint_last.pt")["decoder.embed_tokens.weight"].shape[1] == 128


# What is learnt

# Eight captions, each with a picture of its own out of 16 codes in two rows.
PICTURES = {
    "a small red one": "0 1 2 3",
    "a small blue one": "0 1 3 2",
    "a large red one": "3 2 1 0",
    "a large blue one": "15 15 15 15",
    "a small red two": "5 5 6 6",
    "a small blue two": "6 6 5 5",
    "a large red two": "5 6 5 6",
    "a large blue two": "9 0 0 9",
}


def test_a_tiny_model_learns_which_codes_a_caption_means(digits_dir: Path, tmp_path: Path) -> None:
    """Greedily, without guidance and with; chance is 1 in 65,536 for each."""
    rows = [(f"row-{i}", caption, codes) for i, (caption, codes) in enumerate(PICTURES.items())]
    learn, tell = write_tsv(tmp_path / "learn.tsv", rows * 100), write_tsv(tmp_path / "draw.tsv", rows)
    flags = ("--task", "image_gen", "--selected-cols", "0,1,2", "--code-image-size", 16, "--lr", "5e-3")
    flags = (*flags, "--max-update", 100, "--max-epoch", 0, "--drop-caption", 0.1, "--disable-validation")
    flags = (*flags, "--batch-size", 32, *CROSS_ENTROPY, "--label-smoothing", 0)
    train(digits_dir, tmp_path, *flags, data=f"{learn},{learn}")
    for guidance in (1, 3):
        output = run(
            [
                *(*command("fairseq-generate"), tell, "--user-dir", PLUGIN, "--task", "image_gen"),
                *("--path", tmp_path / "checkpoint_last.pt", "--selected-cols", "0,1"),
                *("--beam", 1, "--sampling-topk", 1, "--guidance", guidance),
            ]
        )
        drawn = {
            line.split("\t")[0]: " ".join(re.findall(r"<code_(\d+)>", line.split("\t")[2]))
            for line in output.splitlines()
            if line.startswith("D-")
        }
        assert drawn == {f"D-{key}": codes for key, _, codes in rows}


# Data as users have it


def test_bad_rows_are_left_out_and_listed(digits_dir: Path, tmp_path: Path) -> None:
    good = [(f"row-{i}", "a small red one", "0 1 2 3") for i in range(6)]
    bad = [
        ("few", "a small red one", "1 2 3"),
        ("many", "a small red one", "1 2 3 4 5"),
        ("large", "a small red one", f"1 2 3 {TINY_TASK[1]}"),
        ("negative", "a small red one", "1 -2 3 4"),
        ("word", "a small red one", "1 2 x 4"),
        ("silent", " ", "1 2 3 4"),
        ("blank", "a small red one", " "),
        ("short", "a small red one"),
    ]
    expected = [
        "3 image codes: a picture of 2 x 2 has 4",
        "5 image codes: a picture of 2 x 2 has 4",
        "16 is no image code: expected 0 to 15",
        "-2 is no image code: expected 0 to 15",
        "expected image codes between spaces, got '1 2 x 4'",
        "the caption is empty",
        "there are no image codes",
        "has 2 columns, other rows have 3",
    ]
    data = write_tsv(tmp_path / "rows.tsv", [*good, *bad])
    flags = ("--task", "image_gen", "--selected-cols", "0,1,2", "--code-image-size", 16, "--num-code", 4)
    data_flags = {"data": f"{data},{data}", "criterion": CROSS_ENTROPY}
    log = train(digits_dir, tmp_path / "run", *flags, "--max-epoch", 2, **data_flags)
    assert logged(log, "train", "skipped_rows") == logged(log, "valid", "skipped_rows") == [len(bad)] * 2
    assert sum(logged(log, "train_inner", "bsz")) == 2 * len(good)
    assert np.isfinite(logged(log, "valid", "loss")).all()
    listed = [line.split("\t") for line in (tmp_path / "run" / "bad_rows.tsv").read_text().splitlines()]
    assert {path for path, *_ in listed} == {str(data)}
    reasons = {int(row): reason for _, row, reason in listed}
    assert len(reasons) == len(listed) == len(bad)
    for row, reason in enumerate(expected, start=len(good) + 1):
        assert reason in reasons[row]

    strict = train_args(digits_dir, tmp_path / "strict", *flags, "--strict-data", **data_flags)
    stopped = run([*command("fairseq-train"), *strict], fails=True)
    assert any(f"{reason}" in stopped for reason in expected)
    assert str(data) in stopped
