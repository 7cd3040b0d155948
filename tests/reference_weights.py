"""Weights that follow from nothing but a state-dict entry's name and shape.

The reference outputs were measured on a model filled by this rule; one whose names and shapes agree gets the same
weights, so that outputs can be compared number by number without a file of weights.
"""

import zlib
from typing import TypeVar

import numpy as np
import torch
from torch import nn

Model = TypeVar("Model", bound=nn.Module)

# Names of the one tied token matrix: they must get the same numbers.
TOKEN_MATRIX_NAMES = ("embed_tokens", "output_projection")


def reference_value(name: str, shape: tuple[int, ...], prefix: str = "") -> np.ndarray:
    """The float32 weights of entry `name`; another `prefix` gives another model."""
    is_token_matrix = any(part in name for part in TOKEN_MATRIX_NAMES)
    seed = zlib.crc32((prefix + ("embed_tokens" if is_token_matrix else name)).encode())
    # numpy never changes the stream of its legacy generator.
    noise = np.random.RandomState(seed).standard_normal(shape)
    if name.endswith("running_var"):
        value = 1.0 + 0.2 * np.abs(noise)
    elif name.endswith("c_attn") or (len(shape) == 1 and name.endswith("weight")):
        value = 1.0 + 0.1 * noise  # gains of norms and heads
    elif len(shape) == 1:
        value = 0.1 * noise  # biases and running means
    elif is_token_matrix:
        value = shape[1] ** -0.5 * noise
    elif "rel_pos_table_list" in name or (len(shape) == 2 and "embed" in name):
        value = 0.5 * noise  # tables of positions and types
    else:
        value = np.prod(shape[1:]) ** -0.5 * noise
    return value.astype(np.float32)


@torch.no_grad()
def fill(model: Model, prefix: str = "") -> Model:
    """Overwrite the floating-point entries of the state dict in place, but for `version`; returns the model."""
    filled = set()
    for name, tensor in model.state_dict().items():
        tied = tensor.data_ptr() in filled
        if tensor.is_floating_point() and not name.endswith("version") and not tied:
            tensor.copy_(torch.from_numpy(reference_value(name, tuple(tensor.shape), prefix)))
            filled.add(tensor.data_ptr())
    return model
