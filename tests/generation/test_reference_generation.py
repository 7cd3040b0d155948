"""The search agrees with the original's, token by token."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from model_builders import normal_images, tiny_model
from reference_weights import fill

from ofa_fairseq.generation.answer_space import AnswerSpace, AnswerTrie, TokenRange
from ofa_fairseq.generation.generator import OFASequenceGenerator, diverse_beam_search

REFERENCE = json.loads((Path(__file__).parents[1] / "reference" / "generation_tiny.json").read_text())
QUICK = ("box_range", "trie", "trie_prompt", "zero_shot_trie", "codes", "repeats_allowed", "short_ngram")
EOS, VOCABULARY = 2, 59457


@pytest.fixture
def model(tiny: Any) -> Any:
    """The filled model; a case may change its end-of-sequence row, which is put back."""
    matrix = tiny.encoder.embed_tokens.weight
    row = matrix[EOS].detach().clone()
    yield tiny
    with torch.no_grad():
        matrix[EOS] = row


def net_input(text_only: bool) -> dict[str, torch.Tensor]:
    source = torch.tensor(REFERENCE["src_tokens"])
    inputs = {"src_tokens": source, "src_lengths": source.ne(1).sum(1)}
    if not text_only:
        inputs["patch_images"] = normal_images(REFERENCE["image_seed"], REFERENCE["images"])
        inputs["patch_masks"] = torch.ones(len(source), dtype=torch.bool)
    return inputs


def answer_space(case: dict[str, Any]) -> AnswerSpace | None:
    if case["trie"]:
        return AnswerTrie(REFERENCE["answers"], EOS, VOCABULARY)
    constraint_range = case["options"].get("constraint_range")
    return None if constraint_range is None else TokenRange.parse(constraint_range, VOCABULARY)


@pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in REFERENCE["cases"]],
)
def test_hypotheses_equal_the_originals(name: str, model: Any) -> None:
    case = REFERENCE["cases"][name]
    models = [model]
    if case["eos_like"]:
        row, factor = case["eos_like"]
        with torch.no_grad():
            model.encoder.embed_tokens.weight[EOS] = factor * model.encoder.embed_tokens.weight[row]
    if case["two_models"]:
        models.append(fill(tiny_model(), "second."))
    options = {key: value for key, value in case["options"].items() if key != "constraint_range"}
    dictionary = model.encoder.dictionary
    if case["strategy"]:
        _, groups, strength = case["strategy"]
        options["search_strategy"] = diverse_beam_search(dictionary, groups, strength)
    generator = OFASequenceGenerator(
        models, dictionary, answer_space=answer_space(case), **{"max_len_b": 200, **options}
    )
    prompts = torch.tensor(REFERENCE["prefix_tokens"]) if case["prefix"] else None

    rows = generator.generate(models, {"net_input": net_input(case["text_only"])}, prefix_tokens=prompts)

    for hypotheses, expected in zip(rows, case["hypotheses"], strict=True):
        assert [h["tokens"].tolist() for h in hypotheses] == [h["tokens"] for h in expected]
        assert [float(h["score"]) for h in hypotheses] == pytest.approx(
            [h["score"] for h in expected], abs=1e-3
        )
        for hypothesis, wanted in zip(hypotheses, expected):
            scores = [-torch.inf if s is None else s for s in wanted["positional_scores"]]
            assert hypothesis["positional_scores"].tolist() == pytest.approx(scores, abs=1e-3)


def test_candidates_score_as_in_the_original(tiny: Any) -> None:
    """log p(answer, end | picture, prompt), among the tokens that the trie allows."""
    trie = AnswerTrie(REFERENCE["answers"], EOS, VOCABULARY)
    inputs = net_input(text_only=False)
    with torch.no_grad():
        encoder_out = tiny.encoder(**inputs)
        for row, expected in enumerate(REFERENCE["all_candidate_scores"]):
            prompt = [token for token in REFERENCE["prefix_tokens"][row] if token != 1]
            one = tiny.encoder.reorder_encoder_out(encoder_out, torch.tensor([row]))
            for answer, score in zip(REFERENCE["answers"][:4], expected):
                target = torch.tensor([[*answer, EOS]])
                logits = tiny.decoder(torch.tensor([[0, *prompt, *answer]]), encoder_out=one)[0]
                logits = logits[0, len(prompt) :]
                allowed = trie.target_masks(target, torch.ones_like(target, dtype=torch.bool))
                log_probs = logits.masked_fill(~allowed, -torch.inf).log_softmax(-1)
                total = log_probs.gather(1, target[0][:, None]).sum()
                assert float(total) == pytest.approx(score, abs=1e-3)
