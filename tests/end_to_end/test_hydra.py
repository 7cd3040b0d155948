"""The YAML files: the recipes of the scripts in another form, and a way to every field."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
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


def plain(value: object) -> object:
    """A setting as Python data, numbers and yes/no read from text."""
    if isinstance(value, ListConfig):
        return [plain(entry) for entry in value]
    return value.replace(" ", "") if isinstance(value, str) else value


def settings_of(name: str) -> dict[tuple[str, str], object]:
    """What a YAML file says, without where things are."""
    config = OmegaConf.load(f"{PLUGIN}/config/{name}.yaml")
    assert isinstance(config, DictConfig)
    settings = {}
    for section in set(config) - {"hydra"}:
        for key in config[section]:
            raw = OmegaConf.to_container(config[section])
            assert isinstance(raw, dict)
            if raw[key] != "???" and not str(raw[key]).startswith("${"):
                settings[str(section), str(key)] = plain(config[section][key])
    del settings["checkpoint", "save_dir"]
    assert settings.pop(("lr_scheduler", "_name")) == "ofa_polynomial_decay"
    return settings


@pytest.mark.parametrize(
    ("name", "options", "gpus"),
    [
        ("caption_digits", [], "0"),
        ("caption_stage1", ["--arch=ofa_base", "--restore-file=none", "--data={tsv},{tsv}"], "4"),
    ],
)
def test_says_the_same_as_the_script(tmp_path: Path, name: str, options: list[str], gpus: str) -> None:
    tsv = tmp_path / "a.tsv"
    tsv.write_text("row\n")
    shown = dry_run("caption/train.sh", *(option.format(tsv=tsv) for option in options), GPUS=gpus)
    cfg = parse("training", flags_of("fairseq-train", shown))
    settings = settings_of(name)
    assert settings == {(section, key): plain(cfg[section][key]) for section, key in settings}
    # And nothing that the script sets beyond fairseq's defaults is missing.
    bare = parse(
        "training",
        [
            "x",
            f"--user-dir={PLUGIN}",
            "--task=caption",
            "--arch",
            cfg.model._name,
            *(
                f"--{flag}={cfg[section]._name}"
                for flag, section in (
                    ("criterion", "criterion"),
                    ("optimizer", "optimizer"),
                    ("lr-scheduler", "lr_scheduler"),
                )
            ),
        ],
    )
    for section in ("task", "model", "criterion", "optimization", "optimizer", "lr_scheduler"):
        changed = {key for key in cfg[section] if cfg[section][key] != bare[section][key]}
        said = {key for part, key in settings if part == section} | {
            "data",
            "bpe_dir",
            "max_epoch",
            "lr",
            "update_freq",
        }
        inherited = {"max_update", "sentence_avg"}
        assert changed - said - inherited == set(), section


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
