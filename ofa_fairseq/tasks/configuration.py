"""A task's place in the run's configuration: what a checkpoint brings, and what stock fairseq gets wrong."""

import logging
import os
from argparse import Namespace
from dataclasses import fields
from typing import Any

from fairseq.tasks import TASK_DATACLASS_REGISTRY
from omegaconf import DictConfig, OmegaConf, open_dict

from .options import NEVER_ADOPTED, PATH_OPTIONS, OFATaskConfig

logger = logging.getLogger(__name__)


def root_of(cfg: Any) -> Any:
    """The whole run's configuration, or None where a task is made without one."""
    root = cfg._get_root() if isinstance(cfg, DictConfig) else None
    return root if root is not None and "common" in root else None


def plain_options(cfg: Any) -> Any:
    """The options as plain attributes: omegaconf checks a type at every look, half the time that a row takes."""
    if not isinstance(cfg, DictConfig):
        return cfg
    values: Any = OmegaConf.to_container(cfg, resolve=True)
    return Namespace(**values)


def adjust_run(root: Any) -> None:
    """Two settings that stock fairseq gets wrong for us, put right in the run's configuration, and absolute paths.

    Our data are files in a list, and fairseq would look for further validation sets in them as in a folder; and its
    option parser takes every `--bf16` for a TPU.
    """
    if root is None:
        return
    with open_dict(root):
        make_paths_absolute(root.task)
        root.dataset.ignore_unused_valid_subsets = True
        if root.common.bf16:
            root.common.tpu = False


def make_paths_absolute(cfg: Any) -> None:
    """`PATH_OPTIONS` of a task's configuration, in place."""
    for name in PATH_OPTIONS:
        if getattr(cfg, name, None):
            setattr(cfg, name, os.path.abspath(getattr(cfg, name)))


def adopt_options(cfg: OFATaskConfig, saved: Any) -> None:
    """Options left at their defaults get the values they had in training (or in --model-overrides), in place.

    Args:
        cfg: of the task.
        saved: the checkpoint's.

    Raises:
        ValueError: a file that the checkpoint names is not here.
    """
    changed = {}
    defaults = TASK_DATACLASS_REGISTRY[cfg._name]()
    for f in fields(defaults):
        value = getattr(saved, f.name, None)
        own = getattr(cfg, f.name)
        never = f.name in NEVER_ADOPTED or f.name.startswith("eval_")
        if never or value is None or own != getattr(defaults, f.name) or own == value:
            continue
        if f.name in PATH_OPTIONS and not os.path.exists(value):
            flag = f"--{f.name.replace('_', '-')}"
            # GPT-2's public files may do, and codes can be drawn without seeing them.
            if f.name not in ("bpe_dir", "vqgan_model_path", "vqgan_config_path"):
                raise ValueError(f"the checkpoint names {value}, which is not here: give {flag}")
            logger.warning("the checkpoint names %s, which is not here: is %s missing?", value, flag)
            continue
        changed[f.name] = value
        setattr(cfg, f.name, value)
    if changed:
        logger.info("options from the checkpoint: %s", changed)
