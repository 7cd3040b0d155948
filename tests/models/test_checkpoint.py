"""What loading does to files of other sizes and ages, one rule at a time; and that loading runs no code."""

import io
import os
import pickle
import re
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fairseq.checkpoint_utils import load_checkpoint_to_cpu
from fairseq.models import build_model as fairseq_build_model
from model_builders import SMALL, build_model, numbered_dictionary, random_tokens, small_model, task_of
from omegaconf import OmegaConf
from torch import Tensor

from ofa_fairseq.models.checkpoint import TOKEN_MATRICES
from ofa_fairseq.models.ofa import OFAModel

State = dict[str, Tensor]
IMAGE_POSITIONS = "embed_image_positions.weight"


def saved(**options: Any) -> State:
    """A file's weights: a filled model's, copied."""
    return {name: value.clone() for name, value in small_model(**options).state_dict().items()}


def fresh(**options: Any) -> Any:
    return build_model("ofa_nano", **{**SMALL, **options})


def assert_equal(model: Any, expected: State, but: tuple[str, ...] = ()) -> None:
    state = model.state_dict()
    assert state.keys() == expected.keys()
    for name, value in expected.items():
        if name not in but:
            assert torch.equal(state[name], value), name


def test_round_trip(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.save(saved(), tmp_path / "model.pt")
    model = fresh()
    model.load_state_dict(torch.load(tmp_path / "model.pt"), strict=True)
    assert_equal(model, saved())
    assert not [r for r in caplog.records if r.levelname == "WARNING"]
    assert model.encoder.embed_tokens.weight is model.decoder.output_projection.weight


@pytest.mark.parametrize("options", [{}, {"share_all_embeddings": False}], ids=["tied", "untied"])
def test_round_trip_of_every_kind_of_part(options: dict[str, Any]) -> None:
    options = {**options, "adapter": True, "encoder_prompt": True, "scale_resids": True}
    model = fresh(**options)
    model.load_state_dict(saved(**options), strict=True)
    assert_equal(model, saved(**options))


def test_half_precision_files_load_into_float32() -> None:
    state = {name: value.half() if value.is_floating_point() else value for name, value in saved().items()}
    model = fresh()
    model.load_state_dict(state)
    assert_equal(model, {k: v.float() if v.dtype == torch.half else v for k, v in state.items()})


# -- old names -----------------------------------------------------------------------------------------

OLD_NORMS = {
    "encoder": ["self_attn_layer_norm", "final_layer_norm"],
    "decoder": ["self_attn_layer_norm", "encoder_attn_layer_norm", "final_layer_norm"],
}


def test_numbered_layer_norms() -> None:
    old = {}
    for name, value in saved().items():
        half = name.split(".")[0]
        for i, norm in enumerate(OLD_NORMS.get(half, [])):
            name = name.replace(f".{norm}.", f".layer_norms.{i}.")
        old[name] = value
    assert len([name for name in old if "layer_norms" in name]) == 2 * 2 * 2 + 2 * 3 * 2
    model = fresh()
    model.load_state_dict(old)
    assert_equal(model, saved())


@pytest.mark.parametrize("kind", ["weight", "bias"])
def test_one_matrix_for_query_key_and_value(kind: str) -> None:
    old = saved()
    for name in list(old):
        if name.endswith(f".q_proj.{kind}"):
            stem = name.removesuffix(f"q_proj.{kind}")
            parts = [old.pop(f"{stem}{part}_proj.{kind}") for part in "qkv"]
            old[f"{stem}in_proj_{kind}"] = torch.cat(parts)
    assert f"decoder.layers.1.encoder_attn.in_proj_{kind}" in old
    model = fresh()
    model.load_state_dict(old)
    assert_equal(model, saved())


def test_a_missing_output_matrix_is_the_token_matrix() -> None:
    state = saved(share_decoder_input_output_embed=False)
    del state["decoder.output_projection.weight"]
    model = fresh(share_decoder_input_output_embed=False)
    model.load_state_dict(state)
    assert torch.equal(model.decoder.output_projection.weight, state["decoder.embed_tokens.weight"])


def test_the_old_name_of_the_output_matrix() -> None:
    state = saved(share_decoder_input_output_embed=False)
    output = state.pop("decoder.output_projection.weight") + 1
    state["decoder.embed_out"] = output
    model = fresh(share_decoder_input_output_embed=False)
    model.load_state_dict(state)
    assert torch.equal(model.decoder.output_projection.weight, output)


# -- missing entries -----------------------------------------------------------------------------------


def test_missing_entries_keep_their_values_and_are_named(caplog: pytest.LogCaptureFixture) -> None:
    state, model = saved(), fresh()
    missing = ["encoder.layers.1.fc1.bias", "decoder.pos_ln.weight", "encoder.embed_images.bn1.running_var"]
    for name in missing:
        del state[name]
    own = {name: model.state_dict()[name].clone() for name in missing}
    model.load_state_dict(state, strict=True)
    assert_equal(model, saved() | own)
    (record,) = [r for r in caplog.records if r.levelname == "WARNING"]
    assert "lacks 3 entries" in record.message
    assert all(name in record.message for name in missing)


@pytest.mark.parametrize("kept", TOKEN_MATRICES)
def test_one_of_the_tied_matrices_is_enough(kept: str) -> None:
    state, model = saved(), fresh()
    for name in TOKEN_MATRICES:
        if name != kept:
            del state[name]
    model.load_state_dict(state)
    assert_equal(model, saved())


# -- pictures ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file_size", [16, 32, 64])
def test_positions_of_codes_are_always_the_models_own(file_size: int) -> None:
    model = fresh(code_image_size=64)
    model.load_state_dict(saved(code_image_size=file_size))
    assert torch.equal(model.decoder.image_position_idx, fresh(code_image_size=64).decoder.image_position_idx)
    without = saved()
    del without["decoder.image_position_idx"]
    model.load_state_dict(without)


def test_image_positions_grow_at_the_end() -> None:
    state = saved(encoder_embed_dim=32)
    tables = {half: state[f"{half}.{IMAGE_POSITIONS}"] for half in ("encoder", "decoder")}
    for half in tables:
        state[f"{half}.{IMAGE_POSITIONS}"] = tables[half][:5].clone()
    model = fresh()
    model.load_state_dict(state)
    for half, table in tables.items():
        loaded = model.state_dict()[f"{half}.{IMAGE_POSITIONS}"]
        assert torch.equal(loaded[:5], table[:5])
        assert loaded[5:].std().item() == pytest.approx(32**-0.5, rel=0.1)


def test_more_image_positions_than_the_model_has_are_an_error() -> None:
    with pytest.raises(
        ValueError, match=re.escape(f"encoder.{IMAGE_POSITIONS}: (82, 32) in the file, (65, 32)")
    ):
        fresh().load_state_dict(saved(image_bucket_size=9))


# -- vocabulary ----------------------------------------------------------------------------------------


def test_vocabulary_grows_by_the_same_rows_in_all_matrices() -> None:
    state = saved(vocabulary=40)
    before = state[TOKEN_MATRICES[0]].clone()
    model = fresh(vocabulary=500, share_all_embeddings=False, share_decoder_input_output_embed=False)
    model.load_state_dict(state)
    grown = [model.state_dict()[name] for name in TOKEN_MATRICES]
    assert torch.equal(grown[0], grown[1])
    assert torch.equal(grown[0], grown[2])
    assert torch.equal(grown[0][:40], before)
    assert grown[0][40:].std().item() == pytest.approx(32**-0.5, rel=0.05)
    assert grown[0][40:].mean().item() == pytest.approx(0, abs=0.01)


def test_growth_of_half_precision_files() -> None:
    state = {name: value.half() if value.is_floating_point() else value for name, value in saved().items()}
    model = fresh(vocabulary=45)
    model.load_state_dict(state)
    assert len(model.encoder.embed_tokens.weight) == 45


def test_a_file_whose_last_row_is_mask_fits_a_vocabulary_without() -> None:
    state = saved(vocabulary=41)
    before = state[TOKEN_MATRICES[0]].clone()
    model = fresh(vocabulary=numbered_dictionary(40, mask=False))
    model.load_state_dict(state)
    assert torch.equal(model.encoder.embed_tokens.weight, before[:-1])


@pytest.mark.parametrize(
    ("rows", "mask"), [(41, True), (42, False), (45, True)], ids=["one more", "two more", "many more"]
)
def test_larger_vocabularies_are_errors_otherwise(rows: int, mask: bool) -> None:
    model = fresh(vocabulary=numbered_dictionary(40, mask=mask))
    with pytest.raises(ValueError, match=rf"\({rows}, 32\) in the file, \(40, 32\) in the model"):
        model.load_state_dict(saved(vocabulary=rows))


# -- heads ---------------------------------------------------------------------------------------------


def with_head(model: Any, name: str, classes: int, **options: Any) -> Any:
    model.register_classification_head(name, classes, **options)
    return model


def test_heads_load_where_they_fit(caplog: pytest.LogCaptureFixture) -> None:
    source = with_head(with_head(with_head(small_model(), "same", 3), "unknown", 2), "other_size", 4)
    model = with_head(with_head(fresh(), "same", 3), "other_size", 5)
    own = model.classification_heads["other_size"].out_proj.weight.clone()
    model.load_state_dict({k: v.clone() for k, v in source.state_dict().items()})
    for name, value in source.classification_heads["same"].state_dict().items():
        assert torch.equal(model.classification_heads["same"].state_dict()[name], value)
    assert torch.equal(model.classification_heads["other_size"].out_proj.weight, own)
    assert "left out classification heads of other names or sizes: other_size, unknown" in caplog.text


def test_files_without_the_models_heads_and_with_linear_ones(caplog: pytest.LogCaptureFixture) -> None:
    model = with_head(fresh(), "mine", 3)
    model.load_state_dict(saved())
    assert "classification_heads.mine.dense.weight" in caplog.text
    linear = with_head(small_model(pooler_classifier="linear"), "mine", 3)
    model.load_state_dict({k: v.clone() for k, v in linear.state_dict().items()})
    assert "left out classification heads of other names or sizes: mine" in caplog.text


# -- the stem's norms ----------------------------------------------------------------------------------


def test_files_with_counters_load_into_a_frozen_stem_and_back() -> None:
    frozen = fresh(freeze_resnet=True)
    frozen.load_state_dict(saved())
    without = {k: v for k, v in saved().items() if not k.endswith("num_batches_tracked")}
    assert_equal(frozen, without)
    free = fresh()
    free.load_state_dict({k: v.clone() for k, v in frozen.state_dict().items()})
    assert_equal(free, saved())


def test_a_frozen_stem_without_statistics_in_the_file_has_mean_0_and_variance_1() -> None:
    model = fresh(freeze_resnet=True)
    model.load_state_dict({k: v for k, v in saved().items() if "running" not in k})
    statistics = {k: v for k, v in model.state_dict().items() if "running" in k}
    assert statistics
    for name, value in statistics.items():
        assert (value == (1 if name.endswith("running_var") else 0)).all(), name


# -- what no rule covers -------------------------------------------------------------------------------


def test_a_file_of_another_preset_is_named() -> None:
    with torch.device("meta"):
        state = build_model("ofa_tiny", 50, scale_heads=True, scale_resids=True).state_dict()
    with pytest.raises(ValueError, match="does not fit the model") as error:
        fresh(vocabulary=50).load_state_dict(state)
    lines = str(error.value).splitlines()
    assert len(lines) == 1 + 6 + 1
    assert "encoder.embed_tokens.weight: (50, 256) in the file, (50, 32) in the model" in str(error.value)
    assert lines[-1] == (
        "The file was made with --arch ofa_tiny --scale-heads --scale-resids --add-type-embedding"
        " and a vocabulary of 50."
    )


def test_entries_that_the_model_lacks_are_named() -> None:
    state = saved(scale_resids=True, adapter=True)
    with pytest.raises(ValueError, match="16 differences") as error:
        fresh(adapter=True).load_state_dict(state | {f"extra{i}": torch.ones(1) for i in range(12)})
    assert "encoder.layers.0.w_resid is not in the model" in str(error.value)
    assert "a model of width 32 with {'encoder': 2, 'decoder': 2} layers" in str(error.value)


def test_a_file_of_something_else_is_an_error() -> None:
    with pytest.raises(ValueError, match="this is not an OFA checkpoint"):
        fresh().load_state_dict({"conv1.weight": torch.ones(1)})


# -- reading files -------------------------------------------------------------------------------------


class Malicious:
    """Pickled, this asks the reader to run a command."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.marker}",)


HISTORY = {"criterion_name": "Loss", "optimizer_name": "Adam", "lr_scheduler_state": {}, "num_updates": 3}


def checkpoint_of(weights: State, **more: Any) -> dict[str, Any]:
    """As fairseq's trainer writes it: options as Namespaces, scores as numpy's numbers."""
    model = Namespace(
        _name="ofa_nano", arch="ofa_nano", task="caption", bpe_dir="BPE", encoder_layerdrop=0.0, **SMALL
    )
    return {
        "args": None,
        "cfg": {
            "_name": None,
            "common": {"seed": 1, "fp16": True},
            "model": model,
            "task": Namespace(_name="caption", selected_cols="0,4,2", constraint_range=None),
            "criterion": Namespace(_name="adjust_label_smoothed_cross_entropy"),
        },
        "model": weights,
        "criterion": None,
        "optimizer_history": [HISTORY],
        "task_state": {},
        "extra_state": {
            "metrics": [("default", [(1, "cider", "AverageMeter", {"sum": np.float64(3.5), "count": 2})])],
            "previous_training_time": 12.5,
            "train_iterator": {"epoch": 2, "iterations_in_epoch": 0, "shuffle": True},
            "best": np.float64(1.25),
            "val_loss": np.float32(0.5),
        },
        **more,
    }


def test_a_checkpoint_as_fairseq_writes_it(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    torch.save(checkpoint_of(saved()), path)
    state = load_checkpoint_to_cpu(str(path), arg_overrides={"bpe_dir": "elsewhere"})
    assert state["extra_state"]["best"] == 1.25
    assert state["cfg"]["model"].bpe_dir == "elsewhere"
    model = fairseq_build_model(state["cfg"]["model"], task_of(numbered_dictionary(40)))
    assert isinstance(model, OFAModel)
    model.load_state_dict(state["model"], strict=True, model_cfg=state["cfg"]["model"])
    assert_equal(model, saved())
    assert model.encoder.layers[0].attn_ln is not None  # the preset was applied to the Namespace


def test_numbers_written_by_an_older_numpy() -> None:
    buffer = io.BytesIO()
    torch.save({"best": np.float64(1.25)}, buffer, _use_new_zipfile_serialization=False)
    old = re.sub(rb"cnumpy\._?core\.multiarray", b"cnumpy.core.multiarray", buffer.getvalue())
    assert torch.load(io.BytesIO(old)) == {"best": 1.25}


def test_options_as_an_omegaconf_node(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    node = OmegaConf.create({"model": {"_name": "ofa_nano", **SMALL}, "task": {"_name": "caption"}})
    torch.save(
        {"cfg": node, "args": None, "model": {}, "extra_state": {}, "optimizer_history": [HISTORY]}, path
    )
    assert load_checkpoint_to_cpu(str(path))["cfg"].model.encoder_embed_dim == 32


@pytest.mark.parametrize("place", ["cfg", "extra_state", "model"])
def test_a_file_that_would_run_code_is_refused(tmp_path: Path, place: str) -> None:
    path, marker = tmp_path / "checkpoint.pt", tmp_path / "executed"
    torch.save(checkpoint_of(saved(), **{place: {"x": Malicious(marker)}}), path)
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        load_checkpoint_to_cpu(str(path))
    assert not marker.exists()


def test_outputs_survive_saving(tmp_path: Path) -> None:
    model, again = small_model(), fresh().eval()
    torch.save(checkpoint_of(model.state_dict()), tmp_path / "checkpoint.pt")
    again.load_state_dict(load_checkpoint_to_cpu(str(tmp_path / "checkpoint.pt"))["model"], strict=True)
    source, target = random_tokens(0, 2, 4), random_tokens(1, 2, 5)
    with torch.no_grad():
        assert torch.equal(again(source, None, target)[0], model(source, None, target)[0])
