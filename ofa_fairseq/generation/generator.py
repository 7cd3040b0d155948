"""fairseq's SequenceGenerator for OFA: its start token, its constraints, and its fast decoder.

What differs from stock, and where: constraints act on the logits before they are normalised (the ensemble below);
decoding starts with `<s>`; the encoder's result keeps one row per sentence instead of one per beam; n-gram blocking is
mended. Search, lengths, prompts, scores and ensembles are stock.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from types import NoneType
from typing import Any

import torch
from fairseq import search
from fairseq.sequence_generator import EnsembleModel, SequenceGenerator
from torch import Tensor, nn

from .answer_space import NUM_SPECIALS, AnswerSpace, AnswerTrie

logger = logging.getLogger(__name__)


class NoRepeatNgrams(nn.Module):
    """Ban tokens that would complete an n-gram a hypothesis already has, unless nothing else may follow (in a prompt).

    Stock fairseq's Python version compares with the end of the padded buffer, which never matches.
    """

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n = n

    def forward(self, tokens: Tensor, lprobs: Tensor, bsz: int, beam_size: int, step: int) -> Tensor:
        """tokens [N, >= step + 1] with `<s>` first, lprobs [N, V] -> lprobs with what is banned at -inf."""
        if step + 1 < self.n:
            return lprobs
        ngrams = tokens[:, : step + 1].unfold(1, self.n, 1)  # N x windows x n
        latest = tokens[:, step + 2 - self.n : step + 1]
        repeated = (ngrams[..., :-1] == latest[:, None]).all(dim=-1)
        ban = torch.zeros_like(repeated, dtype=lprobs.dtype).masked_fill_(repeated, -math.inf)
        left = lprobs.scatter_add(1, ngrams[..., -1], ban)
        return torch.where(left.isneginf().all(dim=1, keepdim=True), lprobs, left)


class OFAEnsemble(EnsembleModel):
    """One or several models whose next-token distributions obey an answer space.

    Stock search ends a hypothesis at every `</s>`, also at a forced one. A `<s>` inside a forced prompt is a `</s>` to
    the models, with its probability, and ends nothing (see `OFASequenceGenerator.unending`).

    Args:
        models: with equal vocabularies.
        beam_size: rows per sentence.
        answer_space: which tokens may come next; None = all.
        zero_shot: mask the log-probabilities instead of the logits: scores are then not renormalised over what is
            allowed, and a forced prompt counts as part of the answer (the released `--zero-shot`).
        gen_code: every row's target is image codes, and only the last step may be a special token.
        guidance: classifier-free guidance (Ho & Salimans 2022): away from what follows the source `null_source`,
            logits are `null + guidance (own - null)`; 1 = none. Each step then runs the decoder twice.
        null_source: token ids [T] that say nothing, for guidance.
    """

    def __init__(
        self,
        models: Sequence[Any],
        beam_size: int,
        answer_space: AnswerSpace | None = None,
        zero_shot: bool = False,
        gen_code: bool = False,
        guidance: float = 1.0,
        null_source: Tensor | None = None,
    ) -> None:
        self.guided = guidance != 1.0
        # The second half of the models reads the null source.
        super().__init__([*models, *models] if self.guided else models)
        dictionary: Any = models[0].decoder.dictionary
        self.bos, self.eos = dictionary.bos(), dictionary.eos()
        self.beam_size = beam_size
        self.answer_space, self.zero_shot, self.gen_code = answer_space, zero_shot, gen_code
        self.guidance, self.null_source = guidance, null_source
        self.max_len = 0
        self.sentences = 0  # that are left in the batch
        self.prompt_lengths: Tensor | None = None  # [B], follows the sentences that are left

    def begin(self, prompt_lengths: Tensor | None, max_len: int) -> None:
        """Called at the start of each batch."""
        self.prompt_lengths, self.max_len = prompt_lengths, max_len

    def forward_encoder(self, net_input: dict[str, Any]) -> list[dict[str, list[Tensor]]]:
        """One row per sentence; nothing to do where `encoder_out` is among the inputs."""
        rows = net_input["src_tokens"]
        self.sentences = len(rows)
        if "encoder_out" in net_input:
            return [net_input["encoder_out"]]
        if self.gen_code:
            net_input = {
                **net_input,
                "code_masks": torch.ones(len(rows), dtype=torch.bool, device=rows.device),
            }
        if not self.guided:
            return super().forward_encoder(net_input)
        half = self.models_size // 2
        null = self._null_input(net_input)
        return [m.encoder.forward_torchscript(net_input) for m in self.models[:half]] + [
            m.encoder.forward_torchscript(null) for m in self.models[half:]
        ]

    def _null_input(self, net_input: dict[str, Any]) -> dict[str, Any]:
        """A single row, which the decoder shares among all; it has no picture."""
        assert self.null_source is not None
        source = self.null_source.to(net_input["src_tokens"].device)[None]
        null = {"src_tokens": source, "src_lengths": source.new_tensor([source.size(1)])}
        if self.gen_code:
            null["code_masks"] = torch.ones(1, dtype=torch.bool, device=source.device)
        return null

    def forward_decoder(
        self,
        tokens: Tensor,
        encoder_outs: list[dict[str, list[Tensor]]],
        incremental_states: list[dict[str, Any]],
        temperature: float = 1.0,
    ) -> tuple[Tensor, Tensor | None]:
        """Log-probabilities of the token after `tokens` [N, step + 1], in float32: [N, V]."""
        prompt_lengths = self._prompt_length_of_rows(len(tokens))
        if prompt_lengths is not None:
            tokens = self._with_ends(tokens, prompt_lengths)
        allowed = self._allowed(tokens, prompt_lengths)
        log_probs = []
        for model, encoder_out, state in zip(self.models, encoder_outs, incremental_states):
            logits, _ = model.decoder(tokens, encoder_out=encoder_out, incremental_state=state)
            logits = logits[:, -1] / temperature
            if allowed is not None and not self.zero_shot:
                logits = logits.masked_fill(~allowed, -math.inf)
            log_probs.append(torch.log_softmax(logits.float(), dim=-1))
        if self.guided:
            half = len(log_probs) // 2
            null = _averaged(log_probs[half:])
            # What is not allowed is -inf in both, whose difference is no number.
            towards = torch.where(null.isneginf(), 0.0, _averaged(log_probs[:half]) - null)
            lprobs = torch.log_softmax(null + self.guidance * towards, dim=-1)
        else:
            lprobs = _averaged(log_probs)
        if allowed is not None and self.zero_shot:
            lprobs = lprobs.masked_fill(~allowed, -math.inf)
        if self.gen_code and tokens.size(1) <= self.max_len:
            lprobs[:, :NUM_SPECIALS] = -math.inf
        if prompt_lengths is not None:
            forced = prompt_lengths >= tokens.size(1)
            lprobs[:, self.bos] = torch.where(forced, lprobs[:, self.eos], lprobs[:, self.bos])
        return lprobs, None

    def _prompt_length_of_rows(self, rows: int) -> Tensor | None:
        if self.prompt_lengths is None:
            return None
        return self.prompt_lengths.repeat_interleave(rows // len(self.prompt_lengths))

    def _with_ends(self, tokens: Tensor, prompt_lengths: Tensor) -> Tensor:
        """`</s>` for each `<s>` of a prompt."""
        position = torch.arange(tokens.size(1), device=tokens.device)
        inside = (position > 0) & (position <= prompt_lengths[:, None])
        return tokens.masked_fill(inside & tokens.eq(self.bos), self.eos)

    def _allowed(self, tokens: Tensor, prompt_lengths: Tensor | None) -> Tensor | None:
        if self.answer_space is None:
            return None
        return self.answer_space.next_tokens(tokens, None if self.zero_shot else prompt_lengths)

    def reorder_encoder_out(
        self, encoder_outs: list[dict[str, list[Tensor]]], new_order: Tensor
    ) -> list[dict[str, list[Tensor]]]:
        """Rows are sentences here: something moves only when finished sentences leave the batch."""
        if len(new_order) == self.sentences * self.beam_size:
            return encoder_outs
        self.sentences = len(new_order) // self.beam_size
        order = new_order[:: self.beam_size] // self.beam_size
        if self.prompt_lengths is not None:
            self.prompt_lengths = self.prompt_lengths[order]
        half = len(encoder_outs) // 2 if self.guided else len(encoder_outs)
        reordered = [
            m.encoder.reorder_encoder_out(out, order) for m, out in zip(self.models, encoder_outs[:half])
        ]
        return reordered + encoder_outs[half:]

    def reorder_incremental_state(self, incremental_states: list[dict[str, Any]], new_order: Tensor) -> None:
        """Hypotheses follow `new_order`; drawn ones keep their places until sentences leave."""
        if len(new_order) == self.sentences * self.beam_size:
            in_place = torch.arange(len(new_order), device=new_order.device)
            if self.beam_size == 1 or torch.equal(new_order, in_place):
                return
        for model, state in zip(self.models, incremental_states):
            model.decoder.reorder_incremental_state_scripting(state, new_order)


def _averaged(log_probs: Sequence[Tensor]) -> Tensor:
    """Of several models' log-probabilities [N, V] those of the mean probability."""
    if len(log_probs) == 1:
        return log_probs[0]
    return torch.logsumexp(torch.stack(list(log_probs)), dim=0) - math.log(len(log_probs))


class OFASequenceGenerator(SequenceGenerator):
    """Beam search, diverse beam search and sampling for OFA.

    Args:
        models: one model or an ensemble.
        tgt_dict: the dictionary.
        answer_space, zero_shot, gen_code, guidance, null_source: see `OFAEnsemble`.
        no_repeat_ngram_size: ban repeated n-grams of this size (0: none).
        search_strategy: a search of fairseq's (None: beam search).
        kwargs: as of fairseq's SequenceGenerator.
    """

    max_len_a: float
    max_len_b: int

    def __init__(
        self,
        models: Sequence[Any],
        tgt_dict: Any,
        *,
        beam_size: int = 1,
        answer_space: AnswerSpace | None = None,
        zero_shot: bool = False,
        gen_code: bool = False,
        guidance: float = 1.0,
        null_source: Tensor | None = None,
        no_repeat_ngram_size: int = 0,
        search_strategy: Any = None,
        **kwargs: Any,
    ) -> None:
        beam_size = min(beam_size, len(tgt_dict) - 1)
        if isinstance(answer_space, AnswerTrie) and type(search_strategy) in (NoneType, search.BeamSearch):
            # Beams without an answer of their own would never end.
            beam_size = min(beam_size, answer_space.num_answers)
        if not gen_code:  # the models' own limit is that of a picture's codes
            kwargs.setdefault("max_len", min(m.decoder.max_positions() for m in models))
        super().__init__(
            OFAEnsemble(models, beam_size, answer_space, zero_shot, gen_code, guidance, null_source),
            tgt_dict,
            beam_size=beam_size,
            search_strategy=search_strategy,
            symbols_to_strip_from_output={tgt_dict.bos()},
            **kwargs,
        )
        self.bos = tgt_dict.bos()
        if no_repeat_ngram_size > 0:
            self.repeat_ngram_blocker = NoRepeatNgrams(no_repeat_ngram_size)

    def _generate(
        self,
        sample: dict[str, Any],
        prefix_tokens: Tensor | None = None,
        constraints: Tensor | None = None,
        bos_token: int | None = None,
    ) -> list[list[dict[str, Tensor]]]:
        """Hypotheses of each row, best first; prompts `prefix_tokens` [B, n] are right-padded."""
        source_length = sample["net_input"]["src_tokens"].size(1)
        max_len = min(int(self.max_len_a * source_length + self.max_len_b), self.max_len - 1)
        if self.min_len > max_len:
            raise ValueError(f"--min-len {self.min_len} is longer than the longest output, {max_len} tokens")
        prompt_lengths = None if prefix_tokens is None else prefix_tokens.ne(self.pad).sum(dim=1)
        options = self.max_len_a, self.max_len_b
        needed = self._needed_length(0 if prompt_lengths is None else int(prompt_lengths.max()), max_len)
        if needed > max_len:
            max_len = needed
            self.max_len_a, self.max_len_b = 0, needed  # where stock looks
        self.model.begin(prompt_lengths, max_len)
        # A set of fewer answers than beams leaves beams that can never end: stock asserts that there are none.
        self.search.stop_on_max_len = True
        try:
            return super()._generate(
                sample, prefix_tokens, constraints, bos_token=self.bos if bos_token is None else bos_token
            )
        finally:
            self.max_len_a, self.max_len_b = options

    def _needed_length(self, prompt: int, max_len: int) -> int:
        """Tokens, a forced prompt among them, that outputs need where options allow `max_len`.

        One long question must not end a run: after a prompt that fills all that is allowed, as much is allowed again.
        Answers of a closed set always fit: cut off they would be none.

        Raises:
            ValueError: the model has too few positions.
        """
        answers = self.model.answer_space
        if isinstance(answers, AnswerTrie):
            needed = prompt + answers.longest
        elif prompt < max_len:
            return max_len
        else:
            needed = min(prompt + max_len, max(prompt + 1, self.max_len - 1))
            logger.warning(
                "a forced prompt of %d tokens leaves no room in outputs of at most %d (--max-len-b), which count it:"
                " %d are allowed in its batch",
                prompt,
                max_len,
                needed,
            )
        if needed > self.max_len - 1:
            raise ValueError(
                f"outputs need {needed} tokens, {prompt} of them a forced prompt, but the model has positions for"
                f" {self.max_len - 1} (--max-target-positions)"
            )
        return needed

    def unending(self, prompts: Tensor) -> Tensor:
        """Prompts whose `</s>` end no output; they show as `<s>` in hypotheses, until `remove_prompt`."""
        return prompts.masked_fill(prompts.eq(self.eos), self.bos)

    def remove_prompt(self, hypothesis: dict[str, Tensor], length: int) -> None:
        """Cut a forced prompt of `length` tokens off a hypothesis, in place; its score becomes that of the rest."""
        hypothesis["tokens"] = hypothesis["tokens"][length:]
        scores = hypothesis["positional_scores"] = hypothesis["positional_scores"][length:]
        total = scores.sum()
        hypothesis["score"] = total / len(scores) ** self.len_penalty if self.normalize_scores else total


def diverse_beam_search(tgt_dict: Any, groups: int, strength: float) -> search.DiverseBeamSearch:
    """Diverse beam search with the Hamming penalty of the paper, as the released generator has it.

    Stock's default accumulates the penalty over steps and considers half the candidates.
    """
    return search.DiverseBeamSearch(tgt_dict, groups, strength, diversity_discount=0.0, candidate_multiple=2)
