"""Attention against the formula, one head, row and position at a time."""

import pytest
import torch
from torch import Tensor

from ofa_fairseq.models.attention import MultiheadAttention
from ofa_fairseq.models.layers import LayerCache, _with_prompt

DIM, HEADS, WIDTH = 12, 3, 4


def by_hand(
    attention: MultiheadAttention,
    query: Tensor,
    source: Tensor,
    bias: Tensor,
    prompt: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Row n attends to source row n // (N / B); `bias` is [N, H, t, s]."""
    group = len(query) // len(source)
    result = torch.zeros_like(query)
    for n in range(len(query)):
        keys, values = attention.k_proj(source[n // group]), attention.v_proj(source[n // group])
        heads = []
        for h in range(HEADS):
            part = slice(h * WIDTH, (h + 1) * WIDTH)
            q = attention.q_proj(query[n])[:, part] * (WIDTH * 2) ** -0.5
            k, v, b = keys[:, part], values[:, part], bias[n, h]
            if prompt is not None:
                k, v = torch.cat([prompt[0][0, h], k]), torch.cat([prompt[1][0, h], v])
                b = torch.cat([torch.zeros(len(b), prompt[0].size(2)), b], dim=1)
            weights = (q @ k.T + b).softmax(dim=-1)
            heads.append(weights @ v * (1 if attention.c_attn is None else attention.c_attn[h]))
        result[n] = attention.out_proj(torch.cat(heads, dim=-1))
    return result


@pytest.fixture
def attention() -> MultiheadAttention:
    torch.manual_seed(0)
    module = MultiheadAttention(DIM, HEADS, scale_heads=True)
    assert module.c_attn is not None
    torch.nn.init.normal_(module.c_attn)
    return module


@pytest.mark.parametrize("rows", [1, 2], ids=["one bias", "a bias for each row"])
def test_formula(attention: MultiheadAttention, rows: int) -> None:
    x, bias = torch.randn(2, 5, DIM), torch.randn(rows, HEADS, 5, 5)
    bias[..., 4] = -torch.inf
    found = attention(x, attention.key_value(x), bias)
    assert torch.allclose(found, by_hand(attention, x, x, bias.expand(2, -1, -1, -1)), atol=1e-5)


@pytest.mark.parametrize("rows", [1, 2], ids=["one bias", "a bias for each picture"])
def test_rows_that_share_a_picture(attention: MultiheadAttention, rows: int) -> None:
    query, source = torch.randn(6, 2, DIM), torch.randn(2, 5, DIM)
    bias = torch.randn(rows, HEADS, 2, 5)
    every = bias.expand(2, -1, -1, -1).repeat_interleave(3, 0)
    found = attention(query, attention.key_value(source), bias)
    assert torch.allclose(found, by_hand(attention, query, source, every), atol=1e-5)
    weights = attention.weights(query, attention.key_value(source), bias)
    assert weights.shape == (6, HEADS, 2, 5)
    assert torch.allclose(weights.sum(dim=-1), torch.ones(6, HEADS, 2))


def test_prompts_have_no_bias(attention: MultiheadAttention) -> None:
    x, bias = torch.randn(2, 3, DIM), torch.randn(1, HEADS, 3, 3)
    prompt = torch.randn(1, HEADS, 2, WIDTH), torch.randn(1, HEADS, 2, WIDTH)
    padded = torch.nn.functional.pad(bias, (2, 0))
    found = attention(x, _with_prompt(attention.key_value(x), prompt), padded)
    expected = by_hand(attention, x, x, bias.expand(2, -1, -1, -1), prompt)
    assert torch.allclose(found, expected, atol=1e-5)


def test_keys_of_another_width() -> None:
    attention = MultiheadAttention(DIM, HEADS, key_dim=7)
    assert attention.c_attn is None
    query, source, bias = torch.randn(2, 3, DIM), torch.randn(2, 4, 7), torch.randn(2, HEADS, 3, 4)
    found = attention(query, attention.key_value(source), bias)
    assert torch.allclose(found, by_hand(attention, query, source, bias), atol=1e-5)


def test_dropout_in_training_only() -> None:
    attention = MultiheadAttention(DIM, HEADS, dropout=0.5)
    x = torch.randn(2, 5, DIM)

    def attend() -> Tensor:
        return attention(x, attention.key_value(x), None)

    attention.train()
    assert not torch.equal(attend(), attend())
    attention.eval()
    assert torch.equal(attend(), attend())


def test_cache_keeps_what_was_appended_through_growth_and_reordering() -> None:
    cache, generator = LayerCache(), torch.Generator().manual_seed(0)
    keys = torch.zeros(3, HEADS, 0, WIDTH)
    for step in range(60):
        new = torch.randn(len(keys), HEADS, 1 + step % 3, WIDTH, generator=generator)
        keys = torch.cat([keys, new], dim=2)
        found = cache.append((new, -new))
        assert torch.equal(found[0], keys)
        assert torch.equal(found[1], -keys)
        order = torch.randint(len(keys), (3 if step % 20 else 4,), generator=generator)
        keys = keys[order]
        cache.reorder(order)
