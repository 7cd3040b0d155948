"""The generator on small vocabularies against enumeration, and how often it runs what is expensive."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from fairseq import search
from hypothesis import given
from hypothesis import strategies as st
from model_builders import normal_images, random_tokens, small_model
from torch import Tensor

from ofa_fairseq.generation.answer_space import AnswerSpace, AnswerTrie, TokenRange
from ofa_fairseq.generation.generator import NoRepeatNgrams, OFASequenceGenerator, diverse_beam_search
from ofa_fairseq.models.attention import MultiheadAttention
from ofa_fairseq.models.layers import LayerCache
from ofa_fairseq.models.ofa import OFAModel

BOS, PAD, EOS = 0, 1, 2
VOCABULARY = 40
ANSWERS = [[5], [5, 6], [7, 8, 9], [8, 8], [12]]


@pytest.fixture(scope="module")
def model() -> Any:
    """A model that ends often enough for sentences to leave at different steps."""
    model = small_model(VOCABULARY)
    with torch.no_grad():
        model.encoder.embed_tokens.weight[EOS] = 0.8 * model.encoder.embed_tokens.weight[BOS]
    return model


def batch(rows: int = 3, pictures: bool = True) -> dict[str, Any]:
    source = random_tokens(1, rows, 6)
    source[-1, 4:] = PAD
    inputs: dict[str, Any] = {"src_tokens": source, "src_lengths": source.ne(PAD).sum(dim=1)}
    if pictures:
        inputs["patch_images"] = normal_images(2, (rows, 3, 32, 48))
        inputs["patch_masks"] = torch.arange(rows) != 1
    return {"net_input": inputs}


def row_of(sample: dict[str, Any], row: int) -> dict[str, Any]:
    """One row of the batch, without its padding."""
    inputs = {key: value[row : row + 1] for key, value in sample["net_input"].items()}
    inputs["src_tokens"] = inputs["src_tokens"][:, : inputs["src_lengths"].item()]
    return {"net_input": inputs}


def generate(
    models: OFAModel | Sequence[OFAModel],
    sample: dict[str, Any],
    prefix_tokens: Tensor | None = None,
    **options: Any,
) -> list[list[tuple[list[int], float]]]:
    """Tokens and scores of each row's hypotheses, best first."""
    models = [models] if isinstance(models, OFAModel) else list(models)
    generator = OFASequenceGenerator(models, models[0].decoder.dictionary, **options)
    found = generator.generate(models, sample, prefix_tokens=prefix_tokens)
    return [[(h["tokens"].tolist(), float(h["score"])) for h in row] for row in found]


def assert_same(
    found: list[tuple[list[int], float]], expected: list[tuple[list[int], float]], tolerance: float = 1e-4
) -> None:
    assert [tokens for tokens, _ in found] == [tokens for tokens, _ in expected]
    assert [score for _, score in found] == pytest.approx([score for _, score in expected], abs=tolerance)


def score(
    models: Sequence[OFAModel],
    sample: dict[str, Any],
    tokens: list[int],
    space: AnswerSpace | None,
    prompt: int = 0,
    zero_shot: bool = False,
) -> float:
    """Sum of the tokens' log-probabilities, teacher-forced; the first `prompt` tokens are forced and free."""
    previous = torch.tensor([[BOS, *tokens[:-1]]])
    probabilities = []
    for model in models:
        with torch.no_grad():
            logits = model(prev_output_tokens=previous, **sample["net_input"])[0][0]
        if space is not None:
            for i in range(len(tokens)):
                lengths = torch.tensor([0 if zero_shot else prompt])
                allowed = space.next_tokens(previous[:, : i + 1], lengths)[0]
                if zero_shot:  # masked without sharing out what the others had
                    logits[i] = logits[i].log_softmax(dim=-1)
                logits[i] = logits[i].masked_fill(~allowed, -math.inf)
        probabilities.append(logits if zero_shot else logits.log_softmax(dim=-1))
    log_probs = torch.logsumexp(torch.stack(probabilities), dim=0) - math.log(len(models))
    return sum(float(log_probs[i, token]) for i, token in enumerate(tokens))


# -- n-grams -------------------------------------------------------------------------------------------


@given(
    st.integers(1, 4),
    st.integers(1, 9).flatmap(
        lambda length: st.lists(
            st.lists(st.integers(4, 6), min_size=length, max_size=length), min_size=1, max_size=3
        )
    ),
)
def test_banned_tokens_would_repeat_an_ngram(n: int, hypotheses: list[list[int]]) -> None:
    rows, length = len(hypotheses), len(hypotheses[0])
    tokens = torch.full((rows, length + 6), PAD)  # fairseq's buffer is longer than what is written
    tokens[:, 0] = BOS
    tokens[:, 1 : length + 1] = torch.tensor(hypotheses)
    before = torch.randn(rows, 8)
    after = NoRepeatNgrams(n)(tokens, before.clone(), rows, 1, length)
    for row, hypothesis in enumerate(hypotheses):
        written = [BOS, *hypothesis]
        seen = {tuple(written[i : i + n]) for i in range(len(written) - n + 1)}
        for token in range(8):
            banned = tuple([*written, token][-n:]) in seen
            assert after[row, token] == (-math.inf if banned else before[row, token])


@pytest.mark.parametrize("n", [1, 2, 3])
def test_generated_ngrams_do_not_repeat(model: Any, n: int) -> None:
    space = TokenRange(4, 8, VOCABULARY)
    options: dict[str, Any] = {"beam_size": 4, "max_len_b": 12, "answer_space": space}
    for row in generate(model, batch(), no_repeat_ngram_size=n, **options):
        for tokens, _ in row:
            ngrams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
            assert len(set(ngrams)) == len(ngrams)


def test_what_is_forced_is_never_banned(model: Any) -> None:
    """A prompt may repeat itself: labels of objects often do."""
    prompts = torch.tensor([[20, 20, 20, 20, 21], [20, 21, 22, 23, 24], [20, 21, 20, 21, PAD]])
    options: dict[str, Any] = {"beam_size": 2, "answer_space": AnswerTrie(ANSWERS, EOS, VOCABULARY)}
    plain = generate(model, batch(), prefix_tokens=prompts, **options)
    for a, b in zip(
        generate(model, batch(), prefix_tokens=prompts, no_repeat_ngram_size=2, **options), plain, strict=True
    ):
        assert_same(a, b)


# -- beam search ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("zero_shot", [False, True])
def test_a_wide_beam_ranks_all_answers(model: Any, normalize: bool, zero_shot: bool) -> None:
    space, sample = AnswerTrie(ANSWERS, EOS, VOCABULARY), batch()
    found = generate(
        model,
        sample,
        beam_size=len(ANSWERS),
        answer_space=space,
        normalize_scores=normalize,
        zero_shot=zero_shot,
    )
    for row in range(3):
        expected = []
        for answer in ANSWERS:
            tokens = [*answer, EOS]
            total = score([model], row_of(sample, row), tokens, space, zero_shot=zero_shot)
            expected.append((tokens, total / len(tokens) if normalize else total))
        assert_same(found[row], sorted(expected, key=lambda pair: -pair[1]))


@pytest.mark.parametrize("len_penalty", [0.0, 1.0, 2.0])
def test_a_wide_beam_over_a_range_equals_enumeration(model: Any, len_penalty: float) -> None:
    """All sequences of one and two words: fewer than the beams."""
    sample, space = batch(1), TokenRange(4, 7, VOCABULARY)
    words = [BOS, 3, 4, 5, 6]  # the range leaves the specials free
    found = generate(model, sample, beam_size=39, answer_space=space, max_len_b=2, len_penalty=len_penalty)[0]
    expected = []
    for n in (1, 2):
        for choice in itertools.product(words, repeat=n):
            tokens = [*choice, EOS]
            expected.append((tokens, score([model], sample, tokens, space) / len(tokens) ** len_penalty))
    assert_same(found, sorted(expected, key=lambda pair: -pair[1]))


def test_fewer_answers_than_beams(model: Any) -> None:
    sample, space = batch(), AnswerTrie(ANSWERS, EOS, VOCABULARY)
    enough = generate(model, sample, beam_size=5, answer_space=space, max_len_b=8)
    wider = generate(model, sample, beam_size=9, answer_space=space, max_len_b=8)
    for a, b in zip(enough, wider, strict=True):
        assert_same(b, a)


@pytest.mark.parametrize("beam", [5, 6, 20])
def test_search_stops_when_all_answers_are_found(model: Any, beam: int) -> None:
    steps: list[int] = []
    handle = model.decoder.register_forward_hook(lambda m, inputs, out: steps.append(inputs[0].size(1)))
    generate(model, batch(), beam_size=beam, answer_space=AnswerTrie(ANSWERS, EOS, VOCABULARY))
    handle.remove()
    assert steps == [1, 2, 3, 4]  # the longest answer's tokens and its end


def test_forced_prompts_of_different_lengths(model: Any) -> None:
    sample, space = batch(), AnswerTrie(ANSWERS, EOS, VOCABULARY)
    prompts = torch.tensor([[20, 21, 22], [23, PAD, PAD], [24, 25, PAD]])
    found = generate(
        model,
        sample,
        prefix_tokens=prompts,
        beam_size=len(ANSWERS),
        answer_space=space,
        normalize_scores=False,
    )
    for row in range(3):
        prompt = prompts[row][prompts[row].ne(PAD)].tolist()
        expected = []
        for answer in ANSWERS:
            tokens = [*prompt, *answer, EOS]
            expected.append((tokens, score([model], row_of(sample, row), tokens, space, len(prompt))))
        assert_same(found[row], sorted(expected, key=lambda pair: -pair[1]))


@pytest.mark.parametrize("pictures", [True, False])
def test_a_batch_gives_what_its_rows_give_alone(model: Any, pictures: bool) -> None:
    sample = batch(4, pictures)
    options: dict[str, Any] = {"beam_size": 4, "max_len_b": 12, "answer_space": TokenRange(4, 30, VOCABULARY)}
    together = generate(model, sample, **options)
    assert len({len(tokens) for row in together for tokens, _ in row}) > 1  # beams end at different steps
    for row in range(4):
        assert_same(together[row], generate(model, row_of(sample, row), **options)[0])


PROMPTS = torch.tensor([[20, 21, 22, 23], [24, PAD, PAD, PAD], [25, 26, 27, PAD], [PAD, PAD, PAD, PAD]])


@pytest.mark.parametrize("beam", [1, 4])
def test_sentences_with_prompts_leave_at_different_steps(model: Any, beam: int) -> None:
    sample = batch(4)
    options: dict[str, Any] = {"beam_size": beam, "answer_space": AnswerTrie(ANSWERS, EOS, VOCABULARY)}
    together = generate(model, sample, prefix_tokens=PROMPTS, **options)
    assert len({max(len(tokens) for tokens, _ in row) for row in together}) > 1
    for row, length in enumerate(PROMPTS.ne(PAD).sum(dim=1).tolist()):
        prompt = PROMPTS[row : row + 1, :length] if length else None
        assert_same(together[row], generate(model, row_of(sample, row), prefix_tokens=prompt, **options)[0])


def random_answers(seed: int) -> list[list[int]]:
    """Seven answers over four words: many begin alike, and some are the beginning of others."""
    generator = torch.Generator().manual_seed(seed)
    answers: set[tuple[int, ...]] = set()
    while len(answers) < 7:
        length = int(torch.randint(1, 5, (), generator=generator))
        answers.add(tuple(torch.randint(5, 9, (length,), generator=generator).tolist()))
    return [list(answer) for answer in sorted(answers)]


@pytest.mark.parametrize("seed", range(4))
def test_any_answers_are_ranked_as_by_enumeration(model: Any, seed: int) -> None:
    answers, sample, prompts = random_answers(seed), batch(), PROMPTS[1:]
    space = AnswerTrie(answers, EOS, VOCABULARY)
    found = generate(
        model,
        sample,
        prefix_tokens=prompts,
        beam_size=len(answers) + 2,
        answer_space=space,
        normalize_scores=False,
    )
    for row, hypotheses in enumerate(found):
        prompt = prompts[row][prompts[row].ne(PAD)].tolist()
        expected = []
        for answer in answers:
            tokens = [*prompt, *answer, EOS]
            expected.append((tokens, score([model], row_of(sample, row), tokens, space, len(prompt))))
        assert_same(hypotheses, sorted(expected, key=lambda pair: -pair[1]))


@pytest.mark.parametrize("with_prompts", [False, True])
def test_a_wide_beam_ranks_all_boxes(model: Any, with_prompts: bool) -> None:
    """A range of fixed length: here three tokens out of three, 27 in all."""
    sample, space = batch(), TokenRange(10, 13, VOCABULARY, length=3, eos=EOS)
    prompts = PROMPTS[1:] if with_prompts else None
    found = generate(
        model, sample, prefix_tokens=prompts, beam_size=27, answer_space=space, normalize_scores=False
    )
    for row, hypotheses in enumerate(found):
        prompt = prompts[row][prompts[row].ne(PAD)].tolist() if prompts is not None else []
        expected = []
        for choice in itertools.product(range(10, 13), repeat=3):
            tokens = [*prompt, *choice, EOS]
            expected.append((tokens, score([model], row_of(sample, row), tokens, space, len(prompt))))
        assert_same(hypotheses, sorted(expected, key=lambda pair: -pair[1]))


@pytest.mark.parametrize("beam", [1, 3])
@pytest.mark.parametrize("sampled", [False, True])
@pytest.mark.parametrize("with_prompts", [False, True])
def test_boxes_are_four_bins_and_the_end(model: Any, beam: int, sampled: bool, with_prompts: bool) -> None:
    torch.manual_seed(0)
    other = small_model(VOCABULARY, prefix="other.")
    strategy = search.Sampling(model.decoder.dictionary) if sampled else None
    prompts = PROMPTS if with_prompts else None
    found = generate(
        [model, other],
        batch(4),
        prefix_tokens=prompts,
        beam_size=beam,
        answer_space=TokenRange(20, 30, VOCABULARY, length=4, eos=EOS),
        search_strategy=strategy,
    )
    for row, hypotheses in enumerate(found):
        prompt = prompts[row][prompts[row].ne(PAD)].tolist() if prompts is not None else []
        assert len(hypotheses) == beam
        for tokens, _ in hypotheses:
            assert tokens[: len(prompt)] == prompt
            *bins, last = tokens[len(prompt) :]
            assert len(bins) == 4
            assert all(20 <= token < 30 for token in bins)
            assert last == EOS


def test_ends_inside_a_prompt_end_nothing(model: Any) -> None:
    """The prompt of type `src` is the whole source, with its end."""
    sample, space = batch(), AnswerTrie(ANSWERS, EOS, VOCABULARY)
    prompts = torch.tensor([[20, 21, EOS], [23, EOS, PAD], [EOS, 24, EOS]])
    generator = OFASequenceGenerator(
        [model], model.decoder.dictionary, beam_size=len(ANSWERS), answer_space=space
    )
    unending = generator.unending(prompts)
    assert EOS not in unending
    for row, hypotheses in enumerate(generator.generate([model], sample, prefix_tokens=unending)):
        prompt = prompts[row][prompts[row].ne(PAD)].tolist()
        expected = []
        for answer in ANSWERS:
            tokens = [*prompt, *answer, EOS]
            total = score([model], row_of(sample, row), tokens, space, len(prompt))
            expected.append(([*answer, EOS], total / len(tokens)))
        found = [(h["tokens"].tolist()[len(prompt) :], float(h["score"])) for h in hypotheses]
        assert_same(found, sorted(expected, key=lambda pair: -pair[1]))


@pytest.mark.parametrize("length", [3, 4])
def test_a_prompt_that_fills_the_output_makes_it_longer(
    model: Any, length: int, caplog: pytest.LogCaptureFixture
) -> None:
    prompts = torch.full((3, length), 20)
    expected = generate(model, batch(), prefix_tokens=prompts, max_len_b=2 * length)
    assert not caplog.records
    found = generate(model, batch(), prefix_tokens=prompts, max_len_b=length)
    assert f"a forced prompt of {length} tokens leaves no room in outputs of at most {length}" in caplog.text
    assert found == expected


def test_options_hold_again_after_a_prompt_that_fills_the_output(model: Any) -> None:
    generator = OFASequenceGenerator([model], model.decoder.dictionary, beam_size=2, max_len_b=4)
    for tokens, longest in ((torch.full((3, 6), 20), 10), (None, 4), (torch.full((3, 2), 20), 4)):
        rows = generator.generate([model], batch(), prefix_tokens=tokens)
        assert max(len(h["tokens"]) for hypotheses in rows for h in hypotheses) <= longest + 1


def test_a_prompt_longer_than_the_positions_is_an_error(model: Any) -> None:
    prompts = torch.full((3, model.decoder.max_positions()), 20)
    with pytest.raises(ValueError, match=f"{prompts.size(1)} of them a forced prompt"):
        generate(model, batch(), prefix_tokens=prompts, max_len_b=5)


@pytest.mark.parametrize(("normalize", "len_penalty"), [(True, 1.0), (True, 0.5), (False, 1.0)])
def test_without_its_prompt_a_hypothesis_scores_as_the_answer_alone(
    model: Any, normalize: bool, len_penalty: float
) -> None:
    sample, space = batch(4), AnswerTrie(ANSWERS, EOS, VOCABULARY)
    options: dict[str, Any] = {"beam_size": 3, "answer_space": space}
    generator = OFASequenceGenerator(
        [model],
        model.decoder.dictionary,
        normalize_scores=normalize,
        len_penalty=len_penalty,
        **options,
    )
    for row, hypotheses in enumerate(generator.generate([model], sample, prefix_tokens=PROMPTS)):
        prompt = PROMPTS[row][PROMPTS[row].ne(PAD)].tolist()
        for hypothesis in hypotheses:
            generator.remove_prompt(hypothesis, len(prompt))
            tokens = hypothesis["tokens"].tolist()
            assert tokens[:-1] in ANSWERS
            whole = score([model], row_of(sample, row), [*prompt, *tokens], space, len(prompt))
            of_prompt = score([model], row_of(sample, row), prompt, space, len(prompt)) if prompt else 0.0
            expected = whole - of_prompt
            assert float(hypothesis["positional_scores"].sum()) == pytest.approx(expected, abs=1e-4)
            if normalize:
                expected /= len(tokens) ** len_penalty
            assert float(hypothesis["score"]) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("beam", [1, 3])
def test_an_ensemble_averages_probabilities(model: Any, beam: int) -> None:
    other, sample = small_model(VOCABULARY, prefix="other."), batch()
    space = AnswerTrie(ANSWERS, EOS, VOCABULARY)
    for row, hypotheses in enumerate(
        generate([model, other], sample, beam_size=beam, answer_space=space, normalize_scores=False)
    ):
        assert len(hypotheses) == beam
        for tokens, value in hypotheses:
            expected = score([model, other], row_of(sample, row), tokens, space)
            assert value == pytest.approx(expected, abs=1e-4)


def test_an_ensemble_of_one_model_twice_is_that_model(model: Any) -> None:
    options: dict[str, Any] = {"beam_size": 3, "max_len_b": 8}
    for a, b in zip(
        generate([model, model], batch(), **options), generate(model, batch(), **options), strict=True
    ):
        assert_same(a, b)


def test_diverse_beams_differ_from_the_start(model: Any) -> None:
    strategy = diverse_beam_search(model.decoder.dictionary, groups=3, strength=100.0)
    for row in generate(model, batch(), beam_size=3, max_len_b=6, min_len=2, search_strategy=strategy):
        assert len({tokens[0] for tokens, _ in row}) == 3


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_temperature_divides_the_logits(model: Any, temperature: float) -> None:
    sample, space = batch(1), TokenRange(4, 30, VOCABULARY)
    generator = OFASequenceGenerator(
        [model],
        model.decoder.dictionary,
        answer_space=space,
        temperature=temperature,
        max_len_b=1,
    )
    best = generator.generate([model], sample)[0][0]
    previous = torch.tensor([[BOS]])
    with torch.no_grad():
        logits = model(prev_output_tokens=previous, **sample["net_input"])[0][0, 0]
    logits = logits.masked_fill(~space.next_tokens(previous)[0], -math.inf) / temperature
    expected = logits.log_softmax(dim=-1)[best["tokens"][0]]
    assert float(best["positional_scores"][0]) == pytest.approx(float(expected), abs=1e-4)


# -- sampling ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beam", [1, 3])
@pytest.mark.parametrize("sampling", [{"sampling_topk": 5}, {"sampling_topp": 0.9}, {}], ids=str)
def test_samples_stay_within_a_range(model: Any, sampling: dict[str, Any], beam: int) -> None:
    torch.manual_seed(0)
    strategy = search.Sampling(model.decoder.dictionary, **sampling)
    space = TokenRange(10, 20, VOCABULARY)
    seen = set()
    for _ in range(5):
        for row in generate(
            model, batch(), beam_size=beam, answer_space=space, search_strategy=strategy, max_len_b=10
        ):
            seen |= {token for tokens, _ in row for token in tokens}
    assert seen <= {BOS, EOS, 3, *range(10, 20)}
    assert len(seen) > 4


@pytest.mark.parametrize("beam", [1, 4])
def test_samples_are_answers(model: Any, beam: int) -> None:
    torch.manual_seed(0)
    strategy = search.Sampling(model.decoder.dictionary)
    space = AnswerTrie(ANSWERS, EOS, VOCABULARY)
    seen = set()
    for _ in range(10):
        for row in generate(model, batch(), beam_size=beam, answer_space=space, search_strategy=strategy):
            assert len(row) == beam
            seen |= {tuple(tokens[:-1]) for tokens, _ in row}
    assert seen <= {tuple(answer) for answer in ANSWERS}
    assert len(seen) > 1


# -- image codes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampled", [False, True])
def test_codes_have_the_exact_length_of_their_picture(model: Any, sampled: bool) -> None:
    torch.manual_seed(0)
    strategy = search.Sampling(model.decoder.dictionary, sampling_topk=5) if sampled else None
    for row in generate(
        model,
        batch(pictures=False),
        beam_size=3,
        gen_code=True,
        min_len=16,
        max_len_b=16,
        answer_space=TokenRange(10, 30, VOCABULARY),
        search_strategy=strategy,
    ):
        assert len(row) == 3
        for tokens, _ in row:
            assert len(tokens) == 17
            assert tokens[-1] == EOS
            assert all(10 <= token < 30 for token in tokens[:-1])


def test_codes_are_decoded_as_codes(model: Any) -> None:
    sample, n = batch(1, pictures=False), 4
    options: dict[str, Any] = {"min_len": n, "max_len_b": n, "answer_space": TokenRange(10, 30, VOCABULARY)}
    tokens, value = generate(model, sample, gen_code=True, **options)[0][0]
    previous = torch.tensor([[BOS, *tokens[:-1]]])
    allowed = options["answer_space"].next_tokens(previous)
    with torch.no_grad():
        logits, _ = model(
            prev_output_tokens=previous, code_masks=torch.ones(1, dtype=torch.bool), **sample["net_input"]
        )
    log_probs = logits[0].masked_fill(~allowed, -math.inf).log_softmax(dim=-1)
    total = sum(float(log_probs[i, token]) for i, token in enumerate(tokens))
    assert value == pytest.approx(total / (n + 1), abs=1e-4)


# -- lengths -------------------------------------------------------------------------------------------


def test_a_shortest_output_longer_than_the_longest_is_an_error(model: Any) -> None:
    with pytest.raises(ValueError, match="--min-len 9 is longer than the longest output, 8 tokens"):
        generate(model, batch(), min_len=9, max_len_b=8)


@pytest.mark.parametrize(("min_len", "max_len_b"), [(1, 3), (4, 4), (3, 9)])
def test_lengths_are_kept(model: Any, min_len: int, max_len_b: int) -> None:
    for row in generate(model, batch(), beam_size=4, min_len=min_len, max_len_b=max_len_b):
        assert all(min_len <= len(tokens) - 1 <= max_len_b for tokens, _ in row)


def test_length_from_the_source(model: Any) -> None:
    # Six source tokens: at most 0.5 * 6 + 1.
    rows = generate(model, batch(), beam_size=4, max_len_a=0.5, max_len_b=1, min_len=4)
    assert {len(tokens) for row in rows for tokens, _ in row} == {5}


def test_no_text_is_longer_than_its_positions() -> None:
    model = small_model(VOCABULARY, max_target_positions=20)
    for row in generate(model, batch(), max_len_b=500, min_len=19):
        assert [len(tokens) for tokens, _ in row] == [20]
    with pytest.raises(ValueError, match="--min-len 20 is longer than the longest output, 19 tokens"):
        generate(model, batch(), max_len_b=500, min_len=20)
    # A picture's codes have their own.
    for row in generate(model, batch(), gen_code=True, max_len_b=30, min_len=30):
        assert [len(tokens) for tokens, _ in row] == [31]


def test_pictures_of_256_pixels_have_1024_codes() -> None:
    model = small_model(VOCABULARY, code_image_size=256, image_bucket_size=32)
    generator = OFASequenceGenerator(
        [model], model.decoder.dictionary, gen_code=True, min_len=1024, max_len_b=1024
    )
    assert generator.max_len - 1 >= 1024


# -- work ----------------------------------------------------------------------------------------------


def count_key_values(monkeypatch: pytest.MonkeyPatch, model: Any) -> list[tuple[int, int]]:
    """(rows, positions) of each projection of an encoder result to keys and values."""
    calls: list[tuple[int, int]] = []
    cross = {id(layer.encoder_attn) for layer in model.decoder.layers}
    original = MultiheadAttention.key_value

    def counting(self: MultiheadAttention, x: Tensor) -> Any:
        if id(self) in cross:
            calls.append((x.size(0), x.size(1)))
        return original(self, x)

    monkeypatch.setattr(MultiheadAttention, "key_value", counting)
    return calls


def test_the_source_is_encoded_and_projected_once(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = count_key_values(monkeypatch, model)
    encoded: list[int] = []
    parts = (model.encoder.embed_images, model.encoder.layer_norm)
    handles = [part.register_forward_hook(lambda m, i, out: encoded.append(len(out))) for part in parts]
    generate(model, batch(), beam_size=5, max_len_b=12)
    for handle in handles:
        handle.remove()
    assert encoded == [3, 3]  # stem and layers, three sentences each
    assert calls == [(3, 6 + 6)] * len(model.decoder.layers)


def test_each_step_computes_the_newest_position_only(model: Any) -> None:
    shapes: list[torch.Size] = []
    handle = model.decoder.output_projection.register_forward_hook(
        lambda m, inputs, out: shapes.append(out.shape)
    )
    generate(model, batch(), beam_size=5, max_len_b=12, min_len=12)
    handle.remove()
    assert shapes == [(15, 1, VOCABULARY)] * 13


def test_one_hypothesis_a_sentence_moves_no_keys_until_sentences_leave(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    moves: list[int] = []
    original = LayerCache.reorder

    def counting(self: LayerCache, new_order: Tensor) -> None:
        moves.append(len(new_order))
        original(self, new_order)

    monkeypatch.setattr(
        LayerCache,
        "reorder",
        counting,
    )
    generate(model, batch(), beam_size=1, max_len_b=12, min_len=12)
    assert moves == []
    space = AnswerTrie(ANSWERS, EOS, VOCABULARY)
    found = generate(model, batch(4), prefix_tokens=PROMPTS, answer_space=space)
    departures = len({len(row[0][0]) for row in found}) - 1
    assert departures > 0
    assert len(moves) == departures * len(model.decoder.layers)


def test_beams_are_no_more_than_tokens(model: Any) -> None:
    small = small_model(12)
    (row,) = generate(
        small, {"net_input": {"src_tokens": torch.tensor([[0, 5, 6, 2]])}}, beam_size=50, max_len_b=3
    )
    assert len(row) == 11
