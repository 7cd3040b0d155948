"""run_scripts/image_gen/: the published recipes, what embedded runs would start, bad input, and going on."""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import script_runs
from omegaconf import DictConfig
from script_runs import (
    PLUGIN,
    ROOT,
    dry_run,
    flags_of,
    parse,
    script,
    stub_calls,
    stub_checkout_in,
)

RANGE = "50265,58457"
TOOLS = ("--vqgan-model-path", "--vqgan-config-path", "--clip-model-path")
Options = dict[str, str]


@pytest.fixture
def files(tmp_path: Path) -> Options:
    """Arguments of the published recipe, files included."""
    for name in ("train.tsv", "valid.tsv", "ofa.pt", "bpe/dict.txt", "bpe/vocab.bpe", "bpe/encoder.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("0\t1 2 3 4\ta cat\n")
    return {
        "--data": f"{tmp_path}/train.tsv,{tmp_path}/valid.tsv",
        "--restore-file": f"{tmp_path}/ofa.pt",
        "--bpe-dir": f"{tmp_path}/bpe",
    }


@pytest.fixture
def tools(tmp_path: Path) -> Options:
    """Tokenizer and CLIP."""
    for name in ("last.ckpt", "model.yaml", "ViT-B-16.pt"):
        (tmp_path / name).write_text("weights")
    return dict(zip(TOOLS, (f"{tmp_path}/last.ckpt", f"{tmp_path}/model.yaml", f"{tmp_path}/ViT-B-16.pt")))


def arguments(options: Options) -> list[str]:
    return [word for option in options.items() for word in option]


def training(name: str, options: Options, **variables: str) -> DictConfig:
    """What fairseq makes of the training that a script would start."""
    return parse("training", flags_of("fairseq-train", dry_run(name, *arguments(options), **variables)))


# -- recipes -----------------------------------------------------------------------------------------------


SAMPLING = {"min_len": 1024, "max_len_b": 1024, "sampling_topk": 256, "temperature": 1.0}


@pytest.mark.parametrize("arch", ["ofa_tiny", "ofa_medium", "ofa_base", "ofa_large", "ofa_huge"])
@pytest.mark.parametrize("stage", [1, 2])
def test_published_numbers(stage: int, arch: str, files: Options, tools: Options) -> None:
    name = {1: "image_gen/train.sh", 2: "image_gen/train_scst.sh"}[stage]
    cfg = training(name, files | tools | {"--arch": arch}, GPUS="32")
    assert (cfg.model._name, cfg.task._name, cfg.task.selected_cols) == (arch, "image_gen", "0,2,1")
    assert (cfg.dataset.batch_size, cfg.optimization.update_freq) == {1: (4, [4]), 2: (1, [1])}[stage]
    schedule, updates = cfg.lr_scheduler, cfg.optimization.max_update
    assert (updates, schedule.total_num_update) == {1: (40_000, 40_000), 2: (5_000, 5_000)}[stage]
    assert (schedule.warmup_updates, schedule.warmup_ratio <= 0) == ({1: 2_000, 2: 0}[stage], True)
    assert cfg.optimization.lr == {1: [1e-3], 2: [1e-6]}[stage]
    assert (cfg.optimization.max_epoch, schedule.end_learning_rate, schedule.power) == (0, 0, 1)
    dropout = (cfg.model.dropout, cfg.model.encoder_drop_path_rate, cfg.model.decoder_drop_path_rate)
    assert dropout == {1: (0.1, 0.1, 0.1), 2: (0, 0, 0)}[stage]
    assert (cfg.model.attention_dropout, cfg.model.resnet_drop_path_rate) == (0, 0)
    assert bool(cfg.model.freeze_resnet) == (stage == 2)
    assert not cfg.model.freeze_encoder_embedding
    assert (cfg.common.fp16, cfg.common.fp16_scale_window) == (True, 256)
    assert (cfg.task.max_src_length, cfg.task.code_image_size, cfg.model.code_image_size) == (64, 256, 256)
    assert cfg.task.constraint_range == cfg.criterion.constraint_range == RANGE
    assert json.loads(cfg.task.eval_args) == {"beam": 24, **SAMPLING}
    checkpoint = cfg.checkpoint
    assert (checkpoint.best_checkpoint_metric, checkpoint.maximize_best_checkpoint_metric) == ("score", True)
    assert (checkpoint.keep_last_epochs, cfg.dataset.batch_size_valid) == (15, 1)
    assert checkpoint.finetune_from_model == files["--restore-file"]
    if stage == 1:
        assert cfg.criterion._name == "adjust_label_smoothed_cross_entropy"
        assert cfg.criterion.label_smoothing == 0
        assert cfg.dataset.validate_interval == 3
        assert not cfg.task.scst
    else:
        assert cfg.criterion._name == "clip_scst_reward_criterion"
        assert cfg.task.scst
        assert json.loads(cfg.task.scst_args) == {"beam": 5, **SAMPLING}
        assert (cfg.dataset.validate_interval_updates, checkpoint.save_interval_updates) == (200, 200)
    assert cfg.task.drop_caption == 0  # guidance is ours
    assert not cfg.task.rank_by  # CLIP then
    assert [cfg.task[flag[2:].replace("-", "_")] for flag in TOOLS] == list(tools.values())


@pytest.mark.parametrize(("gpus", "batch"), [("0", (4, 128)), ("8", (4, 16)), ("64", (4, 2))])
def test_the_effective_batch_is_kept(gpus: str, batch: tuple[int, int], files: Options) -> None:
    cfg = training("image_gen/train.sh", files, GPUS=gpus)
    assert (cfg.dataset.batch_size, cfg.optimization.update_freq[0]) == batch


def test_without_a_ranking_the_loss_chooses_the_best_model(files: Options) -> None:
    cfg = training("image_gen/train.sh", files)
    assert (cfg.checkpoint.best_checkpoint_metric, cfg.task.vqgan_model_path) == ("loss", None)
    assert not cfg.checkpoint.maximize_best_checkpoint_metric


def test_other_vocabularies_have_their_codes_elsewhere(files: Options) -> None:
    cfg = training("image_gen/train.sh", files | {"--constraint-range": "none"})
    assert cfg.task.constraint_range is cfg.criterion.constraint_range is None
    cfg = training("image_gen/train.sh", files | {"--constraint-range": "700,764"})
    assert cfg.task.constraint_range == cfg.criterion.constraint_range == "700,764"


# As in the released scripts, after the launcher line became `fairseq-train` and --user-dir ours.
STAGE_1 = [
    *("train.tsv,valid.tsv", "--selected-cols=0,2,1", "--bpe-dir=../../utils/BPE", f"--user-dir={PLUGIN}"),
    *("--restore-file=../../checkpoints/ofa_base.pt", "--reset-optimizer", "--reset-dataloader"),
    *("--reset-meters", "--save-dir=./checkpoints", "--task=image_gen", "--arch=ofa_base"),
    *("--criterion=adjust_label_smoothed_cross_entropy", "--label-smoothing=0.0", "--batch-size=4"),
    *("--batch-size-valid=1", "--update-freq=4", "--encoder-normalize-before", "--decoder-normalize-before"),
    *("--share-decoder-input-output-embed", "--share-all-embeddings", "--layernorm-embedding"),
    *("--patch-layernorm-embedding", "--code-layernorm-embedding", "--resnet-drop-path-rate=0.0"),
    *("--encoder-drop-path-rate=0.1", "--decoder-drop-path-rate=0.1", "--dropout=0.1"),
    *("--attention-dropout=0.0", "--weight-decay=0.01", "--optimizer=adam", "--adam-betas=(0.9,0.999)"),
    *("--adam-eps=1e-08", "--clip-norm=1.0", "--lr-scheduler=polynomial_decay", "--lr=1e-3"),
    *("--max-update=40000", "--total-num-update=40000", "--warmup-updates=2000", "--log-format=simple"),
    *("--log-interval=10", "--fixed-validation-seed=7", "--keep-last-epochs=15", "--validate-interval=3"),
    *("--best-checkpoint-metric=score", "--maximize-best-checkpoint-metric"),
    '--eval-args={"beam":24,"min_len":1024,"max_len_b":1024,"sampling_topk":256,"temperature":1.0}',
    *("--max-src-length=64", "--find-unused-parameters", "--add-type-embedding", "--scale-attn"),
    *("--scale-fc", "--scale-heads", "--disable-entangle", "--num-bins=1000", "--code-image-size=256"),
    *(f"--constraint-range={RANGE}", "--vqgan-model-path=last.ckpt", "--vqgan-config-path=model.yaml"),
    *("--clip-model-path=ViT-B-16.pt", "--fp16", "--fp16-scale-window=256", "--num-workers=0"),
]
STAGE_2 = [
    *(flag for flag in STAGE_1 if flag.split("=")[0] not in ("--label-smoothing", "--validate-interval")),
    *("--criterion=clip_scst_reward_criterion", "--scst", "--batch-size=1", "--update-freq=1", "--lr=1e-6"),
    *("--encoder-drop-path-rate=0.0", "--decoder-drop-path-rate=0.0", "--dropout=0.0", "--freeze-resnet"),
    *("--max-update=5000", "--total-num-update=5000", "--warmup-updates=0"),
    *("--save-interval-updates=200", "--validate-interval-updates=200"),
    '--scst-args={"beam":5,"min_len":1024,"max_len_b":1024,"sampling_topk":256,"temperature":1.0}',
]
# Where files are, and what refuses rows that the original learns from as they are.
NOT_COMPARED = {"data", "bpe_dir", "vqgan_model_path", "vqgan_config_path", "clip_model_path", "num_code"}


@pytest.mark.parametrize(
    ("line", "name"),
    [(STAGE_1, "image_gen/train.sh"), (STAGE_2, "image_gen/train_scst.sh")],
    ids=["cross entropy", "self-critical"],
)
def test_published_training_line_means_what_the_script_starts(
    line: list[str],
    name: str,
    files: Options,
    tools: Options,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    theirs, ours = parse("training", line), training(name, files | tools, GPUS="32")
    for cfg in (theirs, ours):
        assert cfg.lr_scheduler.warmup_ratio <= 0  # both mean that there is none
        cfg.lr_scheduler.warmup_ratio = 0
    if "report_accuracy" in theirs.criterion:
        theirs.criterion.report_accuracy = True  # ours, for validation
    for section in ("model", "criterion", "optimizer", "lr_scheduler", "optimization"):
        assert theirs[section] == ours[section], section
    for key in set(theirs.task) - NOT_COMPARED:
        assert theirs.task[key] == ours.task[key], key
    for section, keys in {
        "checkpoint": (
            *(
                "best_checkpoint_metric",
                "maximize_best_checkpoint_metric",
                "save_interval",
                "keep_last_epochs",
            ),
            *("save_interval_updates", "no_epoch_checkpoints"),
        ),
        "common": ("fp16", "fp16_scale_window", "memory_efficient_fp16"),
        "dataset": (
            *("batch_size", "batch_size_valid", "fixed_validation_seed"),
            *("validate_interval", "validate_interval_updates"),
        ),
    }.items():
        for key in keys:
            assert theirs[section][key] == ours[section][key], f"{section}.{key}"


def test_published_evaluation(files: Options, tools: Options) -> None:
    model, data = files["--restore-file"], files["--data"].split(",")[1]
    given = {"--model": model, "--data": data, "--bpe-dir": files["--bpe-dir"], **tools}
    shown = dry_run("image_gen/evaluate.sh", *arguments(given), GPUS="1")
    cfg = parse("generation", flags_of("fairseq-generate", shown))
    results = Path(model).parent / "results"
    assert (cfg.dataset.batch_size, cfg.common.seed, cfg.common.fp16) == (1, 42, True)
    assert (cfg.generation.beam, cfg.generation.sampling_topk, cfg.generation.temperature) == (24, 256, 1)
    assert (cfg.task._name, cfg.task.selected_cols, cfg.task.guidance) == ("image_gen", "0,2,1", 1)
    assert (cfg.task.data, cfg.task.gen_images_path) == (data, f"{results}/drawings")
    assert [cfg.task[flag[2:].replace("-", "_")] for flag in TOOLS] == list(tools.values())
    pictures = f"--pictures {results}/drawings/pictures.tsv"
    assert (
        f"picture_metrics {pictures} --clip-weights {tools['--clip-model-path']} --clip-model ViT-B-16\n"
        in shown
    )
    assert f"contact_sheet {pictures} --out {results}/drawings.png\n" in shown


def test_more_metrics_of_an_evaluation(files: Options, tools: Options, tmp_path: Path) -> None:
    model, data = files["--restore-file"], files["--data"].split(",")[1]
    (tmp_path / "inception.pt").write_text("weights")
    given = {"--model": model, "--data": data, **tools, "--real": data, "--real-column": "2"}
    given |= {"--inception-weights": f"{tmp_path}/inception.pt", "--samples": "4", "--guidance": "1.5"}
    shown = dry_run("image_gen/evaluate.sh", *arguments(given))
    metrics = f"--real {data} --column 2 --inception-weights {tmp_path}/inception.pt --clip-weights"
    assert f"pictures.tsv {metrics} {tools['--clip-model-path']} --clip-model ViT-B-16\n" in shown
    cfg = parse("generation", flags_of("fairseq-generate", shown))
    assert (cfg.generation.beam, cfg.task.guidance) == (4, 1.5)


# -- embedded ------------------------------------------------------------------------------------------------

DIGITS, RUNS = ROOT / "data" / "digits", ROOT / "runs"
TOKENIZER = (f"{RUNS}/image_tokenizer/last.ckpt", f"{RUNS}/image_tokenizer/model.yaml")


def test_the_training_without_arguments() -> None:
    shown = dry_run("image_gen/train.sh")
    cfg = parse("training", flags_of("fairseq-train", shown))
    assert cfg.task.data == f"{DIGITS}/image_gen_train.tsv,{DIGITS}/image_gen_valid.tsv"
    assert (cfg.task.selected_cols, cfg.task.bpe_dir) == ("0,2,3", str(DIGITS))
    assert (cfg.task.vqgan_model_path, cfg.task.vqgan_config_path) == TOKENIZER
    assert (cfg.model._name, cfg.checkpoint.save_dir) == ("ofa_nano", f"{RUNS}/image_gen_nano")
    assert cfg.checkpoint.finetune_from_model is None
    assert (cfg.model.code_image_size, cfg.task.num_code) == (64, 64)
    assert 0 < cfg.task.drop_caption < 1  # for guidance
    assert cfg.task.constraint_range is None  # the codes of this vocabulary are elsewhere
    assert cfg.task.scst is False
    assert cfg.checkpoint.best_checkpoint_metric == "loss"
    assert flags_of("train_tokenizer", shown)[-2:] == ["--out", f"{RUNS}/image_tokenizer"]
    # Codes of the tokenizer's pictures have the columns that training reads.
    for split in ("train", "valid"):
        assert f"--out {DIGITS}/image_gen_{split}.tsv" in shown
    assert f"image_gen/evaluate.sh --model {RUNS}/image_gen_nano/checkpoint_best.pt" in shown


@pytest.mark.parametrize(("gpus", "processes"), [("0", min(2, os.cpu_count() or 1)), ("1", 1), ("4", 4)])
def test_processes_of_the_training_without_arguments(gpus: str, processes: int) -> None:
    """Two train a small model faster than one does with two cores."""
    shown = dry_run("image_gen/train.sh", GPUS=gpus)
    assert f"batch of an update: 64 (recipe: 64) = {processes} processes x" in shown


def test_stage_2_without_arguments() -> None:
    shown = dry_run("image_gen/train_scst.sh")
    cfg = parse("training", flags_of("fairseq-train", shown))
    assert cfg.criterion._name == "clip_scst_reward_criterion"
    assert cfg.checkpoint.finetune_from_model == f"{RUNS}/image_gen_nano/checkpoint_best.pt"
    assert cfg.checkpoint.save_dir == f"{RUNS}/image_gen_scst_nano"
    assert (cfg.task.rank_by, cfg.checkpoint.best_checkpoint_metric) == ("caption", "score")
    assert cfg.task.caption_model_path == f"{RUNS}/caption_nano/checkpoint_best.pt"
    assert json.loads(cfg.task.scst_args)["beam"] > 1
    assert (cfg.optimization.max_epoch, cfg.optimization.max_update > 0) == (0, True)
    assert f"image_gen/evaluate.sh --model {RUNS}/image_gen_scst_nano/checkpoint_best.pt" in shown
    stage1 = parse("training", flags_of("fairseq-train", dry_run("image_gen/train.sh")))
    differs = {"scst", "scst_args", "eval_args", "rank_by", "caption_model_path"}
    differs |= {"drop_caption", "similar_codes"}  # of training from nothing with codes
    for key in set(cfg.task) - differs:
        assert cfg.task[key] == stage1.task[key], key
    assert cfg.model == stage1.model


# -- bad input -------------------------------------------------------------------------------------------------

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def refused(name: str, *args: str, **variables: str) -> str:
    """The message of a script that stops before it has looked for a Python."""
    done = script(name, *args, OFA_PYTHON="false", **variables)
    assert done.returncode == 2, done.stdout
    assert done.stdout.startswith("error: ")
    return done.stdout.removeprefix("error: ")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "expected a sentence first; see --help"),
        (["--seed", "2"], "expected a sentence first; see --help"),
        (["  "], "expected a sentence first; see --help"),
        (["a\tcat"], "the sentence has a tab or a line break"),
        (["a\ncat"], "the sentence has a tab or a line break"),
        (["a cat", "--samples", "0"], "--samples 0: expected a whole number above 0"),
        (["a", "cat"], "unexpected argument 'cat': put the sentence between quotes"),
        (["a cat", "--model", "no.pt"], "no.pt is missing: first run bash run_scripts/image_gen/train.sh"),
        (["a cat", "--precision", "fp8"], "--precision fp8: expected one of: "),
    ],
)
def test_sentences_that_can_not_be_drawn(args: list[str], message: str) -> None:
    assert refused("image_gen/sample.sh", *args).startswith(message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({TOOLS[2]: "no.pt"}, "--clip-model-path no.pt: no such file"),
        ({TOOLS[0]: "no.ckpt"}, "--vqgan-model-path no.ckpt: no such file"),
        ({TOOLS[0]: None}, "--vqgan-model-path is missing beside its YAML"),
        ({TOOLS[1]: None}, "--vqgan-config-path is missing beside the weights"),
        (
            {TOOLS[0]: None, TOOLS[1]: None},
            "to rank drawings give --vqgan-model-path and --vqgan-config-path",
        ),
        ({"--rank-by": "caption"}, "--rank-by caption: --caption-model-path is missing, a checkpoint of a"),
        (
            {"--rank-by": "caption", "--caption-model-path": "no.pt"},
            "--caption-model-path no.pt: no such file",
        ),
        ({"--rank-by": "clip", TOOLS[2]: None}, "--rank-by clip: --clip-model-path is missing, weights of"),
        ({"--rank-by": "beauty"}, "--rank-by beauty: expected clip, caption or package.module:function"),
    ],
)
@pytest.mark.parametrize("name", ["train", "train_scst", "evaluate", "sample"])
def test_rankings_that_can_not_be(
    name: str, changes: dict[str, Any], message: str, files: Options, tools: Options
) -> None:
    given = {key: value for key, value in (tools | changes).items() if value is not None}
    own = {
        "train": arguments(files),
        "train_scst": arguments(files),
        "evaluate": ["--model", files["--restore-file"], "--data", files["--data"].split(",")[1]],
        "sample": ["a cat", "--model", files["--restore-file"]],
    }[name]
    assert refused(f"image_gen/{name}.sh", *own, *arguments(given)).startswith(message)


@pytest.mark.parametrize("name", ["train", "train_scst"])
def test_embedded_runs_find_what_can_not_be_made(name: str) -> None:
    for flag in (*TOOLS, "--caption-model-path"):
        assert refused(f"image_gen/{name}.sh", flag, "no.file").startswith(f"{flag} no.file: no such file")
    message = "--clip-model-path is missing, weights of CLIP"
    assert message in refused(f"image_gen/{name}.sh", "--rank-by", "clip")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"--data": None, "--restore-file": None, "--arch": "ofa_base"}, "--data is missing; --arch and"),
        ({"--data": "train.tsv"}, "--data 'train.tsv': expected at least 2 comma-separated TSV files"),
        ({"--restore-file": "no.pt"}, "--restore-file no.pt: no such file"),
        ({"--arch": "ofa_giant"}, "--arch ofa_giant: expected ofa_tiny"),
        ({"--selected-cols": "0,2,3"}, "--data: "),
        (
            {TOOLS[2]: None},
            "--clip-model-path is missing (or another ranking, --rank-by), which is the reward",
        ),
        ({"--label-smoothing": "1"}, "unknown option --label-smoothing; expected: --data"),
    ],
)
def test_stage_2_refuses(changes: dict[str, Any], message: str, files: Options, tools: Options) -> None:
    given = {key: value for key, value in (files | tools | changes).items() if value is not None}
    assert refused("image_gen/train_scst.sh", *arguments(given)).startswith(message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"--data": "no.tsv"}, "--data no.tsv: no such file"),
        ({"--selected-cols": "0,5"}, "--data: "),
        ({"--samples": "few"}, "--samples few: expected a whole number above 0"),
        ({"--real": "no.tsv"}, "--real no.tsv: no such file"),
        ({"--inception-weights": "no.pt"}, "--inception-weights no.pt: no such file"),
        ({"--data": None}, "{model}/drawings_test.tsv is missing: first run"),
    ],
)
def test_evaluation_refuses(changes: dict[str, Any], message: str, files: Options, tmp_path: Path) -> None:
    own = {"--model": files["--restore-file"], "--data": files["--data"].split(",")[1]}
    given = {key: value for key, value in (own | changes).items() if value is not None}
    if "--data" not in given and (DIGITS / "drawings_test.tsv").exists():
        pytest.skip("the embedded data are here")
    assert refused("image_gen/evaluate.sh", *arguments(given)).startswith(message.format(model=DIGITS))


# -- the whole way, with commands that only say that they were called -----------------------------------------


@pytest.fixture
def stub_checkout(tmp_path: Path) -> Path:
    return stub_checkout_in(tmp_path)


def run_stubbed(root: Path, name: str, *args: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    return script_runs.run_stubbed(root, f"image_gen/{name}.sh", *args, **({"NPROC": "1"} | variables))


def calls(root: Path, words: int = 2) -> list[str]:
    """But for the installation."""
    return [call for call in stub_calls(root, words) if not call.startswith("pip ")]


def generation(root: Path, call: str) -> DictConfig:
    """What fairseq makes of a call of fairseq-generate."""
    return parse("generation", call.replace(f"{root}/ofa_fairseq", PLUGIN).split()[1:])


PREPARATION = [
    *("prepare digits", "prepare digit_drawings", "prepare train_tokenizer"),
    *("prepare image_codes", "prepare image_codes"),
]


def evaluation(root: Path, run: str = "image_gen_nano") -> list[str]:
    """The calls of an embedded evaluation: three seeds each way."""
    draws = [f"fairseq-generate {root}/runs/{run}/results/captions.tsv"] * 3 + ["prepare read_drawings"]
    return [*draws, *draws, "prepare contact_sheet"]


def results(output: str) -> str:
    return output[output.index("== results") :].split("== time")[0]


def test_from_nothing_interrupted_and_again(stub_checkout: Path) -> None:
    training_call = f"fairseq-train {stub_checkout}/data/digits/image_gen_train.tsv"
    interrupted = run_stubbed(stub_checkout, "train", STUB_FAILS="fairseq-train")
    assert interrupted.returncode != 0
    assert "== results" not in interrupted.stdout
    assert [c.split(",")[0] for c in calls(stub_checkout)] == [*PREPARATION, training_call]

    done = run_stubbed(stub_checkout, "train")
    assert done.returncode == 0, done.stdout
    made = [c.split(",")[0] for c in calls(stub_checkout)]
    assert made == [*PREPARATION, training_call, *evaluation(stub_checkout)]
    run = stub_checkout / "runs" / "image_gen_nano"
    plain, guided = results(done.stdout).split("with guidance 2:")
    for part, name in ((plain, "plain"), (guided, "guided")):
        lists = " ".join(f"{run}/results/{name}/{seed}/drawings/pictures.tsv" for seed in (1, 2, 3))
        assert f"reading of the stub: {lists}" in part
    for said in (f"{run}/results/drawings.png", f"{run}/checkpoint_best.pt"):
        assert said in done.stdout
    captions = (run / "results" / "captions.tsv").read_text().split()
    assert captions == ["test", "unseen", "two"]
    parts = [line.split("\t")[0] for line in (run / "times.tsv").read_text().splitlines()]
    prepared = ["data", "scenes to draw", "image tokenizer", "image codes"]
    reading = [*["generation"] * 3, "reading"]
    assert parts == [
        *("installation", *prepared, "training"),
        *(*prepared, "training", *reading, *reading, "grid of drawings"),
    ]

    again = run_stubbed(stub_checkout, "train")
    assert calls(stub_checkout) == PREPARATION  # each of which knows what it has done
    assert results(again.stdout) == results(done.stdout)


def test_seeds_and_guidance_of_an_embedded_evaluation(stub_checkout: Path) -> None:
    assert run_stubbed(stub_checkout, "train").returncode == 0
    found = []
    for call in calls(stub_checkout, words=1000):
        if call.startswith("fairseq-generate"):
            cfg = generation(stub_checkout, call)
            seed, guidance = cfg.common.seed, cfg.task.guidance
            name = "plain" if guidance == 1 else "guided"
            folder = stub_checkout / "runs" / "image_gen_nano" / "results" / name / str(seed)
            assert (cfg.task.gen_images_path, cfg.common_eval.results_path) == (
                f"{folder}/drawings",
                str(folder),
            )
            assert (cfg.task.selected_cols, cfg.generation.beam, cfg.generation.sampling_topk) == (
                "0,3",
                1,
                {"plain": 20, "guided": 50}[name],
            )
            found.append((seed, guidance))
    assert found == [(1, 1), (2, 1), (3, 1), (1, 2), (2, 2), (3, 2)]


def test_stage_2_makes_what_it_starts_from(stub_checkout: Path) -> None:
    done = run_stubbed(stub_checkout, "train_scst")
    assert done.returncode == 0, done.stdout
    made = [c.split(",")[0] for c in calls(stub_checkout)]
    data = f"{stub_checkout}/data/digits"
    drawing, captioning = f"fairseq-train {data}/image_gen_train.tsv", f"fairseq-train {data}/train_words.tsv"
    assert [c for c in made if c.startswith("fairseq-train")] == [drawing, captioning, drawing]
    assert made[-8:] == evaluation(stub_checkout, "image_gen_scst_nano")[-8:]
    assert run_stubbed(stub_checkout, "train_scst").returncode == 0
    assert calls(stub_checkout) == PREPARATION


def test_a_failed_reading_is_no_result(stub_checkout: Path) -> None:
    failed = run_stubbed(stub_checkout, "train", STUB_FAILS="read_drawings")
    assert failed.returncode != 0
    assert "== results" not in failed.stdout
    calls(stub_checkout)
    assert run_stubbed(stub_checkout, "train").returncode == 0
    assert "prepare read_drawings" in calls(stub_checkout)


def given_model(root: Path) -> Path:
    """A model that somebody has trained."""
    model = root.parent / "own" / "model.pt"
    model.parent.mkdir()
    model.write_text("weights")
    return model


def test_an_evaluation_with_other_metrics_is_scored_again(stub_checkout: Path, tools: Options) -> None:
    model, data = given_model(stub_checkout), stub_checkout.parent / "captions.tsv"
    data.write_text("0\tcodes\ta cat\n" * 5)
    own = ["--model", str(model), "--data", str(data), *arguments(tools)]
    shared = ["--pictures", f"{model.parent}/results/drawings/pictures.tsv"]
    assert run_stubbed(stub_checkout, "evaluate", *own).returncode == 0
    assert calls(stub_checkout) == [
        f"fairseq-generate {data}",
        "prepare contact_sheet",
        "prepare picture_metrics",
    ]
    again = run_stubbed(stub_checkout, "evaluate", *own)
    assert calls(stub_checkout) == []
    assert "metrics of the stub" in results(again.stdout)
    weights = stub_checkout.parent / "inception.pt"
    weights.write_text("weights")
    run_stubbed(stub_checkout, "evaluate", *own, "--real", str(data), "--inception-weights", str(weights))
    (call,) = calls(stub_checkout, words=1000)
    assert call.split()[1:] == [
        *("picture_metrics", *shared, "--real", str(data), "--column", "1"),
        *("--inception-weights", str(weights)),
        *("--clip-weights", tools["--clip-model-path"], "--clip-model", "ViT-B-16"),
    ]
    os.utime(model, (0, 0))  # another model
    run_stubbed(stub_checkout, "evaluate", *own)
    assert calls(stub_checkout)[0] == f"fairseq-generate {data}"


def test_every_sentence_is_drawn(stub_checkout: Path) -> None:
    """Also a second one into the same folder."""
    model, out = given_model(stub_checkout), stub_checkout.parent / "out"
    for sentence in ("a large red seven", 'it\'s a "small" $HOME blue three'):
        done = run_stubbed(stub_checkout, "sample", sentence, "--model", str(model), "--out", str(out))
        assert done.returncode == 0, done.stdout
        generate, sheet = calls(stub_checkout, words=1000)
        cfg = generation(stub_checkout, generate)
        assert (cfg.generation.beam, cfg.generation.nbest, cfg.common.seed) == (9, 9, 1)
        assert (cfg.task.data, cfg.task.selected_cols) == (f"{out}/caption.tsv", "0,1")
        assert (out / "caption.tsv").read_text() == f"1\t{sentence}\n"
        pictures = f"{out}/drawings/pictures.tsv"
        assert sheet == f"prepare contact_sheet --pictures {pictures} --out {out}/grid.png"
        assert f"{out}/grid.png" in done.stdout


def test_lists_of_all_processes_become_one(stub_checkout: Path) -> None:
    """But not what an interrupted run of more processes has left."""
    model, data = given_model(stub_checkout), stub_checkout.parent / "captions.tsv"
    data.write_text("0\tcodes\ta cat\n" * 5)
    drawings = model.parent / "results" / "drawings"
    drawings.mkdir(parents=True)
    (drawings / "pictures.7.tsv").write_text("header\nold\n")
    torchrun = stub_checkout.parent / "bin" / "torchrun"
    torchrun.write_text(
        """#!/usr/bin/env bash
set -e
while [[ $1 != bash ]]; do shift; done
for RANK in 0 1; do RANK=$RANK LOCAL_RANK=$RANK WORLD_SIZE=2 "$@"; done
"""
    )
    torchrun.chmod(0o755)
    done = run_stubbed(stub_checkout, "evaluate", "--model", str(model), "--data", str(data), NPROC="2")
    assert done.returncode == 0, done.stdout
    assert (drawings / "pictures.tsv").read_text() == "header\nrow of 0\nrow of 1\n"
    assert not (drawings / "pictures.1.tsv").exists()
