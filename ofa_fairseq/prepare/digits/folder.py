"""The folder that the command `digits` makes, and files in it that are made once for the same settings."""

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ...files import atomic_write

logger = logging.getLogger(__name__)

SETTINGS = "settings.json"  # how the command `digits` has made the folder; written last


def digits_settings(digits: Path) -> dict[str, Any]:
    """How the command `digits` has made the folder.

    Raises ValueError if it has not.
    """
    path = digits / SETTINGS
    if not path.exists():
        raise ValueError(f"{digits}: expected a folder that the command `digits` has made; {path} is missing")
    return json.loads(path.read_text(encoding="utf-8"))


def make_once(stamp: Path, settings: Mapping[str, Any], make: Callable[[], None]) -> None:
    """Calls `make`, unless the stamp says that it was done with these settings.

    The stamp is written last and removed first: what was interrupted is made anew.
    """
    text = json.dumps(settings) + "\n"
    if stamp.exists() and stamp.read_text(encoding="utf-8") == text:
        logger.info("%s: these files are there already", stamp.parent)
        return
    stamp.parent.mkdir(parents=True, exist_ok=True)
    stamp.unlink(missing_ok=True)
    make()
    with atomic_write(stamp) as file:
        file.write(text)
    logger.info("wrote %s", stamp.parent)
