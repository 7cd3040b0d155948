"""Reading released checkpoints into a model: old keys, other vocabulary sizes, other picture sizes.

Loading stays strict: what is left over or of another shape is an error that says which preset would fit.
"""

from __future__ import annotations

import argparse
import logging
from collections import OrderedDict, defaultdict
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import numpy as np
import omegaconf
import torch
from fairseq.distributed import utils as distributed_utils
from torch import Tensor, nn

from .config import PRESETS

logger = logging.getLogger(__name__)

State = dict[str, Tensor]
TOKEN_MATRICES = (
    "encoder.embed_tokens.weight",
    "decoder.embed_tokens.weight",
    "decoder.output_projection.weight",
)
HEADS = "classification_heads"
IMAGE_POSITIONS = ("encoder.embed_image_positions.weight", "decoder.embed_image_positions.weight")
# Names of layer norms in fairseq's oldest files, by half of the model.
OLD_LAYER_NORMS = {
    "encoder": ("self_attn_layer_norm", "final_layer_norm"),
    "decoder": ("self_attn_layer_norm", "encoder_attn_layer_norm", "final_layer_norm"),
}


def allow_plain_classes() -> None:
    """Allow-list the plain classes in fairseq's checkpoints, so that `torch.load` stays in its safe mode."""
    nodes = omegaconf.nodes
    # How fairseq sends a checkpoint from the first process to the others; private, but there is no other way.
    placeholder = distributed_utils._TensorPlaceholder
    # Scores may be numpy's numbers; their maker is named by numpy 1 or by numpy 2.
    numpy_scalar: Any = np.float64(0).__reduce__()[0]
    numpy_types = (np.float64, np.float32, np.int64, np.int32, np.bool_)
    torch.serialization.add_safe_globals(
        [
            argparse.Namespace,
            placeholder,
            defaultdict,
            OrderedDict,
            dict,
            list,
            int,
            Any,
            omegaconf.DictConfig,
            omegaconf.ListConfig,
            omegaconf.base.ContainerMetadata,
            omegaconf.base.Metadata,
            nodes.AnyNode,
            nodes.BooleanNode,
            nodes.FloatNode,
            nodes.IntegerNode,
            nodes.StringNode,
            nodes.EnumNode,
            (numpy_scalar, "numpy.core.multiarray.scalar"),
            (numpy_scalar, "numpy._core.multiarray.scalar"),
            np.dtype,
            *(type(np.dtype(kind)) for kind in numpy_types),
        ]
    )


def task_options(path: str | Path) -> dict[str, Any]:
    """The options of the task that a checkpoint was trained with; its weights stay on disk.

    Raises:
        ValueError: a file without them.
    """
    allow_plain_classes()
    state = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zipfile(path))
    # Before YAML, fairseq kept all options together.
    options = (state.get("cfg") or {}).get("task") or state.get("args")
    if not options:
        raise ValueError(f"{path}: expected a checkpoint of training, which tells the options of its task")
    return dict(vars(options) if isinstance(options, argparse.Namespace) else options)


def upgrade(state: State, model: Any) -> None:
    """Bring a released state dict into the form of `model`, in place.

    In order: old key names; output matrix from the token matrix; code positions from the model (they depend
    on the picture size, not on training); more image positions; more tokens; keys the file lacks, from the
    model, logged.

    Raises:
        ValueError: where sizes differ in a way that no rule covers; names the differences and the preset that fits.
    """
    rename_old_keys(state)
    if "decoder.output_projection.weight" not in state and "decoder.embed_tokens.weight" in state:
        source = "decoder.embed_out" if "decoder.embed_out" in state else "decoder.embed_tokens.weight"
        state["decoder.output_projection.weight"] = state[source]
    state.pop("decoder.embed_out", None)
    own, constants = _all_entries(model)
    state["decoder.image_position_idx"] = own["decoder.image_position_idx"]
    for key in IMAGE_POSITIONS:
        grow_rows(state, (key,), len(own[key]))
    fit_vocabulary(state, model, len(own[TOKEN_MATRICES[0]]))
    drop_misfit_heads(state, own)
    for key in [k for k in state if k.endswith("num_batches_tracked") and k not in own]:
        del state[key]  # frozen BatchNorm counts nothing
    check_shapes(state, own)
    loaded = {own[key].data_ptr() for key in own if key in state}
    missing = [key for key in own if key not in state]
    state.update({key: own[key] for key in missing})
    missing = [key for key in missing if key not in constants and own[key].data_ptr() not in loaded]
    if missing:
        logger.warning(
            "the checkpoint lacks %d entries; kept as initialised: %s", len(missing), ", ".join(missing)
        )


def _all_entries(model: Any) -> tuple[State, State]:
    """The model's entries, with those that `prepare_for_averaging` leaves out, and which of them never change."""
    parameters = {
        name: parameter.detach() for name, parameter in model.named_parameters(remove_duplicate=False)
    }
    constants = {
        name: buffer
        for name, buffer in model.named_buffers()
        if not buffer.is_floating_point() or name.endswith("version")
    }
    return {**model.state_dict(), **parameters, **constants}, constants


def prepare_for_averaging(model: nn.Module) -> None:
    """Keep out of the model's state dict from now on what fairseq's average (`--store-ema`) can't take.

    It averages every entry: integers refuse that, and a tied matrix would be averaged once for each of its names. The
    integers are index tables, which options decide, and BatchNorm's count of batches, which nothing reads. `upgrade`
    puts everything back.
    """
    model.register_state_dict_post_hook(_delete_unaveraged)


def _delete_unaveraged(module: nn.Module, state: State, prefix: str, metadata: Any) -> None:
    seen = set()
    for key, value in list(state.items()):
        if not value.is_floating_point() or value.data_ptr() in seen:
            del state[key]
        seen.add(value.data_ptr())


def rename_old_keys(state: State) -> None:
    """fairseq's oldest names: numbered layer norms, and query, key and value in one matrix."""
    for key in list(state):
        half, _, rest = key.partition(".")
        parts = rest.split(".")
        if half in OLD_LAYER_NORMS and "layer_norms" in parts:
            i = parts.index("layer_norms")
            parts[i : i + 2] = [OLD_LAYER_NORMS[half][int(parts[i + 1])]]
            state[".".join([half, *parts])] = state.pop(key)
        elif key.endswith(("in_proj_weight", "in_proj_bias")):
            stem, _, kind = key.rpartition(".in_proj_")
            for name, chunk in zip("qkv", state.pop(key).chunk(3)):
                state[f"{stem}.{name}_proj.{kind}"] = chunk


def grow_rows(state: State, keys: tuple[str, ...], rows: int) -> None:
    """Append rows ~ N(0, d^-0.5), the same to every matrix of `keys` that the file holds."""
    present = [key for key in keys if key in state and len(state[key]) < rows]
    if not present:
        return
    first = state[present[0]]
    new = torch.randn(rows - len(first), first.size(1)) * first.size(1) ** -0.5
    for key in present:
        state[key] = torch.cat([state[key], new.to(state[key])])


def fit_vocabulary(state: State, model: Any, rows: int) -> None:
    """A file with one row more that was `<mask>` loses it; a smaller vocabulary grows at its end.

    Rows are never re-ordered: a file with other numbers of codes or bins shifts meanings, which only the user can
    know.
    """
    present = [key for key in TOKEN_MATRICES if key in state]
    if not present:
        return
    in_file = len(state[present[0]])
    dictionary = model.encoder.dictionary
    if in_file == rows + 1 and "<mask>" not in dictionary:
        for key in present:
            state[key] = state[key][:-1]
    elif in_file < rows:
        logger.warning("the vocabulary grows from %d to %d entries; new ones are random", in_file, rows)
        grow_rows(state, TOKEN_MATRICES, rows)


def drop_misfit_heads(state: State, own: State) -> None:
    """Classification heads that the model does not have, or has in another form, are left out with a warning."""
    heads, own_heads = head_shapes(state), head_shapes(own)
    misfits = sorted(name for name, shapes in heads.items() if shapes != own_heads.get(name))
    for name in misfits:
        for part in heads[name]:
            del state[f"{HEADS}.{name}.{part}"]
    if misfits:
        logger.warning("left out classification heads of other names or sizes: %s", ", ".join(misfits))


def head_shapes(state: State) -> dict[str, dict[str, torch.Size]]:
    """Shapes of each classification head, by name of the head and of its part."""
    shapes: defaultdict[str, dict[str, torch.Size]] = defaultdict(dict)
    for key, value in state.items():
        if key.startswith(f"{HEADS}."):
            _, name, part = key.split(".", 2)
            shapes[name][part] = value.shape
    return shapes


def check_shapes(state: State, own: State) -> None:
    """Raise a ValueError that names the first differences, and the preset that the file was made with."""
    extra = [f"{k} is not in the model" for k in state if k not in own]
    shapes = [
        f"{k}: {tuple(state[k].shape)} in the file, {tuple(own[k].shape)} in the model"
        for k in own
        if k in state and state[k].shape != own[k].shape
    ]
    problems = shapes + extra
    if problems:
        shown = "\n  ".join(problems[:6])
        raise ValueError(
            f"the checkpoint does not fit the model; {len(problems)} differences, the first:\n  {shown}\n{hint(state)}"
        )


def hint(state: State) -> str:
    """What the weights say about how the model must be built."""
    if "encoder.embed_tokens.weight" not in state:
        return "It holds no encoder.embed_tokens.weight: this is not an OFA checkpoint."
    dim = state["encoder.embed_tokens.weight"].size(1)
    layers = {
        half: 1 + max((int(k.split(".")[2]) for k in state if k.startswith(f"{half}.layers.")), default=-1)
        for half in ("encoder", "decoder")
    }
    fitting = [
        name
        for name, preset in PRESETS.items()
        if (preset.dim, preset.encoder_layers, preset.decoder_layers)
        == (dim, layers["encoder"], layers["decoder"])
    ]
    switches = {
        "--scale-attn": "encoder.layers.0.attn_ln.weight",
        "--scale-fc": "encoder.layers.0.ffn_layernorm.weight",
        "--scale-heads": "encoder.layers.0.self_attn.c_attn",
        "--scale-resids": "encoder.layers.0.w_resid",
        "--add-type-embedding": "encoder.type_embedding.weight",
    }
    used = " ".join(flag for flag, key in switches.items() if key in state)
    arch = f"--arch {fitting[0]}" if fitting else f"a model of width {dim} with {layers} layers"
    return f"The file was made with {arch} {used} and a vocabulary of {len(state['encoder.embed_tokens.weight'])}."
