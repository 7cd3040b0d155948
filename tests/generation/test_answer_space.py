"""Allowed tokens against sets of answers searched by brute force."""

import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ofa_fairseq.generation.answer_space import AnswerTrie, TokenRange

BOS, PAD, EOS, VOCABULARY = 0, 1, 2, 12
TOKENS = st.integers(4, VOCABULARY - 1)
ANSWERS = st.lists(st.lists(TOKENS, min_size=1, max_size=4), min_size=1, max_size=8)


def allowed_by_search(answers: list[list[int]], answer_so_far: list[int]) -> set[int]:
    """What may follow: the next token of every answer that begins so; only the end where none does."""
    ended = [[*answer, EOS] for answer in answers]
    n = len(answer_so_far)
    following = {answer[n] for answer in ended if answer[:n] == answer_so_far and len(answer) > n}
    if not following and answer_so_far not in ended:
        # Not the beginning of an answer: the end comes next, and after that end nothing.
        known = max(i for i in range(n + 1) if any(a[:i] == answer_so_far[:i] for a in ended))
        rest = answer_so_far[known:]
        return {EOS} if rest[1:2] != [EOS] or len(rest) > 2 else set()
    return following


def ids(mask: torch.Tensor) -> set[int]:
    return set(mask.nonzero().flatten().tolist())


@given(answers=ANSWERS, sofar=st.lists(TOKENS, max_size=5), prompts=st.lists(st.integers(0, 3), min_size=1))
def test_trie_equals_search(answers: list[list[int]], sofar: list[int], prompts: list[int]) -> None:
    """Rows with prompts of different lengths, whatever the prompts are made of."""
    trie = AnswerTrie(answers, EOS, VOCABULARY)
    longest = max(prompts)
    # All prefixes have one length, so rows with shorter prompts have longer answers.
    rows, wanted = [], []
    for prompt in prompts:
        answer = (sofar + [5] * longest)[: len(sofar) + longest - prompt]
        rows.append([BOS] + [9] * prompt + answer)
        wanted.append(allowed_by_search(answers, answer))
    masks = trie.next_tokens(torch.tensor(rows), torch.tensor(prompts))
    assert [ids(mask) for mask in masks] == wanted


@given(answers=ANSWERS, which=st.data())
def test_every_answer_is_a_path_and_its_targets_are_allowed(
    answers: list[list[int]], which: st.DataObject
) -> None:
    trie = AnswerTrie(answers, EOS, VOCABULARY)
    answer = which.draw(st.sampled_from(answers))
    prompt = which.draw(st.integers(0, 3))
    target = torch.tensor([[PAD] * prompt + [*answer, EOS] + [PAD] * (2 if prompt % 2 else 0)])
    masks = trie.target_masks(target, target.ne(PAD))
    assert masks.shape == (len(answer) + 1, VOCABULARY)
    for i, mask in enumerate(masks):
        expected = trie.next_tokens(torch.tensor([[BOS, *answer[:i]]]))[0]
        assert torch.equal(mask, expected)
        assert mask[[*answer, EOS][i]]
    finished = trie.next_tokens(torch.tensor([[BOS, *answer, EOS]]))
    assert not finished.any()


def test_inside_a_prompt_everything_is_allowed() -> None:
    trie = AnswerTrie([[5]], EOS, VOCABULARY)
    masks = trie.next_tokens(torch.tensor([[BOS, 9], [BOS, 9]]), torch.tensor([3, 1]))
    assert masks[0].all()
    assert ids(masks[1]) == {5}


@given(start=st.integers(4, 11), length=st.integers(1, 5))
def test_range_is_specials_and_range(start: int, length: int) -> None:
    end = min(start + length, VOCABULARY)
    mask = TokenRange.parse(f"{start},{end}", VOCABULARY).next_tokens(torch.tensor([[BOS]]))[0]
    assert ids(mask) == {0, 1, 2, 3} | set(range(start, end))


@pytest.mark.parametrize("text", ["", "5", "a,b", "3,9", "9,9", "9,5", "5,13"])
def test_a_wrong_range_says_what_was_expected(text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        TokenRange.parse(text, VOCABULARY)


@pytest.mark.parametrize(("answers", "message"), [([], "at least one"), ([[5], []], "answer 1")])
def test_an_empty_answer_is_refused(answers: list[list[int]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AnswerTrie(answers, EOS, VOCABULARY)


def test_a_set_of_thousands_is_built_at_once() -> None:
    answers = torch.randint(4, 50_000, (3129, 4)).tolist()
    start = time.perf_counter()
    AnswerTrie(answers, EOS, 59457)
    assert time.perf_counter() - start < 5
