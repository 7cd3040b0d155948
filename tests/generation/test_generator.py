"""The generator against brute force: what it bans, what it may emit, and how little it computes."""

import itertools
import math
from typing import Any

import pytest
import torch
from fairseq import search
from hypothesis import given
from hypothesis import strategies as st
from model_builders import normal_images, random_tokens, small_model

from ofa_fairseq.generation.answer_space import AnswerTrie, TokenRange
from ofa_fairseq.generation.generator import NoRepeatNgrams, OFASequenceGenerator

VOCABULARY, BOS, PAD, EOS = 14, 0, 1, 2


@pytest.fixture(scope="module")
def model() -> Any:
    return small_model(VOCABULARY)


def batch(rows: int = 3) -> dict[str, Any]:
    source = random_tokens(1, rows, 6, VOCABULARY)
    return {
        "net_input": {
            "src_tokens": source,
            "src_lengths": source.ne(PAD).sum(1),
            "patch_images": normal_images(2, (rows, 3, 32, 32)),
            "patch_masks": torch.ones(rows, dtype=torch.bool),
        }
    }


def generator_of(model: Any, **options: Any) -> OFASequenceGenerator:
    return OFASequenceGenerator([model], model.encoder.dictionary, **options)


def one_row(sample: dict[str, Any], i: int) -> dict[str, Any]:
    return {"net_input": {key: value[i : i + 1] for key, value in sample["net_input"].items()}}


@given(
    rows=st.lists(st.lists(st.integers(4, 7), min_size=8, max_size=8), min_size=1, max_size=3),
    n=st.integers(1, 4),
    step=st.integers(0, 7),
)
def test_repeated_ngrams_are_banned(rows: list[list[int]], n: int, step: int) -> None:
    tokens = torch.tensor(rows)
    lprobs = NoRepeatNgrams(n)(tokens, torch.zeros(len(rows), 10), len(rows), 1, step)
    for row, banned in zip(rows, lprobs.isneginf()):
        seen = row[: step + 1]
        ngrams = {tuple(seen[i : i + n]) for i in range(len(seen) - n + 1)}
        latest = tuple(seen[len(seen) - n + 1 :]) if n > 1 else ()
        expected = {t for t in range(10) if len(seen) >= n and (*latest, t) in ngrams}
        assert set(banned.nonzero().flatten().tolist()) == expected


@torch.no_grad()
def test_constrained_beam_search_equals_enumeration(model: Any) -> None:
    """Every answer of a small set is scored alone; a wide beam finds them all in the right order."""
    answers = [list(a) for n in (1, 2, 3) for a in itertools.product((5, 6, 7), repeat=n)][:25]
    trie = AnswerTrie(answers, EOS, VOCABULARY)
    sample = batch(2)
    generator = generator_of(model, beam_size=13, answer_space=trie, normalize_scores=False)
    found = generator.generate([model], sample)
    for i in range(2):
        encoder_out = model.encoder(**one_row(sample, i)["net_input"])
        scores = {}
        for answer in answers:
            target = torch.tensor([*answer, EOS])
            logits = model.decoder(torch.tensor([[BOS, *answer]]), encoder_out=encoder_out)[0][0]
            allowed = trie.target_masks(target[None], torch.ones(1, len(target), dtype=torch.bool))
            log_probs = logits.masked_fill(~allowed, -math.inf).log_softmax(-1)
            scores[(*answer, EOS)] = float(log_probs.gather(1, target[:, None]).sum())
        best = sorted(scores, key=scores.__getitem__, reverse=True)[:5]
        assert [tuple(h["tokens"].tolist()) for h in found[i][:5]] == best
        assert [float(h["score"]) for h in found[i][:5]] == pytest.approx([scores[b] for b in best], abs=1e-4)


@torch.no_grad()
def test_greedy_equals_repeated_full_passes(model: Any) -> None:
    """Fast decoding finds what recomputing everything finds."""
    sample = batch(3)
    hypotheses = generator_of(model, beam_size=1, max_len_b=40, min_len=40).generate([model], sample)
    encoder_out = model.encoder(**sample["net_input"])
    tokens = torch.full((3, 1), BOS)
    for _ in range(40):
        logits = model.decoder(tokens, encoder_out=encoder_out)[0][:, -1]
        logits[:, [PAD, EOS]] = -math.inf
        tokens = torch.cat([tokens, logits.argmax(-1, keepdim=True)], dim=1)
    assert [h[0]["tokens"][:-1].tolist() for h in hypotheses] == tokens[:, 1:].tolist()


@pytest.mark.parametrize(("topk", "topp"), [(-1, -1.0), (3, -1.0), (-1, 0.8)])
def test_samples_stay_in_their_range(model: Any, topk: int, topp: float) -> None:
    strategy = search.Sampling(model.encoder.dictionary, topk, topp)
    generator = generator_of(
        model, beam_size=4, max_len_b=12, search_strategy=strategy, answer_space=TokenRange(6, 9, VOCABULARY)
    )
    for row in generator.generate([model], batch()):
        assert len(row) == 4
        for hypothesis in row:
            assert set(hypothesis["tokens"].tolist()) <= {0, 2, 3, 6, 7, 8}
            assert hypothesis["tokens"][-1] == EOS


def test_codes_come_in_exactly_the_number_asked_for(model: Any) -> None:
    strategy = search.Sampling(model.encoder.dictionary)
    generator = generator_of(
        model,
        beam_size=3,
        min_len=17,
        max_len_b=17,
        gen_code=True,
        search_strategy=strategy,
        answer_space=TokenRange(6, 14, VOCABULARY),
    )
    for row in generator.generate([model], batch()):
        for hypothesis in row:
            assert len(hypothesis["tokens"]) == 18
            assert hypothesis["tokens"][:-1].min() >= 6


def test_a_row_gets_the_same_alone_and_in_a_batch(model: Any) -> None:
    sample = batch(3)
    generator = generator_of(model, beam_size=3, max_len_b=9)
    together = generator.generate([model], sample)
    for i, hypotheses in enumerate(together):
        alone = generator.generate([model], one_row(sample, i))[0]
        assert [h["tokens"].tolist() for h in alone] == [h["tokens"].tolist() for h in hypotheses]


def test_a_picture_is_encoded_once_and_its_keys_computed_once(model: Any) -> None:
    rows: list[int] = []
    keys: list[int] = []
    hooks = [
        model.encoder.embed_images.register_forward_hook(lambda *args: rows.append(len(args[1][0]))),
        model.decoder.layers[0].encoder_attn.k_proj.register_forward_hook(
            lambda *args: keys.append(len(args[1][0]))
        ),
    ]
    try:
        generator_of(model, beam_size=5, max_len_b=8, min_len=8).generate([model], batch(3))
    finally:
        for hook in hooks:
            hook.remove()
    assert rows == [3]
    assert keys == [3]  # three pictures, not fifteen hypotheses, and not in every step


def test_two_equal_models_are_one(model: Any) -> None:
    sample = batch(2)
    one = generator_of(model, beam_size=3, max_len_b=6).generate([model], sample)
    two = OFASequenceGenerator([model, model], model.encoder.dictionary, beam_size=3, max_len_b=6).generate(
        [model, model], sample
    )
    for a, b in zip(one, two):
        assert [h["tokens"].tolist() for h in a] == [h["tokens"].tolist() for h in b]
        assert [float(h["score"]) for h in a] == pytest.approx([float(h["score"]) for h in b], abs=1e-5)


def test_an_impossible_length_is_an_error(model: Any) -> None:
    with pytest.raises(ValueError, match="--min-len 9"):
        generator_of(model, min_len=9, max_len_b=5).generate([model], batch())
