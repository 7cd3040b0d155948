"""All-candidate scoring: the log-probability of every answer of a closed set.

Slower than beam search over the same set, and exact. The encoder runs once per row and the prompt once per row; only
the answers themselves are computed for every candidate.

Legend: B rows, C candidates, A tokens of the longest answer, V vocabulary, d width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from .answer_space import AnswerTrie

Hypothesis = dict[str, Tensor]


class RankedCandidates(Sequence[Hypothesis]):
    """A row's hypotheses, the best first, each made when it is asked for: mostly it is one of thousands.

    Args:
        ends: tokens of each candidate, with its end.
        order: numbers of the candidates [C].
        scores: [C].
        positional: [C, A + 1].
    """

    def __init__(self, ends: Sequence[Tensor], order: Tensor, scores: Tensor, positional: Tensor) -> None:
        self._ends, self._order, self._scores, self._positional = ends, order.tolist(), scores, positional

    def __len__(self) -> int:
        return len(self._order)

    @overload
    def __getitem__(self, rank: int) -> Hypothesis: ...

    @overload
    def __getitem__(self, rank: slice) -> list[Hypothesis]: ...

    def __getitem__(self, rank: int | slice) -> Hypothesis | list[Hypothesis]:
        """The hypothesis of a rank from 0, or those of several."""
        if isinstance(rank, slice):
            return [self._hypothesis(i) for i in self._order[rank]]
        return self._hypothesis(self._order[rank])

    def _hypothesis(self, i: int) -> Hypothesis:
        nothing = torch.empty(0)
        return {
            "tokens": self._ends[i],
            "score": self._scores[i],
            "positional_scores": self._positional[i, : len(self._ends[i])],
            "attention": nothing,
            "alignment": nothing,
        }


class CandidateScorer(nn.Module):
    """Scores every answer; stands where fairseq expects a sequence generator.

    The score of an answer is the sum of the log-probabilities of its tokens and its end, each among the tokens that the
    set allows there. So the scores of a row are log-probabilities: their exponentials add up to 1.

    Args:
        models: one model, or an ensemble whose probabilities are averaged.
        dictionary: fairseq's.
        answers: token ids of each answer, without `<s>` and `</s>`.
        chunk: candidates that are scored at a time, for each row of a batch.
        memory: if given, chunks are as large as their logits fit into this many MiB, and `chunk` is ignored.
    """

    def __init__(
        self,
        models: Sequence[Any],
        dictionary: Any,
        answers: Sequence[Sequence[int]],
        chunk: int = 20,
        memory: int | None = None,
    ) -> None:
        super().__init__()
        self.models: Any = nn.ModuleList(models)
        self.pad, self.eos, self.bos = dictionary.pad(), dictionary.eos(), dictionary.bos()
        self.vocabulary_size = len(dictionary)
        self.chunk, self.memory = chunk, memory
        trie = AnswerTrie(answers, self.eos, self.vocabulary_size)
        self._ends = [torch.tensor([*answer, self.eos]) for answer in answers]
        targets = pad_sequence(self._ends, batch_first=True, padding_value=self.pad)
        self._trie, self._targets = trie, targets
        # Equal lengths together: less padding in a chunk.
        self._by_length = sorted(range(len(answers)), key=lambda i: len(answers[i]))

    def generate(
        self,
        models: Sequence[Any],
        sample: dict[str, Any],
        prefix_tokens: Tensor | None = None,
        constraints: Tensor | None = None,
        **unused: Any,
    ) -> list[RankedCandidates]:
        """All candidates of each row as hypotheses, the best first (of equals the one that is first in the list).

        `prefix_tokens` [B, n], right-padded, are forced prompts; they are no part of the hypotheses.
        """
        scores, positional = self.score(sample, prefix_tokens)
        order = scores.sort(dim=1, descending=True, stable=True).indices
        return [RankedCandidates(self._ends, *row) for row in zip(order, scores, positional)]

    @torch.no_grad()
    def score(self, sample: dict[str, Any], prefix_tokens: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Log-probabilities of the candidates [B, C], and of their tokens [B, C, A + 1], in float32.

        Raises:
            RuntimeError: if a model's scores are not numbers.
        """
        net_input = {k: v for k, v in sample["net_input"].items() if k != "prev_output_tokens"}
        rows = len(net_input["src_tokens"])
        if prefix_tokens is None:
            prefix_tokens = net_input["src_tokens"].new_empty(rows, 0)
        prompts = torch.cat([prefix_tokens.new_full((rows, 1), self.bos), prefix_tokens], dim=1)
        encoded = [model.encoder(**net_input) for model in self.models]
        positional = torch.zeros(rows, *self._targets.shape, device=prompts.device)
        # Rows whose prompts are equally long share a pass: positions then mean the same in all of them.
        lengths = prompts.ne(self.pad).sum(dim=1)
        for length in lengths.unique().tolist():
            group = lengths.eq(length).nonzero().squeeze(1)
            of_group = [m.encoder.reorder_encoder_out(e, group) for m, e in zip(self.models, encoded)]
            positional[group] = self._score_group(prompts[group, :length], of_group)
        if positional.isnan().any():
            raise RuntimeError("the model's scores are not numbers (NaN)")
        return positional.sum(dim=-1), positional

    def _score_group(self, prompts: Tensor, encoded: list[Any]) -> Tensor:
        """Rows with prompts [b, n] -> log-probabilities of the candidates' tokens [b, C, A + 1]."""
        states: list[dict[str, Any]] = [{} for _ in self.models]
        first = [
            model.decoder(prompts, encoder_out=e, incremental_state=state, features_only=True)[0][:, -1]
            for model, e, state in zip(self.models, encoded, states)
        ]  # [b, d]
        result = torch.zeros(len(prompts), *self._targets.shape, device=prompts.device)
        for start in range(0, len(self._by_length), size := self._chunk_size(len(prompts))):
            chosen = self._by_length[start : start + size]
            targets = self._targets[chosen].to(prompts.device)
            targets = targets[:, : int(targets.ne(self.pad).sum(dim=1).max())]
            result[:, chosen, : targets.size(1)] = self._score_chunk(prompts, encoded, states, first, targets)
        return result

    def _score_chunk(
        self,
        prompts: Tensor,
        encoded: list[Any],
        states: list[dict[str, Any]],
        first: list[Tensor],
        targets: Tensor,
    ) -> Tensor:
        """Candidates [c, a] (with their end) after each prompt [b, n] -> [b, c, a]; 0 at padding."""
        rows, count = len(prompts), len(targets)
        supervised = targets.ne(self.pad)
        answers = targets[:, :-1].masked_fill(targets[:, :-1].eq(self.eos), self.pad)
        tokens = torch.cat(
            [prompts.repeat_interleave(count, dim=0), answers.repeat(rows, 1)], dim=1
        )  # row by row
        allowed = self._trie.target_masks(targets, supervised)  # [m, V]
        log_probs = []
        for model, e, state, start in zip(self.models, encoded, states, first):
            features, _ = model.decoder(
                tokens,
                encoder_out=e,
                incremental_state=model.decoder.expanded_state(state, count),
                features_only=True,
            )
            start = start[:, None, None].expand(-1, count, -1, -1)
            features = torch.cat([start, features.view(rows, count, -1, features.size(-1))], dim=2)
            logits = model.decoder.output_layer(features[:, supervised]).float()  # [b, m, V]
            log_probs.append(logits.masked_fill_(~allowed, -math.inf).log_softmax(dim=-1))
        mean = log_probs[0]
        if len(log_probs) > 1:
            mean = torch.logsumexp(torch.stack(log_probs), dim=0) - math.log(len(log_probs))
        result = mean.new_zeros(rows, *targets.shape)
        result[:, supervised] = mean.gather(2, targets[supervised].expand(rows, -1)[..., None]).squeeze(2)
        return result

    def _chunk_size(self, rows: int) -> int:
        """Candidates in a pass. Logits, their mask's copy and their softmax are what takes memory."""
        if self.memory is None:
            return self.chunk
        per_candidate = 3 * 4 * rows * self._targets.size(1) * self.vocabulary_size
        return max(1, self.memory * 2**20 // per_candidate)
