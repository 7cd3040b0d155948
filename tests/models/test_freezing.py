"""Which parameters learn under each option, as fairseq-train builds the model; names and work of the added parts."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from model_builders import (
    RELEASED_VOCABULARY,
    SMALL_FLAGS,
    build_model,
    model_from_flags,
    normal_images,
    random_tokens,
)
from reference_weights import fill

from ofa_fairseq.models.config import RECIPE_SWITCHES
from ofa_fairseq.models.ofa import last_features
from ofa_fairseq.models.prompts import Adapter, PromptEncoder

MATRIX = "encoder.embed_tokens.weight"  # parameters are listed under the first name of the tied matrix


def with_gradients(model: Any) -> set[str]:
    """Names of the parameters that a training step on text, codes and pictures gives a gradient."""
    fill(model).train()
    source, target = random_tokens(0, 3, 5), random_tokens(1, 3, 6)
    source[2, 3:] = 1
    logits, _ = model(
        source,
        None,
        target,
        patch_images=normal_images(2, (3, 3, 32, 48)),
        patch_masks=torch.tensor([True, True, False]),
        code_masks=torch.tensor([True, False, False]),
    )
    F.cross_entropy(logits.flatten(0, 1), target.flatten()).backward()
    named = model.named_parameters()
    return {name for name, p in named if p.grad is not None and bool(p.grad.abs().sum() > 0)}


def names(model: Any, chosen: Callable[[str], bool] = lambda name: True) -> set[str]:
    return {name for name, _ in model.named_parameters() if chosen(name)}


FREEZING: list[tuple[list[str], Callable[[str], bool]]] = [
    ([], lambda name: True),
    (["--freeze-resnet"], lambda name: True),
    (["--sync-bn", "--freeze-resnet"], lambda name: True),
    (["--freeze-encoder-embedding"], lambda name: name != MATRIX),
    (["--freeze-decoder-embedding"], lambda name: name != MATRIX),
    (["--freeze-encoder", "--freeze-decoder"], lambda name: True),
    (["--adapter"], lambda name: name != MATRIX),
    (["--encoder-prompt"], lambda name: "prompt_encoder" in name),
    (["--decoder-prompt", "--decoder-prompt-projection"], lambda name: "prompt_encoder" in name),
    (
        ["--encoder-prompt", "--decoder-prompt", "--adapter"],
        lambda name: "prompt_encoder" in name or "adapter" in name,
    ),
    (
        ["--bitfit", "--freeze-encoder-embedding", "--encoder-prompt"],
        lambda name: name.endswith("bias") and ("layer_norm." in name or ".fc" in name),
    ),
]


@pytest.mark.parametrize(("flags", "learns"), FREEZING, ids=[" ".join(f) or "none" for f, _ in FREEZING])
def test_what_learns(flags: list[str], learns: Callable[[str], bool]) -> None:
    model = model_from_flags(*SMALL_FLAGS, *flags)
    expected = names(model, learns)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == expected
    if "--sync-bn" in flags:
        return  # needs a process group on a GPU
    assert with_gradients(model) == expected


def test_text_alone_gives_the_stem_no_gradient() -> None:
    model = fill(model_from_flags(*SMALL_FLAGS)).train()
    logits, _ = model(random_tokens(0, 2, 4), None, random_tokens(1, 2, 3))
    logits.sum().backward()
    unused = {name for name, p in model.named_parameters() if p.grad is None}
    parts = (
        "embed_images.",
        "image_proj.",
        "patch_layernorm",
        "code_layernorm",
        "image_pos",
        "image_rel_pos",
    )
    assert unused == names(
        model, lambda name: any(part in name for part in (*parts, "embed_image_positions"))
    )


# -- the stem's norms ------------------------------------------------------------------------------------


def test_the_frozen_stem_keeps_names_without_counters() -> None:
    with torch.device("meta"):
        options = {**RECIPE_SWITCHES, "code_image_size": 256}
        free = build_model("ofa_tiny", RELEASED_VOCABULARY, **options).state_dict()
        frozen = build_model("ofa_tiny", RELEASED_VOCABULARY, freeze_resnet=True, **options).state_dict()
    assert len(frozen) == 500
    assert set(free) - set(frozen) == {name for name in free if name.endswith("num_batches_tracked")}
    assert set(frozen) < set(free)


@pytest.mark.parametrize("frozen", [False, True])
def test_statistics_move_unless_frozen(frozen: bool) -> None:
    model = fill(model_from_flags(*SMALL_FLAGS, *(["--freeze-resnet"] if frozen else [])))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with_gradients(model)
    optimizer.step()
    after, stem = model.state_dict(), "encoder.embed_images."
    norms = [name for name in after if name.startswith(stem) and (".bn" in name or ".downsample.1." in name)]
    assert stem + "bn1.running_mean" in norms
    for name in norms:
        if "num_batches" not in name:
            assert torch.equal(after[name], before[name]) == frozen, name
    # Convolutions learn all the same: that is what the released option means.
    assert not torch.equal(after[stem + "conv1.weight"], before[stem + "conv1.weight"])


# -- adapters and prompts --------------------------------------------------------------------------------


def test_adapters_have_the_released_names() -> None:
    model = model_from_flags(*SMALL_FLAGS, "--adapter")
    added = set(model.state_dict()) - set(model_from_flags(*SMALL_FLAGS).state_dict())
    assert added == {
        f"{half}.layers.{i}.adapter.{part}_proj.{kind}"
        for half in ("encoder", "decoder")
        for i in range(2)
        for part in ("down", "up")
        for kind in ("weight", "bias")
    }
    assert model.encoder.layers[0].adapter.down_proj.weight.shape == (200, 32)
    narrow = model_from_flags(*SMALL_FLAGS, "--adapter", "--adapter-dim=7")
    assert narrow.decoder.layers[1].adapter.up_proj.weight.shape == (32, 7)


def test_adapter_by_hand() -> None:
    adapter = Adapter(2, 1)
    adapter.load_state_dict(
        {
            "down_proj.weight": torch.tensor([[1.0, 2.0]]),
            "down_proj.bias": torch.tensor([-4.0]),
            "up_proj.weight": torch.tensor([[10.0], [20.0]]),
            "up_proj.bias": torch.tensor([0.5, 0.0]),
        }
    )
    x = torch.tensor([[1.0, 2.0], [1.0, 1.0]])
    assert adapter(x).tolist() == [[11.5, 22.0], [1.5, 1.0]]  # inner values 1 and (below zero) 0


def test_adapters_act_inside_the_residual_branch() -> None:
    model = fill(model_from_flags(*SMALL_FLAGS, "--adapter")).eval()
    layer = model.encoder.layers[0]
    x = torch.randn(2, 3, 32)
    inner = layer.ffn_layernorm(F.gelu(layer.fc1(layer.final_layer_norm(x))))
    expected = x + layer.adapter(layer.fc2(inner))
    assert torch.allclose(layer._feed_forward(x), expected, atol=1e-5)


@pytest.mark.parametrize("half", ["encoder", "decoder"])
def test_prompts_have_the_released_names(half: str) -> None:
    stem = f"{half}.{half}_prompt_encoder"
    plain = set(model_from_flags(*SMALL_FLAGS).state_dict())
    table = model_from_flags(*SMALL_FLAGS, f"--{half}-prompt")
    assert set(table.state_dict()) - plain == {f"{stem}.embedding.weight"}
    assert table.state_dict()[f"{stem}.embedding.weight"].shape == (100, 2 * 2 * 32)

    flags = [f"--{half}-prompt", f"--{half}-prompt-projection", f"--{half}-prompt-length=9"]
    projected = model_from_flags(*SMALL_FLAGS, *flags).state_dict()
    assert {name: tuple(projected[name].shape) for name in set(projected) - plain} == {
        f"{stem}.embedding.weight": (9, 32),
        f"{stem}.trans.0.weight": (64, 32),
        f"{stem}.trans.0.bias": (64,),
        f"{stem}.trans.2.weight": (128, 64),
        f"{stem}.trans.2.bias": (128,),
    }
    narrow = model_from_flags(*SMALL_FLAGS, *flags, f"--{half}-prompt-dim=5").state_dict()
    assert narrow[f"{stem}.trans.2.weight"].shape == (128, 5)


def test_prompt_table_holds_a_key_and_a_value_for_each_layer_and_head() -> None:
    prompt = PromptEncoder(length=3, layers=2, dim=4, heads=2, projection_dim=None).eval()
    table = prompt.embedding.weight.view(
        3, 2, 2, 2, 2
    )  # position, layer, key or value, head, width of a head
    for layer, (key, value) in enumerate(prompt()):
        for kind, tensor in enumerate((key, value)):
            assert tensor.shape == (1, 2, 3, 2)
            for head in range(2):
                assert torch.equal(tensor[0, head], table[:, layer, kind, head])


def test_prompts_are_dropped_out_in_training() -> None:
    prompt = PromptEncoder(length=500, layers=1, dim=4, heads=2, projection_dim=None)
    dropped = torch.stack(prompt.train()()[0]).eq(0).float().mean()
    assert dropped.item() == pytest.approx(0.2, abs=0.05)


@pytest.mark.parametrize("half", ["encoder", "decoder"])
def test_every_position_attends_to_the_prompt(half: str) -> None:
    source, target = random_tokens(3, 2, 4), random_tokens(4, 2, 5)
    model = fill(model_from_flags(*SMALL_FLAGS, f"--{half}-prompt", f"--{half}-prompt-length=2")).eval()
    without = fill(model_from_flags(*SMALL_FLAGS)).eval()
    difference = model(source, None, target)[0] - without(source, None, target)[0]
    assert (difference.abs().amax(dim=-1) > 1e-3).all()


# -- classification heads --------------------------------------------------------------------------------


def test_head_of_the_last_real_position() -> None:
    model = fill(model_from_flags(*SMALL_FLAGS)).eval()
    model.register_classification_head("sentiment", 3, inner_dim=7)
    source, target = random_tokens(5, 3, 4), random_tokens(6, 3, 6)
    target[1, 4:] = 1
    target[2, 1:] = 1
    scores, _ = model(source, None, target, classification_head_name="sentiment")
    features, _ = model(source, None, target, features_only=True)
    head = model.classification_heads["sentiment"]
    last = torch.stack([features[0, 5], features[1, 3], features[2, 0]])
    assert torch.allclose(last_features(features, target, 1), last)
    assert torch.allclose(scores, head.out_proj(torch.tanh(head.dense(last))), atol=1e-6)
    one, _ = model(source[:1], None, target[:1], classification_head_name="sentiment")
    assert one.shape == (1, 3)


def test_heads_have_the_released_names_and_learn() -> None:
    model = model_from_flags(*SMALL_FLAGS, "--encoder-prompt")
    model.register_classification_head("a", 3)
    model.register_classification_head("b", 2, inner_dim=5, use_two_images=True)
    heads = {
        k: tuple(v.shape) for k, v in model.state_dict().items() if k.startswith("classification_heads.")
    }
    assert heads == {
        "classification_heads.a.dense.weight": (32, 32),
        "classification_heads.a.dense.bias": (32,),
        "classification_heads.a.out_proj.weight": (3, 32),
        "classification_heads.a.out_proj.bias": (3,),
        "classification_heads.b.dense.weight": (5, 64),
        "classification_heads.b.dense.bias": (5,),
        "classification_heads.b.out_proj.weight": (2, 5),
        "classification_heads.b.out_proj.bias": (2,),
    }
    assert all(p.requires_grad for p in model.classification_heads.parameters())


def test_two_pictures_are_two_rows_of_one_answer() -> None:
    model = fill(model_from_flags(*SMALL_FLAGS)).eval()
    model.register_classification_head("pairs", 2, use_two_images=True)
    source, target = random_tokens(5, 4, 4), random_tokens(6, 4, 3)
    scores, _ = model(source, None, target, classification_head_name="pairs")
    assert scores.shape == (2, 2)
    features, _ = model(source, None, target, features_only=True)
    pair = torch.cat([features[2, -1], features[3, -1]])
    head = model.classification_heads["pairs"]
    assert torch.allclose(scores[1], head.out_proj(torch.tanh(head.dense(pair))), atol=1e-6)


def test_linear_head() -> None:
    model = model_from_flags(*SMALL_FLAGS, "--pooler-classifier=linear")
    model.register_classification_head("x", 4)
    assert sorted(model.classification_heads["x"].state_dict()) == ["out_proj.bias", "out_proj.weight"]
    x = torch.randn(2, 32)
    head = model.classification_heads["x"]
    assert torch.allclose(head(x), F.linear(x, head.out_proj.weight, head.out_proj.bias))


def test_spectral_norm_of_a_head() -> None:
    model = model_from_flags(*SMALL_FLAGS, "--spectral-norm-classification-head")
    model.register_classification_head("x", 4)
    head = model.classification_heads["x"].train()
    with torch.no_grad():
        head.out_proj.weight_orig.mul_(50)
    for _ in range(30):  # the estimate of the norm gets better with each step
        head(torch.randn(2, 32))
    assert torch.linalg.matrix_norm(head.out_proj.weight, ord=2).item() == pytest.approx(1, abs=0.02)


def test_registering_a_head_again_replaces_it(caplog: pytest.LogCaptureFixture) -> None:
    model = model_from_flags(*SMALL_FLAGS)
    model.register_classification_head("x", 4)
    model.register_classification_head("x", 6)
    assert model.classification_heads["x"].out_proj.out_features == 6
    assert "classification head x is replaced" in caplog.text


def test_activation_and_dropout_of_heads() -> None:
    model = model_from_flags(*SMALL_FLAGS, "--pooler-activation-fn=relu", "--pooler-dropout=0.5")
    model.register_classification_head("x", 4)
    head = model.classification_heads["x"]
    x = torch.randn(2, 32)
    assert torch.allclose(head.eval()(x), head.out_proj(F.relu(head.dense(x))))
    assert not torch.equal(head.train()(x), head(x))
