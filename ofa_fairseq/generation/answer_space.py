"""Which tokens may come next: a set of answers as a trie of token ids, or a range of token ids.

One object serves the criterion (masked log-probabilities of targets), beam search and candidate scoring.
Everything is vectorised over rows; there is no Python loop over vocabulary or answers after construction.

Legend: N rows, L tokens of a prefix, V vocabulary, M supervised target positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

# <s>, <pad>, </s>, <unk>: always allowed beside a range.
NUM_SPECIALS = 4
# The trie's node after a complete answer, and after a prefix that begins none; node 0 is its root.
ENDED = 1


class AnswerSpace(Protocol):
    """What a row's answer may be."""

    def next_tokens(self, prefix: Tensor, prompt_lengths: Tensor | None = None) -> Tensor:
        """Allowed next tokens, bool [N or 1, V].

        Args:
            prefix: [N, L] = `<s>`, a forced prompt of `prompt_lengths` [N] tokens, the answer so far. While
                the prompt is not complete everything is allowed.
        """

    def target_masks(self, target: Tensor, supervised: Tensor) -> Tensor:
        """Allowed tokens at the M supervised positions of `target` [B, T], row-major: bool [M, V]."""


class TokenRange:
    """The tokens [start, end), and the specials (so that a sequence can end).

    Args:
        start, end: token ids.
        vocabulary_size: V.
        length: if given, answers have exactly this many tokens: no specials but the end, and that only then.
        eos: id of the end; needed with `length`.

    Raises:
        ValueError: if the range is empty or leaves the vocabulary.
    """

    def __init__(
        self, start: int, end: int, vocabulary_size: int, length: int | None = None, eos: int = 2
    ) -> None:
        if not NUM_SPECIALS <= start < end <= vocabulary_size:
            raise ValueError(f"token range {start},{end}: expected 4 <= start < end <= {vocabulary_size}")
        self.start, self.end, self.vocabulary_size = start, end, vocabulary_size
        self.length, self.eos = length, eos

    @classmethod
    def parse(cls, text: str, vocabulary_size: int) -> TokenRange:
        """Read `--constraint-range`: "start,end"."""
        try:
            start, end = (int(part) for part in text.split(","))
        except ValueError as error:
            raise ValueError(f"--constraint-range {text!r}: expected two token ids, 'start,end'") from error
        if end > vocabulary_size:
            raise ValueError(
                f"--constraint-range {text}: this vocabulary has {vocabulary_size} tokens (50265,58457 are the image"
                " codes of OFA's own; in scripts: --constraint-range none)"
            )
        return cls(start, end, vocabulary_size)

    def next_tokens(self, prefix: Tensor, prompt_lengths: Tensor | None = None) -> Tensor:
        """See `AnswerSpace`; without a length the same for every row and step, [1, V]."""
        ids = torch.arange(self.vocabulary_size, device=prefix.device)
        inside = (ids >= self.start) & (ids < self.end)
        if self.length is None:
            return ((ids < NUM_SPECIALS) | inside)[None]
        made = prefix.size(1) - 1  # tokens of the answer so far
        if prompt_lengths is None:
            return (inside if made < self.length else ids == self.eos)[None]
        answered = (made - prompt_lengths)[:, None]
        return torch.where(answered < self.length, inside, ids == self.eos) | (answered < 0)

    def target_masks(self, target: Tensor, supervised: Tensor) -> Tensor:
        """See `AnswerSpace`."""
        if self.length is None:
            return self.next_tokens(target).expand(int(supervised.sum()), -1)
        made = (supervised.cumsum(dim=1) - 1)[supervised]
        return self.next_tokens(target[:1, :1], -made)


class AnswerTrie:
    """A set of answers, each `answer tokens + </s>` after `<s>`.

    A prefix that is not the beginning of an answer may only end, and so may one that has ended already: searches that
    go on with ended hypotheses, to ignore what comes, need something to choose.

    Args:
        answers: token ids of each answer, without `<s>` and `</s>`.
        eos: id of `</s>`.
        vocabulary_size: V.

    Raises:
        ValueError: if there are no answers, or one is empty.
    """

    def __init__(self, answers: Sequence[Sequence[int]], eos: int, vocabulary_size: int) -> None:
        if not answers:
            raise ValueError("an answer set needs at least one answer")
        self.vocabulary_size = vocabulary_size
        self.num_answers = len({tuple(answer) for answer in answers})
        self.longest = max(map(len, answers))  # without its end
        children: list[dict[int, int]] = [{}, {eos: ENDED}]
        for i, answer in enumerate(answers):
            if not answer:
                raise ValueError(f"answer {i} of the answer set has no tokens")
            node = 0
            for token in answer:
                if token not in children[node]:
                    children[node][token] = len(children)
                    children.append({})
                node = children[node][token]
            children[node][eos] = ENDED
        edges = [
            (node, token, child) for node, row in enumerate(children) for token, child in sorted(row.items())
        ]
        nodes, tokens, ends = torch.tensor(edges).unbind(1)
        counts = torch.bincount(nodes, minlength=len(children))
        self._tables: tuple[Tensor, ...] = (
            nodes * vocabulary_size + tokens,  # sorted: edges are searched by (node, token)
            tokens,
            ends,
            counts.cumsum(0) - counts,  # first edge of each node
            counts,
        )

    def _on(self, device: torch.device) -> tuple[Tensor, ...]:
        if self._tables[0].device != device:
            self._tables = tuple(table.to(device) for table in self._tables)
        return self._tables

    def _advance(self, node: Tensor, token: Tensor) -> Tensor:
        """Follow one token from each node, [N], [N] -> [N]."""
        keys, _, child, _, _ = self._on(node.device)
        wanted = node * self.vocabulary_size + token
        edge = torch.searchsorted(keys, wanted).clamp(max=len(keys) - 1)
        return torch.where(keys[edge] == wanted, child[edge], ENDED)

    def _allowed(self, node: Tensor) -> Tensor:
        """The tokens on each node's edges, [N] -> bool [N, V]."""
        _, token, _, first, counts = self._on(node.device)
        count = counts[node]
        rows = torch.repeat_interleave(torch.arange(len(node), device=node.device), count)
        within = torch.arange(len(rows), device=node.device) - (count.cumsum(0) - count)[rows]
        mask = torch.zeros(len(node), self.vocabulary_size, dtype=torch.bool, device=node.device)
        mask[rows, token[first[node][rows] + within]] = True
        return mask

    def next_tokens(self, prefix: Tensor, prompt_lengths: Tensor | None = None) -> Tensor:
        """See `AnswerSpace`."""
        length = prefix.size(1) - 1
        if prompt_lengths is None:
            prompt_lengths = prefix.new_zeros(len(prefix))
        node = torch.zeros_like(prompt_lengths)
        longest_answer = length - int(prompt_lengths.min())
        for i in range(max(longest_answer, 0)):
            position = prompt_lengths + i
            token = prefix[:, 1:].gather(1, position.clamp(max=length - 1)[:, None]).squeeze(1)
            node = torch.where(position < length, self._advance(node, token), node)
        allowed = self._allowed(node)
        return allowed | (prompt_lengths > length)[:, None]

    def target_masks(self, target: Tensor, supervised: Tensor) -> Tensor:
        """See `AnswerSpace`; the supervised positions of a row are its answer and `</s>`."""
        node = torch.zeros_like(target[:, 0])
        nodes = []
        for i in range(target.size(1)):
            nodes.append(node)
            node = torch.where(supervised[:, i], self._advance(node, target[:, i]), node)
        return self._allowed(torch.stack(nodes, dim=1)[supervised])
