"""Search, prompts, constraints and scores agree with what the original generated, case by case."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from model_builders import RELEASED_VOCABULARY, normal_images, tiny_model
from reference_weights import fill
from torch import Tensor

from ofa_fairseq.generation.answer_space import AnswerSpace, AnswerTrie, TokenRange
from ofa_fairseq.generation.generator import OFASequenceGenerator, diverse_beam_search
from ofa_fairseq.models.ofa import OFAModel

PAD, EOS = 1, 2
TOLERANCE = 1e-3
REFERENCE = json.loads((Path(__file__).parents[1] / "reference" / "generation_tiny.json").read_text())
CASES: dict[str, dict[str, Any]] = REFERENCE["cases"]
SOURCE, PROMPTS = torch.tensor(REFERENCE["src_tokens"]), torch.tensor(REFERENCE["prefix_tokens"])


@pytest.fixture(scope="module")
def second() -> Any:
    """Another model for the ensemble."""
    return fill(tiny_model(), "second.")


@contextmanager
def end_like(model: Any, like: tuple[int, float] | None) -> Iterator[None]:
    """While this lasts, the end's row of the token matrix is a multiple of another token's."""
    matrix = model.encoder.embed_tokens.weight.data
    own = matrix[EOS].clone()
    if like is not None:
        matrix[EOS] = like[1] * matrix[like[0]]
    try:
        yield
    finally:
        matrix[EOS] = own


def net_input(text_only: bool = False) -> dict[str, Tensor]:
    inputs = {"src_tokens": SOURCE, "src_lengths": SOURCE.ne(PAD).sum(dim=1)}
    if not text_only:
        inputs["patch_images"] = normal_images(REFERENCE["image_seed"], tuple(REFERENCE["images"]))
        inputs["patch_masks"] = torch.ones(len(SOURCE), dtype=torch.bool)
    return inputs


def answer_space(case: dict[str, Any]) -> AnswerSpace | None:
    if case["trie"]:
        return AnswerTrie(REFERENCE["answers"], EOS, RELEASED_VOCABULARY)
    if "constraint_range" in case["options"]:
        return TokenRange.parse(case["options"]["constraint_range"], RELEASED_VOCABULARY)
    return None


def build_generator(models: list[OFAModel], case: dict[str, Any]) -> OFASequenceGenerator:
    dictionary = models[0].decoder.dictionary
    options = {key: value for key, value in case["options"].items() if key != "constraint_range"}
    if case["strategy"] is not None:
        name, groups, strength = case["strategy"]
        assert name == "diverse"
        options["search_strategy"] = diverse_beam_search(dictionary, groups, strength)
    return OFASequenceGenerator(models, dictionary, answer_space=answer_space(case), **options)


@pytest.mark.parametrize("name", CASES)
def test_hypotheses_agree_with_the_original(name: str, tiny: Any, request: Any) -> None:
    case = CASES[name]
    models = [tiny, request.getfixturevalue("second")] if case["two_models"] else [tiny]
    with end_like(tiny, case["eos_like"]):
        found = build_generator(models, case).generate(
            models,
            {"net_input": net_input(case["text_only"])},
            prefix_tokens=PROMPTS if case["prefix"] else None,
        )
    for hypotheses, expected in zip(found, case["hypotheses"], strict=True):
        assert [h["tokens"].tolist() for h in hypotheses] == [e["tokens"] for e in expected]
        for hypothesis, e in zip(hypotheses, expected, strict=True):
            assert float(hypothesis["score"]) == pytest.approx(e["score"], abs=TOLERANCE)
            positional = [-torch.inf if score is None else score for score in e["positional_scores"]]
            assert hypothesis["positional_scores"].tolist() == pytest.approx(positional, abs=TOLERANCE)


def test_scores_of_all_candidates(tiny: Any) -> None:
    """Each answer after its row's prompt, teacher-forced, among the tokens that the answer set allows."""
    trie = AnswerTrie(REFERENCE["answers"], EOS, RELEASED_VOCABULARY)
    with torch.no_grad():
        encoder_out = tiny.encoder(**net_input())
    for row, expected in enumerate(REFERENCE["all_candidate_scores"]):
        prompt = PROMPTS[row][PROMPTS[row].ne(PAD)].tolist()
        targets = [[*prompt, *answer, EOS] for answer in REFERENCE["answers"]]
        width = max(len(target) for target in targets)
        target = torch.tensor([[*t, *[PAD] * (width - len(t))] for t in targets])
        previous = torch.cat([torch.zeros(len(target), 1, dtype=torch.long), target[:, :-1]], dim=1)
        previous[previous.eq(EOS)] = PAD
        supervised = target.ne(PAD)
        supervised[:, : len(prompt)] = False

        of_row = tiny.encoder.reorder_encoder_out(encoder_out, torch.tensor([row]))
        with torch.no_grad():  # all answers share the picture's row
            logits, _ = tiny.decoder(previous, encoder_out=of_row)
        allowed = trie.target_masks(target, supervised)
        log_probs = logits[supervised].masked_fill(~allowed, -torch.inf).log_softmax(dim=-1)
        scores = torch.zeros(target.shape)
        scores[supervised] = log_probs.gather(1, target[supervised][:, None]).squeeze(1)
        assert scores.sum(dim=1).tolist() == pytest.approx(expected, abs=TOLERANCE)
