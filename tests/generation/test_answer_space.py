"""Answer sets and ranges against plain Python sets."""

import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ofa_fairseq.generation.answer_space import AnswerTrie, TokenRange

BOS, PAD, EOS = 0, 1, 2
VOCABULARY = 10

tokens = st.integers(4, VOCABULARY - 1)
answer_sets = st.lists(st.lists(tokens, min_size=1, max_size=4), min_size=1, max_size=8)
prompts = st.lists(st.integers(3, VOCABULARY - 1), max_size=3)
# What a hypothesis holds so far: often the beginning of an answer, sometimes past its end, sometimes anything.
continuations = st.lists(st.integers(EOS, VOCABULARY - 1), max_size=6)


def allowed_after(answers: list[list[int]], so_far: list[int]) -> set[int]:
    """What may follow `so_far` (an answer's beginning, without `<s>` and prompt)."""
    paths = [[*answer, EOS] for answer in answers]
    beginnings = [path for path in paths if path[: len(so_far)] == so_far and len(path) > len(so_far)]
    return {path[len(so_far)] for path in beginnings} or {EOS}  # complete, or no answer begins so


def as_set(row: Tensor) -> set[int]:
    return set(row.nonzero().flatten().tolist())


@given(answer_sets, st.lists(st.tuples(prompts, st.data()), min_size=1, max_size=4), st.integers(0, 6))
def test_next_tokens(
    answers: list[list[int]], rows: list[tuple[list[int], st.DataObject]], length: int
) -> None:
    """Rows of one length with prompts of their own lengths, complete or not."""
    trie = AnswerTrie(answers, EOS, VOCABULARY)
    prefixes, lengths, expected = [], [], []
    for prompt, data in rows:
        answer = [*data.draw(st.sampled_from(answers)), EOS]
        cut = data.draw(st.integers(0, len(answer)))
        so_far = (answer[:cut] + data.draw(continuations) + [5] * 6)[: max(length - len(prompt), 0)]
        prefixes.append([BOS, *prompt[:length], *so_far])
        lengths.append(len(prompt))
        everything = set(range(VOCABULARY))
        expected.append(everything if len(prompt) > length else allowed_after(answers, so_far))
    found = trie.next_tokens(torch.tensor(prefixes), torch.tensor(lengths))
    assert [as_set(row) for row in found] == expected


@given(answer_sets)
def test_only_the_answers_can_be_spelled(answers: list[list[int]]) -> None:
    trie = AnswerTrie(answers, EOS, VOCABULARY)
    complete, open_prefixes = set(), [[BOS]]
    while open_prefixes:
        found = trie.next_tokens(torch.tensor(open_prefixes))
        longer: list[list[int]] = []
        for prefix, row in zip(open_prefixes, found, strict=True):
            for token in as_set(row):
                (longer if token != EOS else []).append([*prefix, token])
                if token == EOS:
                    complete.add(tuple(prefix[1:]))
        open_prefixes = longer
    assert complete == {tuple(answer) for answer in answers}


@given(answer_sets, st.lists(st.tuples(prompts, st.integers(0, 7)), min_size=1, max_size=5))
def test_target_masks_are_next_tokens_at_the_supervised_positions(
    answers: list[list[int]], rows: list[tuple[list[int], int]]
) -> None:
    trie = AnswerTrie(answers, EOS, VOCABULARY)
    targets = [[*prompt, *answers[i % len(answers)], EOS] for prompt, i in rows]
    width = max(len(target) for target in targets)
    target = torch.tensor([[*t, *[PAD] * (width - len(t))] for t in targets])
    supervised = target.ne(PAD)
    for row, (prompt, _) in enumerate(rows):
        supervised[row, : len(prompt)] = False

    expected = []
    for row, (prompt, i) in enumerate(rows):
        for n in range(len(answers[i % len(answers)]) + 1):
            prefix = torch.tensor([[BOS, *targets[row][: len(prompt) + n]]])
            expected.append(trie.next_tokens(prefix, torch.tensor([len(prompt)])))
    found = trie.target_masks(target, supervised)
    assert torch.equal(found, torch.cat(expected))
    assert found.gather(1, target[supervised][:, None]).all()  # the target itself is allowed


ANSWERS = [[5], [5, 6], [7, 8, 9]]


@pytest.mark.parametrize(
    ("so_far", "expected"),
    [
        ([], {5, 7}),
        ([5], {6, EOS}),
        ([5, 6], {EOS}),
        ([7], {8}),
        ([5, EOS], {EOS}),  # complete
        ([6], {EOS}),  # no answer begins so
        ([5, 7], {EOS}),
        ([7, 8, 8, 9], {EOS}),
        ([5, EOS, 5], {EOS}),
        ([PAD], {EOS}),
    ],
    ids=str,
)
def test_examples(so_far: list[int], expected: set[int]) -> None:
    trie = AnswerTrie(ANSWERS, EOS, VOCABULARY)
    assert as_set(trie.next_tokens(torch.tensor([[BOS, *so_far]]))[0]) == expected


def test_an_unfinished_prompt_allows_everything() -> None:
    trie = AnswerTrie(ANSWERS, EOS, VOCABULARY)
    prefix = torch.tensor([[BOS, 9], [BOS, 9], [BOS, 5]])
    found = trie.next_tokens(prefix, torch.tensor([2, 1, 0]))
    assert [as_set(row) for row in found] == [set(range(VOCABULARY)), {5, 7}, {6, EOS}]


def test_the_same_answer_twice_is_once() -> None:
    twice, once = AnswerTrie([[5], [5]], EOS, VOCABULARY), AnswerTrie([[5]], EOS, VOCABULARY)
    prefix = torch.tensor([[BOS, 5], [BOS, 6]])
    assert torch.equal(twice.next_tokens(prefix), once.next_tokens(prefix))


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ([], "an answer set needs at least one answer"),
        ([[5], []], "answer 1 of the answer set has no tokens"),
    ],
)
def test_answer_sets_without_tokens_are_errors(answers: list[list[int]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AnswerTrie(answers, EOS, VOCABULARY)


def test_released_numbers_of_answers_are_quick() -> None:
    """VQA has 3,129 answers, of one to a few pieces each, in a vocabulary of 59,457."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 6, (3129,), generator=generator).tolist()
    answers = [torch.randint(4, 50264, (n,), generator=generator).tolist() for n in lengths]
    start = time.perf_counter()
    trie = AnswerTrie(answers, EOS, 59457)
    prefixes = torch.tensor([[BOS, answer[0]] for answer in answers[:64]])
    found = trie.next_tokens(prefixes)
    assert time.perf_counter() - start < 2
    for row, answer in zip(found, answers[:64], strict=True):
        assert row[answer[1] if len(answer) > 1 else EOS]
    assert trie.next_tokens(torch.tensor([[BOS]])).sum() == len({answer[0] for answer in answers})


# -- ranges ----------------------------------------------------------------------------------------------


@given(st.integers(4, 8), st.integers(1, 8))
def test_a_range_and_the_specials(start: int, size: int) -> None:
    end = min(start + size, VOCABULARY)
    found = TokenRange(start, end, VOCABULARY).next_tokens(torch.tensor([[BOS, 5], [BOS, 6]]))
    assert found.shape == (1, VOCABULARY)
    assert as_set(found[0]) == {0, 1, 2, 3, *range(start, end)}


def test_target_masks_of_a_range() -> None:
    target = torch.tensor([[5, 6, EOS], [7, EOS, PAD]])
    space = TokenRange(5, 8, VOCABULARY)
    found = space.target_masks(target, target.ne(PAD))
    assert torch.equal(found, space.next_tokens(target).expand(5, -1))


def test_parsing_a_range() -> None:
    space = TokenRange.parse("58457,59457", 59457)
    assert (space.start, space.end) == (58457, 59457)


@pytest.mark.parametrize("text", ["5", "5,6,7", "a,b", "", "5;6"])
def test_text_that_is_no_range_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match="expected two token ids, 'start,end'"):
        TokenRange.parse(text, VOCABULARY)


@pytest.mark.parametrize("text", ["3,6", "6,6", "7,5", "5,11", "-1,5"])
def test_ranges_outside_the_vocabulary_are_errors(text: str) -> None:
    with pytest.raises(ValueError, match="expected 4 <= start < end <= 10|this vocabulary has 10 tokens"):
        TokenRange.parse(text, VOCABULARY)


# -- ranges of a fixed length ----------------------------------------------------------------------------


def allowed_of_length(length: int, made: int) -> set[int]:
    """What may follow `made` tokens of an answer of `length` tokens from 5 to 7; below 0: a prompt is not complete."""
    if made < 0:
        return set(range(VOCABULARY))
    return {5, 6, 7} if made < length else {EOS}


@given(st.integers(1, 5), st.lists(st.integers(0, 4), min_size=1, max_size=4), st.integers(0, 8))
def test_a_range_of_fixed_length(length: int, prompt_lengths: list[int], made: int) -> None:
    """With prompts of their own lengths, complete or not; also past the end."""
    space = TokenRange(5, 8, VOCABULARY, length, EOS)
    prefix = torch.full((len(prompt_lengths), 1 + made), 6)
    found = space.next_tokens(prefix, torch.tensor(prompt_lengths))
    assert [as_set(row) for row in found] == [allowed_of_length(length, made - n) for n in prompt_lengths]
    (same,) = space.next_tokens(prefix)
    assert as_set(same) == allowed_of_length(length, made)


@given(st.integers(1, 4), st.lists(st.integers(0, 3), min_size=1, max_size=4), st.integers(0, 3))
def test_target_masks_of_a_range_of_fixed_length(length: int, prompts: list[int], cut: int) -> None:
    """Against a loop; one target may be shorter than the length."""
    space = TokenRange(5, 8, VOCABULARY, length, EOS)
    answers = [length] * (len(prompts) - 1) + [max(length - cut, 0)]
    width = max(n + answer for n, answer in zip(prompts, answers)) + 1
    target = torch.full((len(prompts), width), PAD)
    expected = []
    for row, (prompt, answer) in enumerate(zip(prompts, answers)):
        target[row, prompt : prompt + answer] = 6
        target[row, prompt + answer] = EOS
        expected += [allowed_of_length(length, i) for i in range(answer + 1)]
    found = space.target_masks(target, target.ne(PAD))
    assert [as_set(row) for row in found] == expected


def test_a_batch_that_nothing_is_learnt_from_has_no_masks() -> None:
    target = torch.full((2, 3), PAD)
    for space in (
        TokenRange(5, 8, VOCABULARY, 4, EOS),
        TokenRange(5, 8, VOCABULARY),
        AnswerTrie(ANSWERS, EOS, VOCABULARY),
    ):
        assert space.target_masks(target, target.ne(PAD)).shape == (0, VOCABULARY)
