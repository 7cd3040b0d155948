"""run_scripts/: what they accept, what they would start, and that they go on where they were."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from script_runs import (
    PLUGIN,
    ROOT,
    dry_run,
    flags_of,
    parse,
    run_stubbed,
    script,
    stub_calls,
    stub_checkout_in,
)

from ofa_fairseq.prepare.digits.tasks_command import FILES

SCRIPTS = sorted(path.relative_to(ROOT / "run_scripts") for path in (ROOT / "run_scripts").rglob("*.sh"))


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """Arguments of the published recipe, files included."""
    for name in ("train.tsv", "valid.tsv", "ofa.pt", "bpe/dict.txt", "bpe/vocab.bpe", "bpe/encoder.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("0\t1\ta cat\t\tpicture.jpg\n")
    return {
        "--data": f"{tmp_path}/train.tsv,{tmp_path}/valid.tsv",
        "--restore-file": f"{tmp_path}/ofa.pt",
        "--bpe-dir": f"{tmp_path}/bpe",
        "--save-dir": f"{tmp_path}/run",
    }


def arguments(options: dict[str, str]) -> list[str]:
    return [word for option in options.items() for word in option]


# -- options and their checks ------------------------------------------------------------------------------


@pytest.mark.parametrize("path", SCRIPTS, ids=str)
def test_is_bash_and_explains_itself(path: Path) -> None:
    subprocess.run(["bash", "-n", ROOT / "run_scripts" / path], check=True)
    text = (ROOT / "run_scripts" / path).read_text()
    if not text.startswith("#!"):  # sourced by others
        assert "ourced by" in text
        return
    assert "set -euo pipefail" in text
    if path.name == "worker.sh":
        return
    shown = script(str(path), "--help")
    assert shown.returncode == 0
    assert f"bash run_scripts/{path}" in shown.stdout
    assert "DRY_RUN=1" in shown.stdout


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"--lr": "1"}, "unknown option --lr; expected: --data"),
        ({"--data": "nowhere.tsv,no.tsv"}, "--data: no such file: 'nowhere.tsv'"),
        ({"--data": "train.tsv"}, "--data 'train.tsv': expected at least 2 comma-separated TSV files"),
        ({"--restore-file": "no.pt"}, "--restore-file no.pt: no such file"),
        ({"--restore-file": None}, "--restore-file is missing"),
        ({"--bpe-dir": "."}, "--bpe-dir .: there is no dict.txt"),
        ({"--arch": "ofa_giant"}, "--arch ofa_giant: expected ofa_tiny"),
        ({"--batch-size": "0"}, "--batch-size 0: expected a whole number above 0"),
        ({"--precision": "fp8"}, "--precision fp8: expected one of: fp16 bf16 amp fp32"),
        ({"--data": None}, "--data is missing"),
        ({"--save-dir": ""}, "--save-dir: expected a value"),
        ({"stray": "x"}, "unexpected argument 'stray'"),
    ],
)
def test_bad_input_is_refused_before_anything_starts(
    files: dict[str, str], changes: dict[str, str | None], message: str
) -> None:
    given = {key: value for key, value in (files | changes).items() if value is not None}
    done = script("caption/train.sh", *arguments(given), OFA_PYTHON="false")
    assert done.returncode == 2
    assert done.stdout.startswith(f"error: {message}")


def test_an_empty_file_and_a_half_vocabulary_are_refused(files: dict[str, str]) -> None:
    (Path(files["--bpe-dir"]) / "encoder.json").unlink()
    done = script("caption/train.sh", *arguments(files), OFA_PYTHON="false")
    assert "expected vocab.bpe and encoder.json (GPT-2), or sentencepiece.model" in done.stdout
    Path(files["--data"].split(",")[1]).write_text("")
    done = script("caption/train.sh", *arguments(files), OFA_PYTHON="false")
    assert "valid.tsv is empty" in done.stdout


@pytest.mark.parametrize("path", ["no.pt", None])
def test_how_to_train_from_scratch_is_said_where_the_checkpoint_is_missing(
    files: dict[str, str], path: str | None
) -> None:
    given = {key: value for key, value in (files | {"--restore-file": path}).items() if value is not None}
    done = script("caption/train.sh", *arguments(given), OFA_PYTHON="false")
    assert done.returncode == 2
    assert "to train from scratch: --restore-file none" in done.stdout


@pytest.mark.parametrize("dry", ["", "1"])
@pytest.mark.parametrize("name", ["caption/train.sh", "caption/evaluate.sh"])
def test_too_few_columns_are_refused_before_anything_starts(
    files: dict[str, str], name: str, dry: str
) -> None:
    file = files["--data"].split(",")[-1]
    if name == "caption/evaluate.sh":
        files = {"--data": file, "--model": files["--restore-file"]}
    given = files | {"--selected-cols": "0,4,2"}
    Path(file).write_text("0\t1\ta cat\n" + "0\t1\ta cat\t\tpicture.jpg\n")
    done = script(name, *arguments(given), OFA_PYTHON="false", DRY_RUN=dry)
    assert done.returncode == 2
    said = "line 1: 3 columns between tabs, expected 5 for --selected-cols 0,4,2"
    assert done.stdout == f"error: --data: {file}, {said}\n"


def test_columns_are_numbers(files: dict[str, str]) -> None:
    done = script("caption/train.sh", *arguments(files), "--selected-cols", "0,x,2", OFA_PYTHON="false")
    assert done.returncode == 2
    assert done.stdout.startswith("error: --selected-cols 0,x,2: expected column numbers such as 0,4,2")


def test_options_from_the_environment_and_relative_paths(
    files: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(files["--save-dir"]).parent
    monkeypatch.chdir(folder)
    given = {"OFA_DATA": "train.tsv,valid.tsv", "OFA_RESTORE_FILE": "ofa.pt", "OFA_BPE_DIR": "bpe"}
    from_environment = dry_run("caption/train.sh", **given, OFA_SAVE_DIR="run")
    assert flags_of("fairseq-train", from_environment) == flags_of(
        "fairseq-train", dry_run("caption/train.sh", *arguments(files))
    )
    overruled = dry_run("caption/train.sh", "--save-dir=other", "--", "--lr", "3e-5", **given)
    flags = flags_of("fairseq-train", overruled)
    assert flags[flags.index("--save-dir") + 1] == f"{folder}/other"
    assert parse("training", flags).optimization.lr == [3e-5]


# -- recipes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arch", "epochs", "drop_after"),
    [
        ("ofa_tiny", 5, 6000),
        ("ofa_medium", 5, 6000),
        ("ofa_base", 5, 6000),
        ("ofa_large", 2, 2500),
        ("ofa_huge", 2, 2500),
    ],
)
def test_published_numbers(files: dict[str, str], arch: str, epochs: int, drop_after: int) -> None:
    cfg = parse(
        "training",
        flags_of("fairseq-train", dry_run("caption/train.sh", *arguments(files), "--arch", arch, GPUS="4")),
    )
    assert cfg.model._name == arch
    assert (cfg.optimization.max_epoch, cfg.criterion.drop_worst_after) == (epochs, drop_after)
    assert (cfg.criterion.drop_worst_ratio, cfg.criterion.label_smoothing) == (0.2, 0.1)
    assert (cfg.optimization.lr, cfg.lr_scheduler.warmup_ratio) == ([1e-5], 0.06)
    assert (cfg.dataset.batch_size, cfg.optimization.update_freq, cfg.common.fp16) == (8, [4], True)
    assert cfg.model.freeze_encoder_embedding
    assert cfg.model.scale_heads
    assert cfg.checkpoint.finetune_from_model == files["--restore-file"]


def embedded_files(checkout: Path) -> str:
    """Two epochs of words, two of captions, and the validation file."""
    names = ["train_words", "train_words", "train", "train", "valid"]
    return ",".join(f"{checkout}/data/digits/{name}.tsv" for name in names)


def test_the_run_without_arguments_parses() -> None:
    cfg = parse("training", flags_of("fairseq-train", dry_run("caption/train.sh")))
    assert cfg.model._name == "ofa_nano"
    assert cfg.checkpoint.finetune_from_model is None
    assert cfg.task.data == embedded_files(ROOT)
    assert cfg.optimization.max_epoch == cfg.task.data.count(",")
    assert not cfg.common.fp16


@pytest.mark.parametrize(
    ("variables", "options", "batch"),
    [
        ({"GPUS": "0"}, {}, "128 (recipe: 128) = 1 processes x 8 rows x 16"),
        ({"GPUS": "4"}, {}, "128 (recipe: 128) = 4 processes x 8 rows x 4"),
        ({"GPUS": "8"}, {"--batch-size": "32"}, "128 (recipe: 128) = 8 processes x 16 rows x 1"),
        ({"GPUS": "3"}, {}, "126 (recipe: 128) = 3 processes x 7 rows x 6"),
        (
            {"GPUS": "8", "NNODES": "32", "MASTER_ADDR": "a"},
            {},
            "256 (recipe: 128) = 256 processes x 1 rows x 1",
        ),
        (
            {"GPUS": "4", "NPROC": "1"},
            {"--effective-batch": "64"},
            "64 (recipe: 64) = 1 processes x 8 rows x 8",
        ),
    ],
)
def test_the_effective_batch_is_kept(
    files: dict[str, str], variables: dict[str, str], options: dict[str, str], batch: str
) -> None:
    shown = dry_run("caption/train.sh", *arguments(files | options), **variables)
    assert f"batch of an update: {batch};" in shown


@pytest.mark.parametrize(
    ("arch", "beam", "temperature", "lenpen"), [("ofa_base", 5, 1.0, 1), ("ofa_huge", 10, 0.98, 0.98)]
)
def test_published_evaluation(
    files: dict[str, str], arch: str, beam: int, temperature: float, lenpen: float
) -> None:
    data, model = files["--data"].split(",")[1], files["--restore-file"]
    shown = dry_run(
        "caption/evaluate.sh",
        "--model",
        model,
        "--data",
        data,
        "--bpe-dir",
        files["--bpe-dir"],
        "--arch",
        arch,
        GPUS="1",
    )
    cfg = parse("generation", flags_of("fairseq-generate", shown))
    generation = cfg.generation
    assert (generation.beam, generation.temperature, generation.lenpen) == (beam, temperature, lenpen)
    assert (generation.max_len_b, generation.no_repeat_ngram_size) == (16, 3)
    assert (cfg.dataset.batch_size, cfg.common.seed, cfg.common.fp16) == (16, 7, True)
    assert (cfg.task.selected_cols, cfg.dataset.gen_subset, cfg.scoring._name) == ("1,4,2", "test", "cider")
    assert f"--out {Path(model).parent}/results/test_predict.json" in shown


def test_evaluation_without_a_model_says_what_to_do(tmp_path: Path) -> None:
    done = script("caption/evaluate.sh", OFA_MODEL=str(tmp_path / "none.pt"), OFA_PYTHON="false")
    assert done.returncode == 2
    assert done.stdout.startswith(
        f"error: {tmp_path}/none.pt is missing: first run bash run_scripts/caption/train.sh"
    )


@pytest.mark.parametrize("name", ["vqa/train", "refcoco/train", "refcoco/train_iou", "snli_ve/train"])
def test_embedded_trainings_read_files_that_are_made_and_share_pictures_as_these_do(name: str) -> None:
    cfg = parse("training", flags_of("fairseq-train", dry_run(f"{name}.sh")))
    *training, validation = [Path(file).name for file in cfg.task.data.split(",")]
    assert validation in FILES
    assert {FILES[file].per_scene for file in training} == {cfg.task.rows_per_picture}
    assert cfg.optimization.max_epoch == 0 < cfg.optimization.max_update


def test_half_precision_of_the_embedded_model_keeps_float32_parameters() -> None:
    cfg = parse(
        "training", flags_of("fairseq-train", dry_run("caption/train_scst.sh", "--precision", "fp16"))
    )
    assert (cfg.common.fp16, cfg.common.memory_efficient_fp16) == (True, False)


def test_own_data_do_not_go_on_with_the_embedded_model(files: dict[str, str]) -> None:
    del files["--save-dir"]
    shown = dry_run("caption/train.sh", *arguments(files), "--arch", "ofa_nano", "--selected-cols", "0,1,2")
    cfg = parse("training", flags_of("fairseq-train", shown))
    assert cfg.checkpoint.save_dir == f"{ROOT}/runs/caption_stage1_own_nano"
    assert "-- --max-update" in shown


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_precisions_that_copy_the_parameters_are_refused_before_anything_starts(precision: str) -> None:
    done = script("vqa/train.sh", "--precision", precision, OFA_PYTHON="false")
    assert done.returncode == 2
    assert done.stdout.startswith(f"error: --precision {precision}: expected amp or fp32")


def test_boxes_are_trained_for_their_overlap_from_the_model_of_grounding() -> None:
    shown = dry_run("refcoco/train_iou.sh")
    cfg = parse("training", flags_of("fairseq-train", shown))
    assert cfg.checkpoint.finetune_from_model == f"{ROOT}/runs/refcoco_nano/checkpoint_best.pt"
    assert cfg.checkpoint.save_dir == f"{ROOT}/runs/refcoco_iou_nano"
    assert (cfg.criterion._name, cfg.criterion.scst_reward) == ("scst_reward_criterion", "box_iou")
    assert json.loads(cfg.task.scst_args) == {"beam": 5, "sampling": True, "min_len": 4, "max_len_b": 4}
    assert (cfg.optimization.lr, cfg.optimization.max_update, cfg.optimization.max_epoch) == ([2e-4], 300, 0)
    evaluation = f"run_scripts/refcoco/evaluate.sh --model {cfg.checkpoint.save_dir}/checkpoint_best.pt"
    assert evaluation in shown
    stage1 = parse("training", flags_of("fairseq-train", dry_run("refcoco/train.sh")))
    for name in set(cfg.task) - {"scst", "scst_args"}:
        assert cfg.task[name] == stage1.task[name], name
    assert cfg.model == stage1.model


def test_own_boxes_are_trained_for_their_overlap_from_the_given_checkpoint(files: dict[str, str]) -> None:
    given = files | {"--selected-cols": "0,4,2,3"}
    cfg = parse("training", flags_of("fairseq-train", dry_run("refcoco/train_iou.sh", *arguments(given))))
    assert (cfg.model._name, cfg.checkpoint.finetune_from_model) == ("ofa_base", files["--restore-file"])
    assert cfg.dataset.batch_size * cfg.optimization.update_freq[0] == 64
    assert (cfg.optimization.lr, cfg.model.dropout, cfg.task.max_image_size) == ([1e-5], 0.0, 512)


# -- published command lines -------------------------------------------------------------------------------

# As in the released scripts, after the launcher line became `fairseq-train` and --user-dir ours.
STAGE_1 = [
    *("train.tsv,valid.tsv", "--selected-cols=0,4,2", "--bpe-dir=../../utils/BPE", f"--user-dir={PLUGIN}"),
    *("--restore-file=../../checkpoints/ofa_large.pt", "--reset-optimizer", "--reset-dataloader"),
    *("--reset-meters", "--save-dir=./stage1_checkpoints", "--task=caption", "--arch=ofa_large"),
    *("--label-smoothing=0.1", "--batch-size=8", "--update-freq=4", "--encoder-normalize-before"),
    *("--decoder-normalize-before", "--share-decoder-input-output-embed", "--share-all-embeddings"),
    *("--layernorm-embedding", "--patch-layernorm-embedding", "--code-layernorm-embedding"),
    *("--resnet-drop-path-rate=0.0", "--encoder-drop-path-rate=0.1", "--decoder-drop-path-rate=0.1"),
    *("--dropout=0.1", "--attention-dropout=0.0", "--weight-decay=0.01", "--optimizer=adam"),
    *("--adam-betas=(0.9,0.999)", "--adam-eps=1e-08", "--clip-norm=1.0", "--lr-scheduler=polynomial_decay"),
    *("--lr=1e-5", "--max-epoch=2", "--warmup-ratio=0.06", "--log-format=simple", "--log-interval=10"),
    *("--fixed-validation-seed=7", "--no-epoch-checkpoints", "--keep-best-checkpoints=1"),
    *("--save-interval=1", "--validate-interval=1", "--save-interval-updates=500"),
    *("--validate-interval-updates=500", "--eval-cider", "--eval-cider-cached-tokens=coco-valid-words.p"),
    '--eval-args={"beam":5,"max_len_b":16,"no_repeat_ngram_size":3}',
    *("--best-checkpoint-metric=cider", "--maximize-best-checkpoint-metric", "--max-src-length=80"),
    *("--max-tgt-length=20", "--find-unused-parameters", "--freeze-encoder-embedding"),
    *("--freeze-decoder-embedding", "--add-type-embedding", "--scale-attn", "--scale-fc", "--scale-heads"),
    *("--disable-entangle", "--num-bins=1000", "--patch-image-size=480", "--fp16"),
    *("--fp16-scale-window=512", "--num-workers=0"),
]
CROSS_ENTROPY = [
    "--criterion=adjust_label_smoothed_cross_entropy",
    *("--drop-worst-ratio=0.2", "--drop-worst-after=2500"),
]
ENCOURAGING = [
    "--criterion=adjust_label_smoothed_encouraging_loss",
    *("--log-end=0.75", "--drop-worst-ratio=0.05", "--drop-worst-after=2500"),
    *("--drop-best-ratio=0.05", "--drop-best-after=2500"),
]
SCST = [
    *("--criterion=scst_reward_criterion", "--scst", "--scst-cider-cached-tokens=coco-train-words.p"),
    '--scst-args={"beam":5,"max_len_b":16,"no_repeat_ngram_size":3}',
    *("--selected-cols=1,4,2", "--batch-size=2", "--lr=1e-5", "--max-epoch=3", "--end-learning-rate=2e-7"),
    *("--encoder-drop-path-rate=0.0", "--decoder-drop-path-rate=0.0", "--dropout=0.0"),
    "--memory-efficient-fp16",
]
STAGE_2 = [flag for flag in STAGE_1 if not flag.startswith("--label-smoothing")] + SCST
STAGE_2_BASE = [flag for flag in STAGE_2 if not flag.startswith("--end-learning-rate")] + ["--arch=ofa_base"]
EVALUATION = [
    *(
        "test.tsv",
        "--path=caption_large_best.pt",
        f"--user-dir={PLUGIN}",
        "--task=caption",
        "--batch-size=16",
    ),
    *("--log-format=simple", "--log-interval=10", "--seed=7", "--gen-subset=test"),
    *("--results-path=../../results/caption", "--beam=5", "--max-len-b=16", "--no-repeat-ngram-size=3"),
    *("--fp16", "--num-workers=0"),
    """--model-overrides={"data":"test.tsv","bpe_dir":"../../utils/BPE","eval_cider":False,"selected_cols":"1,4,2"}""",
]


@pytest.mark.parametrize(
    ("line", "script", "arch", "gpus"),
    [
        (STAGE_1 + CROSS_ENTROPY, "caption/train.sh", "ofa_large", "4"),
        (STAGE_2, "caption/train_scst.sh", "ofa_large", "8"),
        (STAGE_2_BASE, "caption/train_scst.sh", "ofa_base", "8"),
    ],
    ids=["cross entropy", "self-critical", "self-critical base"],
)
def test_published_training_line_means_what_the_script_starts(
    files: dict[str, str], line: list[str], script: str, arch: str, gpus: str
) -> None:
    cfg = parse("training", line)
    shown = dry_run(script, *arguments(files), f"--arch={arch}", GPUS=gpus)
    ours = parse("training", flags_of("fairseq-train", shown))
    for section in ("model", "optimizer", "lr_scheduler", "optimization"):
        assert cfg[section] == ours[section], section
    for name in set(cfg.task) - {"data", "bpe_dir", "eval_cider_cached_tokens"}:
        assert cfg.task[name] == ours.task[name], name
    for name in set(cfg.criterion) - {"scst_cider_cached_tokens"}:
        assert cfg.criterion[name] == ours.criterion[name], name
    for name in ("best_checkpoint_metric", "maximize_best_checkpoint_metric", "save_interval_updates"):
        assert cfg.checkpoint[name] == ours.checkpoint[name]
    for name in ("fp16", "memory_efficient_fp16", "fp16_scale_window"):
        assert cfg.common[name] == ours.common[name]
    assert cfg.checkpoint.reset_optimizer


def test_published_encouraging_line_parses() -> None:
    criterion = parse("training", STAGE_1 + ENCOURAGING).criterion
    assert (criterion.log_end, criterion.drop_best_ratio, criterion.drop_best_after) == (0.75, 0.05, 2500)


def test_published_evaluation_line_parses() -> None:
    cfg = parse("generation", EVALUATION)
    assert (cfg.generation.beam, cfg.generation.no_repeat_ngram_size) == (5, 3)
    assert json.loads(cfg.common_eval.model_overrides.replace("False", "false"))["selected_cols"] == "1,4,2"


# -- who runs ----------------------------------------------------------------------------------------------


def test_one_process_uses_no_launcher_and_one_gpu(files: dict[str, str]) -> None:
    shown = dry_run("caption/train.sh", *arguments(files), GPUS="4", NPROC="1")
    assert "torchrun" not in shown
    assert "--distributed-world-size 1" in shown


def test_processes_on_one_machine(files: dict[str, str]) -> None:
    shown = dry_run("caption/train.sh", *arguments(files), NPROC="2")
    assert "+ torchrun --standalone --nproc-per-node 2 --no-python bash" in shown
    assert (
        parse("training", flags_of("fairseq-train", shown)).distributed_training.distributed_backend == "gloo"
    )


def test_several_machines(files: dict[str, str]) -> None:
    place = {"NNODES": "2", "NODE_RANK": "1", "GPUS": "4"}
    shown = dry_run("caption/train.sh", *arguments(files), MASTER_ADDR="first", **place)
    assert "--nnodes 2 --node-rank 1 --master-addr first --master-port 29400 --nproc-per-node 4" in shown
    assert "= 8 processes x 8 rows x 2;" in shown
    done = script("caption/train.sh", *arguments(files), DRY_RUN="1", OFA_PYTHON=sys.executable, **place)
    assert "error: NNODES=2: MASTER_ADDR is missing" in done.stdout


def test_a_slurm_allocation_starts_the_script_in_its_tasks(files: dict[str, str]) -> None:
    shown = dry_run("caption/train.sh", *arguments(files), SLURM_JOB_ID="7", SLURM_NTASKS="8")
    given = " ".join(arguments(files))
    assert f"+ srun --kill-on-bad-exit=1 bash {ROOT}/run_scripts/caption/train.sh {given}" in shown
    assert "fairseq-train" not in shown


def test_slurm_tasks_find_their_place(files: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "scontrol").write_text("#!/bin/sh\necho node-a\necho node-b\n")
    (tmp_path / "scontrol").chmod(0o755)
    job = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_JOB_NODELIST": "node-[a-b]", "GPUS": "4"}
    job |= {"SLURM_NNODES": "2", "SLURM_NODEID": "1", "PATH": f"{tmp_path}:/usr/bin:/bin"}
    one_a_process = {"SLURM_NTASKS": "8", "SLURM_PROCID": "5", "SLURM_LOCALID": "1"}
    shown = dry_run("caption/train.sh", *arguments(files), **(job | one_a_process))
    assert "= 8 processes x 8 rows x 2;" in shown
    assert f"+ bash {ROOT}/run_scripts/worker.sh fairseq-train" in shown
    one_a_machine = {"SLURM_NTASKS": "2", "SLURM_PROCID": "1", "SLURM_LOCALID": "0"}
    shown = dry_run("caption/train.sh", *arguments(files), **(job | one_a_machine))
    assert (
        "torchrun --nnodes 2 --node-rank 1 --master-addr node-a --master-port 20007 --nproc-per-node 4"
        in shown
    )


@pytest.mark.parametrize("devices", [None, "", "5,7"])
def test_a_worker_knows_its_place(tmp_path: Path, devices: str | None) -> None:
    for name in ("fairseq-train", "fairseq-generate"):
        (tmp_path / name).write_text('#!/bin/sh\necho "$@ on ${CUDA_VISIBLE_DEVICES-unset}"\n')
        (tmp_path / name).chmod(0o755)
    place = {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4"}
    if devices is not None:
        place["CUDA_VISIBLE_DEVICES"] = devices
    train = script("worker.sh", f"{tmp_path}/fairseq-train", "DATA", **place).stdout.split(" on ")
    assert train[1].strip() == ("unset" if devices is None else devices)
    cfg = parse("training", [*train[0].split(), f"--user-dir={PLUGIN}", "--task=caption", "--arch=ofa_nano"])
    distributed = cfg.distributed_training
    assert (distributed.distributed_rank, distributed.distributed_world_size, distributed.device_id) == (
        3,
        4,
        1,
    )
    assert (distributed.distributed_init_method, distributed.distributed_no_spawn) == ("env://", True)
    generate = script(
        "worker.sh", f"{tmp_path}/fairseq-generate", "DATA", "--results-path", "out", **place
    ).stdout
    assert "--results-path out/3 --distributed-world-size 4 --distributed-rank 3" in generate
    assert generate.strip().endswith({None: "on 1", "": "on", "5,7": "on 7"}[devices])


# -- the whole way, with commands that only say that they were called -----------------------------------------


@pytest.fixture
def stub_checkout(tmp_path: Path) -> Path:
    return stub_checkout_in(tmp_path)


def test_from_nothing_interrupted_and_again(stub_checkout: Path) -> None:
    interrupted = run_stubbed(stub_checkout, "caption/train.sh", STUB_FAILS="fairseq-train")
    assert interrupted.returncode != 0
    assert "== results" not in interrupted.stdout
    assert [c for c in stub_calls(stub_checkout) if c.startswith("pip")] == ["pip install"]

    done = run_stubbed(stub_checkout, "caption/train.sh")
    assert done.returncode == 0, done.stdout
    assert stub_calls(stub_checkout) == [
        "prepare digits",
        "fairseq-train " + embedded_files(stub_checkout),
        "fairseq-generate " + f"{stub_checkout}/data/digits/test.tsv",
        "prepare collect_predictions",
        "prepare read_captions",
        "prepare contact_sheet",
    ]
    run = stub_checkout / "runs" / "caption_nano"
    for said in (
        "CIDEr of the stub",
        "reading of the stub",
        f"{run}/results/captions.png",
        f"{run}/checkpoint_best.pt",
    ):
        assert said in done.stdout
    parts = [line.split("\t")[0] for line in (run / "times.tsv").read_text().splitlines()]
    assert parts == ["installation", "data", "training", "data", "training", "generation", "scoring"]

    again = run_stubbed(stub_checkout, "caption/train.sh")
    assert stub_calls(stub_checkout) == ["prepare digits"]
    assert (
        again.stdout[again.stdout.index("== results") :].split("== time")[0]
        == (done.stdout[done.stdout.index("== results") :].split("== time")[0])
    )


def test_a_failed_evaluation_is_no_result(stub_checkout: Path) -> None:
    failed = run_stubbed(stub_checkout, "caption/train.sh", STUB_FAILS="collect_predictions")
    assert failed.returncode != 0
    assert "== results" not in failed.stdout
    stub_calls(stub_checkout)
    assert run_stubbed(stub_checkout, "caption/train.sh").returncode == 0
    assert "prepare collect_predictions" in stub_calls(stub_checkout)


@pytest.mark.parametrize("task", ["vqa", "refcoco", "snli_ve"])
def test_what_was_compared_is_not_compared_again(stub_checkout: Path, task: str) -> None:
    data, model = (
        stub_checkout / "data" / "digits",
        stub_checkout / "runs" / f"{task}_nano" / "checkpoint_best.pt",
    )
    for path in (data / f"{task}_test.tsv", data / "dict.txt", data / "sentencepiece.model", model):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("0\n")
    done = run_stubbed(stub_checkout, f"{task}/evaluate.sh")
    work = [
        f"fairseq-generate {data}/{task}_test.tsv",
        "prepare collect_predictions",
        f"fairseq-generate {model.parent}/results/blank/blank.tsv",
        "prepare score_by_kind",
    ]
    if task == "refcoco":
        work.append(f"fairseq-generate {data}/refcoco_absent_test.tsv")
    if task != "snli_ve":
        work.append("prepare presence")
    assert [call for call in stub_calls(stub_checkout) if not call.startswith("pip")] == work, done.stdout
    again = run_stubbed(stub_checkout, f"{task}/evaluate.sh")
    assert stub_calls(stub_checkout) == []
    for title, shown in (
        ("results", "stub: prepare score_by_kind"),
        ("absent digits", "stub: prepare presence"),
    ):
        if title == "results" or task != "snli_ve":
            sections = [
                output.split(f"== {title}\n")[1].split("\n\n==")[0] for output in (done.stdout, again.stdout)
            ]
            assert shown in sections[0]
            assert sections[0] == sections[1]
    os.utime(model, (0, 0))  # another model
    run_stubbed(stub_checkout, f"{task}/evaluate.sh")
    assert stub_calls(stub_checkout) == work


@pytest.mark.parametrize("missing", ["model", "data"])
def test_an_embedded_evaluation_says_which_file_is_missing(stub_checkout: Path, missing: str) -> None:
    paths = {
        "model": stub_checkout / "runs" / "vqa_nano" / "checkpoint_best.pt",
        "data": stub_checkout / "data" / "digits" / "vqa_test.tsv",
    }
    for name, path in paths.items():
        path.parent.mkdir(parents=True)
        if name != missing:
            path.write_text("0\n")
    done = run_stubbed(stub_checkout, "vqa/evaluate.sh")
    assert done.returncode == 2
    said = f"error: {paths[missing]} is missing: first run bash run_scripts/vqa/train.sh"
    assert done.stdout.startswith(said)


def test_installs_again_only_after_a_change(stub_checkout: Path) -> None:
    for _ in range(2):
        assert run_stubbed(stub_checkout, "setup.sh").returncode == 0
    assert stub_calls(stub_checkout).count("pip install") == 1
    run_stubbed(stub_checkout, "setup.sh", "test")
    run_stubbed(stub_checkout, "setup.sh")
    assert stub_calls(stub_checkout).count("pip install") == 1
    with (stub_checkout / "setup.py").open("a") as file:
        file.write("# changed\n")
    run_stubbed(stub_checkout, "setup.sh")
    assert stub_calls(stub_checkout).count("pip install") == 1


def test_installs_into_the_active_environment(stub_checkout: Path) -> None:
    active = stub_checkout.parent / "active"
    (active / "bin").mkdir(parents=True)
    shutil.copy(stub_checkout.parent / "bin" / "python3.11", active / "bin" / "python")
    done = run_stubbed(stub_checkout, "setup.sh", VIRTUAL_ENV=str(active))
    assert f"Python: {active}/bin/python" in done.stdout
    assert not (stub_checkout / ".venv").exists()


def test_a_failed_installation_shows_the_log_and_is_tried_again(stub_checkout: Path) -> None:
    done = run_stubbed(stub_checkout, "setup.sh", STUB_FAILS="pip install")
    assert done.returncode == 2
    assert "stub: pip install" in done.stdout
    assert f"the whole log is in {stub_checkout}/runs/install.log" in done.stdout
    assert run_stubbed(stub_checkout, "setup.sh").returncode == 0


def test_without_a_suitable_python(stub_checkout: Path) -> None:
    for name in ("python3.11", "python3.12", "python3", "python"):
        (stub_checkout.parent / "bin" / name).write_text("#!/bin/sh\nexit 127\n")
        (stub_checkout.parent / "bin" / name).chmod(0o755)
    done = run_stubbed(stub_checkout, "setup.sh")
    assert done.returncode == 2
    assert "error: found neither python3.11 nor python3.12" in done.stdout


def test_ci_runs_all_tests() -> None:
    script_of_ci = ROOT / ".ci" / "run"
    assert script_of_ci.stat().st_mode & 0o111
    assert script_of_ci.read_text().rstrip().endswith('run_scripts/test.sh" --all')


# -- for real ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_processes_train_go_on_and_evaluate(tmp_path: Path) -> None:
    data = tmp_path / "digits"
    counts = ("--train", "24", "--valid", "4", "--test", "10")
    prepare = [sys.executable, "-m", "ofa_fairseq.prepare", "digits", "--out", str(data), *counts]
    subprocess.run(prepare, check=True, cwd=ROOT)
    run = tmp_path / "run"
    options = {
        "--data": f"{data}/train.tsv,{data}/valid.tsv",
        "--arch": "ofa_nano",
        "--bpe-dir": str(data),
        "--save-dir": str(run),
        "--batch-size": "2",
        "--effective-batch": "8",
    }
    two = {"NPROC": "2", "OFA_PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    for updates in ("2", "4"):
        limit = ["--", "--disable-validation", "--max-update", updates]
        done = script("caption/train.sh", *arguments(options), *limit, **two)
        assert done.returncode == 0, done.stdout
        assert "= 2 processes x 2 rows x 2;" in done.stdout
    assert "(epoch 1 @ 2 updates)" in done.stdout  # loaded
    assert "(epoch 2 @ 4 updates," in done.stdout  # saved: 24 rows are 3 updates
    state = torch.load(run / "checkpoint_last.pt", weights_only=True)
    assert state["optimizer_history"][-1]["num_updates"] == 4

    model = ["--model", str(run / "checkpoint_last.pt"), "--data", str(data / "test.tsv")]
    predictions = {}
    for processes in ("1", "2"):
        out = tmp_path / processes
        done = script(
            "caption/evaluate.sh", *model, "--results-path", str(out), **(two | {"NPROC": processes})
        )
        assert done.returncode == 0, done.stdout
        assert "over 10 pictures" in done.stdout
        entries = json.loads((out / "test_predict.json").read_text())
        predictions[processes] = {entry["image_id"]: entry["caption"] for entry in entries}
    assert len(predictions["1"]) == 10
    assert predictions["1"] == predictions["2"]
