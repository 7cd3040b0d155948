"""Packages that only some users need: the extras of setup.py."""

from importlib import import_module
from typing import Any


def import_extra(module: str, extra: str) -> Any:
    """A module of an optional package.

    Raises:
        ValueError: it can't be imported; the message names the extra that brings it.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise ValueError(
            f"{module} can't be imported ({error}): pip install 'ofa_fairseq[{extra}]'"
        ) from error
