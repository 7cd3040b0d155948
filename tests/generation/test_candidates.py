"""All-candidate scoring against the original's scores, and against scoring each candidate alone."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_builders import normal_images, random_tokens, small_model
from torch import Tensor

from ofa_fairseq.generation.answer_space import AnswerTrie
from ofa_fairseq.generation.candidates import CandidateScorer, RankedCandidates

BOS, PAD, EOS = 0, 1, 2
VOCABULARY = 40
ANSWERS = [[5], [5, 6], [7, 8, 9], [8, 8], [12], [5, 6, 7, 8]]
PROMPTS = torch.tensor([[20, 21, 22], [23, PAD, PAD], [PAD, PAD, PAD], [24, 25, 26]])


def batch(rows: int = 4, pictures: bool = True) -> dict[str, Any]:
    """Sources of two lengths; the second row has no picture."""
    source = random_tokens(1, rows, 6)
    source[-1, 4:] = PAD
    inputs: dict[str, Any] = {"src_tokens": source, "src_lengths": source.ne(PAD).sum(dim=1)}
    if pictures:
        inputs["patch_images"] = normal_images(2, (rows, 3, 32, 48))
        inputs["patch_masks"] = torch.arange(rows) != 1
    return {
        "net_input": {**inputs, "prev_output_tokens": source}
    }  # what the batch's target would be is unused


def alone(
    models: Sequence[Any],
    sample: dict[str, Any],
    row: int,
    prompt: Sequence[int],
    answer: Sequence[int],
    answers: Sequence[Sequence[int]],
) -> list[float]:
    """Log-probabilities of one answer's tokens and its end, teacher-forced, among what `answers` allows."""
    inputs = {key: value[row : row + 1] for key, value in sample["net_input"].items()}
    inputs["prev_output_tokens"] = torch.tensor([[BOS, *prompt, *answer]])
    with torch.no_grad():
        logits = [model(**inputs)[0][0, len(prompt) :].double() for model in models]
    ends = [[*a, EOS] for a in answers]
    log_probs = []
    for i, token in enumerate([*answer, EOS]):
        allowed = sorted({end[i] for end in ends if len(end) > i and end[:i] == [*answer, EOS][:i]})
        shares = [of_model[i, allowed].softmax(dim=0)[allowed.index(token)] for of_model in logits]
        log_probs.append(math.log(sum(shares) / len(shares)))
    return log_probs


def assert_scores_are_those_of_each_alone(
    models: Sequence[Any],
    sample: dict[str, Any],
    prompts: Tensor | None,
    answers: Sequence[list[int]],
    **options: Any,
) -> None:
    scorer = CandidateScorer(models, models[0].decoder.dictionary, answers, **options)
    total, positional = scorer.score(sample, prompts)
    for row in range(len(total)):
        prompt = [] if prompts is None else prompts[row][prompts[row].ne(PAD)].tolist()
        for i, answer in enumerate(answers):
            expected = alone(models, sample, row, prompt, answer, answers)
            assert positional[row, i, : len(expected)].tolist() == pytest.approx(expected, abs=1e-4)
            assert not positional[row, i, len(expected) :].any()
            assert float(total[row, i]) == pytest.approx(sum(expected), abs=2e-4)
    # Nothing else can be said.
    assert total.exp().sum(dim=1).tolist() == pytest.approx([1.0] * len(total), abs=1e-4)


def test_scores_agree_with_the_original(tiny: Any, reference_dir: Path) -> None:
    reference = json.loads((reference_dir / "generation_tiny.json").read_text())
    source = torch.tensor(reference["src_tokens"])
    inputs = {
        "src_tokens": source,
        "src_lengths": source.ne(PAD).sum(dim=1),
        "patch_images": normal_images(reference["image_seed"], tuple(reference["images"])),
        "patch_masks": torch.ones(len(source), dtype=torch.bool),
    }
    prompts = torch.tensor(reference["prefix_tokens"])
    assert len(set(prompts.ne(PAD).sum(dim=1).tolist())) > 1
    scorer = CandidateScorer([tiny], tiny.decoder.dictionary, reference["answers"], chunk=2)
    scores, _ = scorer.score({"net_input": inputs}, prompts)
    for found, expected in zip(scores.tolist(), reference["all_candidate_scores"], strict=True):
        assert found == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("chunk", [1, 2, 4, 6, 100])
def test_chunks_of_any_size(model: Any, chunk: int) -> None:
    assert_scores_are_those_of_each_alone([model], batch(), PROMPTS, ANSWERS, chunk=chunk)


@pytest.mark.parametrize("pictures", [True, False])
@pytest.mark.parametrize("prompts", [None, PROMPTS, PROMPTS[:, :0], PROMPTS[[0, 0, 0, 0]]], ids=range(4))
def test_with_and_without_prompts_and_pictures(model: Any, pictures: bool, prompts: Tensor | None) -> None:
    assert_scores_are_those_of_each_alone([model], batch(pictures=pictures), prompts, ANSWERS, chunk=4)


def test_an_ensemble_averages_probabilities(model: Any) -> None:
    models = [model, small_model(VOCABULARY, prefix="other.")]
    assert_scores_are_those_of_each_alone(models, batch(), PROMPTS, ANSWERS, chunk=4)


@settings(max_examples=20)
@given(
    st.lists(st.lists(st.integers(4, 7), min_size=1, max_size=4), min_size=1, max_size=9, unique_by=tuple),
    st.lists(st.lists(st.integers(4, 39), max_size=3), min_size=1, max_size=3),
    st.integers(1, 10),
)
def test_any_answers_and_prompts(
    model: Any, answers: list[list[int]], prompts: list[list[int]], chunk: int
) -> None:
    width = max(map(len, prompts))
    padded = torch.tensor([[*p, *[PAD] * (width - len(p))] for p in prompts], dtype=torch.long)
    sample = batch(len(prompts))
    assert_scores_are_those_of_each_alone([model], sample, padded, answers, chunk=chunk)


def test_rows_may_share_a_picture(model: Any) -> None:
    apart, shared = batch(), batch()
    rows = torch.tensor([0, 1, 0, 1])
    shared["net_input"]["patch_images"] = shared["net_input"]["patch_images"][:2]
    shared["net_input"]["patch_rows"] = rows
    apart["net_input"]["patch_images"] = apart["net_input"]["patch_images"][rows]
    scorer = CandidateScorer([model], model.decoder.dictionary, ANSWERS)
    for a, b in zip(scorer.score(apart, PROMPTS), scorer.score(shared, PROMPTS)):
        torch.testing.assert_close(a, b)


# Chunks


def chunks_of(model: Any, rows: int, **options: Any) -> list[int]:
    """How many candidates each pass of the decoder scored, for each row."""
    sizes: list[int] = []
    handle = model.decoder.register_forward_hook(
        lambda module, inputs, result: sizes.append(len(inputs[0]) // rows)
    )
    try:
        CandidateScorer([model], model.decoder.dictionary, ANSWERS, **options).score(batch(rows))
    finally:
        handle.remove()
    return sizes[1:]  # the first pass is the prompt's


def test_chunks_follow_the_memory_asked_for(model: Any) -> None:
    assert chunks_of(model, 4, chunk=4) == [4, 2]
    assert chunks_of(model, 4, chunk=4, memory=100) == [6]
    # A candidate's logits take 4 rows x 5 tokens x 40 entries: three floats of each, 9.4 KiB.
    per_candidate = 3 * 4 * 4 * 5 * VOCABULARY
    scorer = CandidateScorer([model], model.decoder.dictionary, ANSWERS, memory=1)
    assert scorer._chunk_size(4) == 2**20 // per_candidate
    assert scorer._chunk_size(10**6) == 1


def test_memory_changes_no_score(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = CandidateScorer([model], model.decoder.dictionary, ANSWERS)
    expected, _ = scorer.score(batch(), PROMPTS)
    for size in (1, 2, 5):
        monkeypatch.setattr(scorer, "_chunk_size", lambda rows, size=size: size)
        torch.testing.assert_close(scorer.score(batch(), PROMPTS)[0], expected)


def test_the_source_is_encoded_once_and_the_prompt_once(model: Any) -> None:
    encoded: list[int] = []
    computed: list[tuple[int, ...]] = []
    handles = [
        model.encoder.layer_norm.register_forward_hook(lambda m, i, out: encoded.append(len(out))),
        model.decoder.layer_norm.register_forward_hook(lambda m, i, out: computed.append(out.shape[:2])),
    ]
    prompts = PROMPTS[[0, 3, 0, 3]]
    CandidateScorer([model], model.decoder.dictionary, ANSWERS, chunk=3).score(batch(), prompts)
    for handle in handles:
        handle.remove()
    assert encoded == [4]
    # Three prompt tokens after <s>; then the answers alone, sorted by length: 1, 1, 2 and 2, 3, 4 tokens.
    assert computed == [(4, 4), (12, 2), (12, 4)]


# fairseq's interface


def test_hypotheses_stand_in_order(model: Any) -> None:
    scorer = CandidateScorer([model], model.decoder.dictionary, ANSWERS, chunk=4)
    scores, _ = scorer.score(batch(), PROMPTS)
    for row, hypotheses in enumerate(scorer.generate([model], batch(), prefix_tokens=PROMPTS)):
        assert len(hypotheses) == len(ANSWERS)
        found = [float(h["score"]) for h in hypotheses]
        assert found == sorted(found, reverse=True)
        best = max(range(len(ANSWERS)), key=lambda i: float(scores[row, i]))
        assert hypotheses[0]["tokens"].tolist() == [*ANSWERS[best], EOS]
        assert {tuple(h["tokens"].tolist()) for h in hypotheses} == {(*a, EOS) for a in ANSWERS}
        for h in hypotheses:
            assert len(h["positional_scores"]) == len(h["tokens"])
            assert float(h["positional_scores"].sum()) == pytest.approx(float(h["score"]), abs=1e-5)
            assert h["attention"].numel() == h["alignment"].numel() == 0


def test_hypotheses_are_made_when_they_are_asked_for(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    make = RankedCandidates._hypothesis
    monkeypatch.setattr(RankedCandidates, "_hypothesis", lambda row, i: made.append(i) or make(row, i))
    row = CandidateScorer([model], model.decoder.dictionary, ANSWERS).generate([model], batch(), PROMPTS)[0]
    assert len(row) == len(ANSWERS)
    assert made == []
    ranked = [h["tokens"].tolist() for h in row]
    assert sorted(made) == list(range(len(ANSWERS)))
    assert [h["tokens"].tolist() for h in row[:2]] == ranked[:2]
    assert row[-1]["tokens"].tolist() == ranked[-1]
    assert made[len(ANSWERS) :] == [made[0], made[1], made[len(ANSWERS) - 1]]


@pytest.mark.parametrize("answers", [[[5], [6], [7]], [[6], [5], [7]], [[7], [6], [5]]])
def test_of_equals_the_first_in_the_list_wins(answers: list[list[int]]) -> None:
    model = small_model(VOCABULARY)
    with torch.no_grad():
        model.encoder.embed_tokens.weight[6] = model.encoder.embed_tokens.weight[5]
    for hypotheses in CandidateScorer([model], model.decoder.dictionary, answers).generate([], batch()):
        twins = [h["tokens"][0].item() for h in hypotheses if h["tokens"][0] != 7]
        assert twins == [answer[0] for answer in answers if answer != [7]]


def test_beam_search_finds_the_same_order(model: Any) -> None:
    """Sums of log-probabilities over the same set, in two ways."""
    from ofa_fairseq.generation.generator import OFASequenceGenerator

    beams = OFASequenceGenerator(
        [model],
        model.decoder.dictionary,
        beam_size=len(ANSWERS),
        answer_space=AnswerTrie(ANSWERS, EOS, VOCABULARY),
        normalize_scores=False,
    ).generate([model], batch())
    scored = CandidateScorer([model], model.decoder.dictionary, ANSWERS).generate([model], batch())
    for a, b in zip(beams, scored, strict=True):
        assert [h["tokens"].tolist() for h in a] == [h["tokens"].tolist() for h in b]
        assert [float(h["score"]) for h in a] == pytest.approx([float(h["score"]) for h in b], abs=1e-4)


def test_scores_that_are_no_numbers_are_an_error() -> None:
    model = small_model(VOCABULARY)
    with torch.no_grad():
        model.decoder.layer_norm.weight.fill_(math.nan)
    with pytest.raises(RuntimeError, match="not numbers"):
        CandidateScorer([model], model.decoder.dictionary, ANSWERS).score(batch())
