"""The YAML files: the recipes of the scripts in another form, and a way to every field."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from fairseq.dataclass.initialize import add_defaults, hydra_init
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, ListConfig, OmegaConf
from script_runs import PLUGIN, ROOT, dry_run, flags_of, parse

Train = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A very small embedded data set."""
    folder = tmp_path_factory.mktemp("hydra") / "digits"
    counts = ["--train", "16", "--valid", "4", "--test", "4"]
    command = [sys.executable, "-m", "ofa_fairseq.prepare", "digits", "--out", str(folder), *counts]
    subprocess.run(command, check=True, cwd=ROOT)
    return folder


@pytest.fixture
def train(digits: Path, tmp_path: Path) -> Train:
    """Runs fairseq-hydra-train on the small data with further settings."""

    def run(name: str, *settings: str) -> "subprocess.CompletedProcess[str]":
        command = [
            *(str(Path(sys.executable).parent / "fairseq-hydra-train"), "--config-dir", f"{PLUGIN}/config"),
            *("--config-name", name, f"common.user_dir={PLUGIN}"),
            f'task.data="{digits}/train.tsv,{digits}/valid.tsv"',
            *(f"task.bpe_dir={digits}", f"checkpoint.save_dir={tmp_path}/run", "dataset.batch_size=4"),
            *("dataset.num_workers=0", *settings),
        ]
        done = subprocess.run(
            command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert done.returncode == 0, done.stdout[-3000:]
        return done

    return run


# What is where, and what the schedule's two names have apart.
NOT_COMPARED = {
    *("user_dir", "tensorboard_logdir", "save_dir", "finetune_from_model", "data", "bpe_dir"),
    *("lr_scheduler._name", "total_num_update"),
    *("vqgan_model_path", "vqgan_config_path", "clip_model_path"),
}
SECTIONS = (
    *("common", "task", "model", "criterion", "dataset", "optimization", "optimizer", "lr_scheduler", "ema"),
    *("checkpoint", "distributed_training"),
)
PUBLISHED = ("--arch=ofa_base", "--restore-file=none", "--data={tsv},{tsv}")
# Any files will do.
TOOLS = ("--vqgan-model-path={tsv}", "--vqgan-config-path={tsv}", "--clip-model-path={tsv}")


def composed(name: str) -> DictConfig:
    """What fairseq-hydra-train makes of a YAML file; a preset's numbers are still None."""
    hydra_init(name)
    with initialize_config_dir(f"{PLUGIN}/config"):
        cfg = compose(name)
    add_defaults(cfg)
    return cfg


def plain(value: object) -> object:
    """A setting as Python data, without the white space of JSON."""
    if isinstance(value, ListConfig):
        return [plain(entry) for entry in value]
    return value.replace(" ", "") if isinstance(value, str) else value


@pytest.mark.parametrize(
    ("name", "script", "options", "gpus"),
    [
        ("caption_digits", "caption/train", ["--precision=fp32"], "0"),
        ("caption_stage1", "caption/train", PUBLISHED, "4"),
        ("caption_stage2", "caption/train_scst", PUBLISHED, "8"),
        ("vqa", "vqa/train", PUBLISHED, "32"),
        ("refcoco", "refcoco/train", PUBLISHED, "4"),
        ("snli_ve", "snli_ve/train", PUBLISHED, "8"),
        ("image_gen_stage1", "image_gen/train", PUBLISHED, "32"),
        ("image_gen_stage2", "image_gen/train_scst", [*PUBLISHED, *TOOLS], "32"),
    ],
)
def test_says_the_same_as_the_script(
    tmp_path: Path, name: str, script: str, options: list[str], gpus: str
) -> None:
    tsv = tmp_path / "a.tsv"
    tsv.write_text("\t".join("abcdef") + "\n")
    shown = dry_run(f"{script}.sh", *(option.format(tsv=tsv) for option in options), GPUS=gpus)
    expected, found = parse("training", flags_of("fairseq-train", shown)), composed(name)
    preset = parse(
        "training", ["x", f"--user-dir={PLUGIN}", f"--task={found.task._name}", f"--arch={found.model._name}"]
    )
    for section in SECTIONS:
        for key in set(found[section]) - NOT_COMPARED:
            if f"{section}.{key}" in NOT_COMPARED or OmegaConf.is_missing(found[section], key):
                continue
            value = found[section][key]
            if section == "model" and value is None:
                value = preset.model[key]
            assert plain(value) == plain(expected[section][key]), f"{section}.{key}"


def test_trains_and_goes_on(train: Train, tmp_path: Path) -> None:
    first = train("caption_digits", "optimization.max_epoch=1", "task.eval_args='{\"max_len_b\":3}'")
    assert "cider" in first.stdout
    assert (tmp_path / "run" / "checkpoint_best.pt").is_file()
    assert {path.name for path in tmp_path.iterdir()} == {"run"}  # nothing beside the run's folder
    second = train("caption_digits", "optimization.max_epoch=2", "dataset.disable_validation=true")
    assert "(epoch 2 @ 4 updates)" in second.stdout
    assert "num_updates 8" in second.stdout


def test_reaches_fields_of_every_part(train: Train, tmp_path: Path, digits: Path) -> None:
    broken = tmp_path / "broken.tsv"
    lines = (digits / "train.tsv").read_text().splitlines()
    broken.write_text("\n".join(["0\t1\ta caption\t\tnot-a-picture", *lines[:7]]) + "\n")
    done = train(
        "caption_digits",
        f'task.data="{broken},{digits}/valid.tsv"',
        f"+task.bad_rows={tmp_path}/bad.tsv",
        "+task.max_source_positions=200",
        *("+model.encoder_layers=1", "+model.scale_resids=true", "+model.max_source_positions=200"),
        *("+criterion.report_accuracy=true", "+criterion.ignore_eos=true"),
        *(
            "+lr_scheduler.power=2.0",
            "+lr_scheduler.end_learning_rate=0.0001",
            "lr_scheduler.warmup_ratio=0.5",
        ),
        *("optimization.max_epoch=2", "dataset.disable_validation=true", "common.log_interval=1"),
    )
    assert (tmp_path / "bad.tsv").read_text().count("\n") >= 1
    assert "accuracy=" in done.stdout

    model = torch.load(tmp_path / "run" / "checkpoint_last.pt", weights_only=False)["model"]
    assert {key.split(".")[2] for key in model if key.startswith("encoder.layers.")} == {"0"}
    assert model["encoder.embed_positions.weight"].shape[0] == 200 + 2
    assert "encoder.layers.0.w_resid" in model

    # 8 rows in batches of 4 are 2 updates an epoch: 4 in all, the first 2 of them warm-up; then
    # (1e-3 - 1e-4) * (share left) ^ 2 + 1e-4 (fairseq's polynomial decay, from the published formula).
    rates = dict(re.findall(r"num_updates=(\d+), lr=([0-9.e-]+)", done.stdout))
    expected = {1: 0.5e-3, 2: 1e-3, 3: 0.9e-3 * 0.5**2 + 1e-4, 4: 1e-4}
    assert {int(update): float(rate) for update, rate in rates.items()} == pytest.approx(expected, rel=1e-3)
