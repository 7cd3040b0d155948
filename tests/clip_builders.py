"""A CLIP of a few layers with random weights, as open_clip builds and saves it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

TOWER = {"width": 64, "layers": 1}
CONFIG = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 32, "patch_size": 16, **TOWER},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "heads": 1, **TOWER},
}


def small_clip(folder: Path) -> Any:
    """A model that open_clip from now on knows as `small` (and `small-quickgelu`), with its weights in `weights.pt`.

    Skips the test where open_clip is not installed.
    """
    open_clip = pytest.importorskip("open_clip")
    (folder / "small.json").write_text(json.dumps(CONFIG))
    (folder / "small-quickgelu.json").write_text(json.dumps({**CONFIG, "quick_gelu": True}))
    open_clip.add_model_config(folder)
    torch.manual_seed(4)
    model = open_clip.create_model("small")
    torch.nn.init.normal_(model.visual.proj)  # embeddings that differ from each other
    torch.save(model.state_dict(), folder / "weights.pt")
    return model.eval()
