"""What all tests share: one thread each, the reference files, and a text vocabulary of either kind."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)

# Shared machines pause: time is not what these tests are about.
settings.register_profile("ofa", deadline=None, max_examples=50)
settings.load_profile("ofa")

TESTS = Path(__file__).parent


@pytest.fixture(scope="session")
def reference_dir() -> Path:
    """Folder of numbers measured on the original model."""
    return TESTS / "reference"


@pytest.fixture(scope="session")
def gpt2_bpe_dir() -> Path:
    """Folder of the public GPT-2 BPE files, which are not part of the project."""
    folder = Path(os.environ.get("OFA_BPE_DIR") or TESTS.parents[1] / "shared" / "reference" / "bpe")
    if not (folder / "dict.txt").is_file():
        pytest.skip(f"no GPT-2 BPE files in {folder}: set OFA_BPE_DIR to a folder that has them")
    return folder


@pytest.fixture(scope="session")
def sentencepiece_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a small sentencepiece vocabulary, learned from the released instructions."""
    from ofa_fairseq.instruction import RELEASED
    from ofa_fairseq.prepare.sentencepiece_model import train_sentencepiece

    folder = tmp_path_factory.mktemp("sentencepiece")
    train_sentencepiece(RELEASED.values(), folder, vocab_size=500)
    return folder


@pytest.fixture(scope="session")
def tiny() -> Any:
    """The filled `ofa_tiny` that the references were measured on: read only, it takes seconds to make."""
    from model_builders import tiny_model

    return tiny_model()


@pytest.fixture(scope="module")
def model() -> Any:
    """A very small filled model."""
    from model_builders import small_model

    return small_model()


@pytest.fixture
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(scope="session")
def digits_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded data with 60 training, 12 validation and 12 test scenes, and its vocabulary."""
    from ofa_fairseq.prepare.__main__ import main

    folder = tmp_path_factory.mktemp("digits")
    main(["digits", "--out", str(folder), "--train", "60", "--valid", "12", "--test", "12"])
    return folder
