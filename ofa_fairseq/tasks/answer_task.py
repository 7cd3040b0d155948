"""What tasks share whose answer is chosen from a closed set: the set, the decoder's prompt, candidate scoring."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Optional

import torch
from torch import Tensor

from ..data.answer_list import parse_answers, read_answers
from ..data.text_normalize import split_references
from ..generation.answer_space import AnswerSpace, AnswerTrie
from ..generation.candidates import CandidateScorer
from ..metrics.vqa_accuracy import CONFIDENCE_SEPARATOR, parse_answer
from .ofa_task import OFATask
from .options import OFATaskConfig

PROMPT_TYPES = ("none", "src", "prev_output")
INFERENCE_TYPES = ("allcand", "beamsearch")


@dataclass
class AnswerTaskConfig(OFATaskConfig):
    """Options of tasks with a closed set of answers."""

    ans2label_file: Optional[str] = field(
        default=None,
        metadata={
            "help": "the allowed answers: pickle or JSON of a dictionary with them as keys, or text, one a line"
        },
    )
    ans2label_dict: Optional[str] = field(
        default=None, metadata={"help": "the allowed answers as JSON, if there is no file"}
    )
    prompt_type: str = field(
        default="prev_output",
        metadata={
            "help": "what the decoder starts with: none, src (the source) or prev_output (the source without its end)"
        },
    )
    val_inference_type: str = field(
        default="allcand",
        metadata={
            "help": "allcand: score all allowed answers; beamsearch: search (without a closed set always)"
        },
    )
    beam_search_vqa_eval: bool = field(
        default=False,
        metadata={"help": "fairseq-generate: beam search also where all answers could be scored"},
    )
    valid_batch_size: int = field(
        default=20, metadata={"help": "answers that are scored in one pass, for each row of a batch"}
    )
    candidate_memory: Optional[int] = field(
        default=None,
        metadata={"help": "MiB that a pass may take for its logits; decides in place of --valid-batch-size"},
    )
    candidates: Optional[str] = field(
        default=None,
        metadata={
            "help": "fairseq-generate: also write the probability of every allowed answer, a JSON line for each row"
            " (of several processes each writes its own file, FILE.0 and so on)"
        },
    )
    uses_ema: bool = field(
        default=False, metadata={"help": "validate with the averaged weights (needs --store-ema)"}
    )


class Answers(NamedTuple):
    """The answers to a row."""

    best: str  # of the allowed ones that of highest confidence, the first of equals; "" if there is none
    confidence: float  # of the best
    learnable: bool  # whether there is one that is allowed
    texts: list[str]  # all, as they stand in the column


class AnswerTask(OFATask):
    """A task whose answers may be a closed set; without one, outputs are free and found by beam search.

    A task sets `answer_slot`, the target's one slot.
    """

    answer_slot: str
    zero_shot_is_free = False
    cfg: AnswerTaskConfig

    def __init__(self, cfg: AnswerTaskConfig) -> None:
        super().__init__(cfg)
        self.uses_ema = cfg.uses_ema
        for flag, value, choices in (
            ("--prompt-type", cfg.prompt_type, PROMPT_TYPES),
            ("--val-inference-type", cfg.val_inference_type, INFERENCE_TYPES),
        ):
            if value not in choices:
                raise ValueError(f"{flag} {value}: expected one of {', '.join(choices)}")
        if cfg.valid_batch_size < 1 or (cfg.candidate_memory is not None and cfg.candidate_memory < 1):
            raise ValueError("--valid-batch-size and --candidate-memory: expected numbers above 0")
        if cfg.uses_ema and self.root is not None and not (self.generating or self.root.ema.store_ema):
            raise ValueError("--uses-ema: there are no averaged weights without --store-ema")
        self.answers  # a mistake in the list should not wait for the first row  # noqa: B018

    @cached_property
    def answers(self) -> list[str] | None:
        """The allowed answers, or None for free text."""
        if self.cfg.ans2label_file:
            return read_answers(self.cfg.ans2label_file)
        if self.cfg.ans2label_dict:
            return parse_answers(self.cfg.ans2label_dict, "--ans2label-dict")
        return None

    @cached_property
    def answer_ids(self) -> list[list[int]]:
        """Token ids of the allowed answers, without `<s>` and `</s>`.

        Raises:
            ValueError: two answers have the same.
        """
        instruction, slot, vocabulary = self.instruction, self.answer_slot, self.vocabulary
        ids = {answer: instruction.encode_target({slot: answer}, vocabulary) for answer in self.answers or []}
        answer_of: dict[tuple[int, ...], str] = {}
        for answer, tokens in ids.items():
            other = answer_of.setdefault(tuple(tokens), answer)
            if other != answer:
                raise ValueError(
                    f"the allowed answers {other!r} and {answer!r} are the same to the vocabulary, both"
                    f" {vocabulary.decode(tokens).strip()!r}: keep one of them"
                )
        return list(ids.values())

    @cached_property
    def trie(self) -> AnswerTrie | None:
        """The allowed answers as a tree of tokens."""
        if self.answers is None:
            return None
        return AnswerTrie(self.answer_ids, self.vocabulary.eos, len(self.vocabulary))

    def load_dataset(self, split: str, *args: Any, **kwargs: Any) -> None:
        """See `OFATask.load_dataset`; a mistake in the list, as its tokens show it, is no row's."""
        self.trie  # noqa: B018
        super().load_dataset(split, *args, **kwargs)

    def use_options(self) -> None:
        """See `OFATask.use_options`."""
        super().use_options()
        for name in ("answers", "answer_ids", "trie", "_answer_set"):
            self.__dict__.pop(name, None)

    def answer_space(self) -> AnswerSpace | None:
        """The allowed answers."""
        return self.trie or super().answer_space()

    def is_allowed(self, answer: str) -> bool:
        """Whether an answer may be given."""
        return self.answers is None or answer in self._answer_set

    @cached_property
    def _answer_set(self) -> set[str]:
        return set(self.answers or ())

    def best_answer(self, column: str, split: str) -> Answers:
        """What a column `a&&b`, also with confidences `0.6|!+a&&1.0|!+b`, says about the answer.

        Raises:
            ValueError: a confidence does not parse, or in training nothing can be learnt.
        """
        texts = [text for text in split_references(column) if text.strip()]
        if 0 < sum(CONFIDENCE_SEPARATOR in text for text in texts) < len(texts):
            raise ValueError(f"some answers of {column!r} have a confidence and others have none")
        rated = [parse_answer(text) for text in texts]
        allowed = [(answer, confidence) for answer, confidence in rated if self.is_allowed(answer)]
        if split == "train" and not allowed:
            raise ValueError(
                f"no answer of {column!r} is in the answer list" if rated else "the answer is empty"
            )
        answer, confidence = max(allowed, key=lambda pair: pair[1], default=("", 1.0))
        return Answers(answer, confidence, bool(allowed), texts)

    def cut_target(self, tokens: list[int]) -> list[int]:
        """Free answers are cut to `--max-tgt-length` tokens, as released; allowed ones, boxes and codes never are."""
        free = self.answer_slot and self.answers is None
        return tokens[: self.cfg.max_tgt_length] if free else tokens

    # -- generation -----------------------------------------------------------------------------------

    def build_generator(
        self,
        models: Sequence[Any],
        args: Any,
        seq_gen_cls: Any = None,
        extra_gen_cls_kwargs: dict[str, Any] | None = None,
        prefix_allowed_tokens_fn: Any = None,
    ) -> Any:
        """All-candidate scoring where answers are a closed set and nothing asks for a search, as a class does."""
        cfg = self.cfg
        beam = cfg.beam_search_vqa_eval or cfg.val_inference_type == "beamsearch" or self.free
        if self.answers is None or beam or seq_gen_cls is not None:
            if cfg.candidates:
                raise ValueError(
                    "--candidates needs a closed set of answers (--ans2label-file, --answers), all of which are"
                    " scored: without --zero-shot, --beam-search-vqa-eval and --val-inference-type beamsearch"
                )
            return super().build_generator(
                models, args, seq_gen_cls, extra_gen_cls_kwargs, prefix_allowed_tokens_fn
            )
        self.prepare_models(models)
        return CandidateScorer(
            models, self.dictionary, self.answer_ids, cfg.valid_batch_size, cfg.candidate_memory
        )

    def inference_step(
        self,
        generator: Any,
        models: Sequence[Any],
        sample: dict[str, Any],
        prefix_tokens: Tensor | None = None,
        constraints: Tensor | None = None,
    ) -> list[list[dict[str, Tensor]]]:
        """See `OFATask.inference_step`; with `--candidates`, also list all answers."""
        hypotheses = super().inference_step(generator, models, sample, prefix_tokens, constraints)
        if self.generating and self.cfg.candidates:
            path = self._own_path(self.cfg.candidates)
            self._write_candidates(path, sample["id"].tolist(), hypotheses)
        return hypotheses

    def _own_path(self, path: str) -> Path:
        """Of several processes each has its own file."""
        place = self.root.distributed_training
        return Path(f"{path}.{place.distributed_rank}" if place.distributed_world_size > 1 else path)

    def _write_candidates(
        self, path: Path, ids: Sequence[str], hypotheses: list[list[dict[str, Tensor]]]
    ) -> None:
        mode = "a" if self._candidates_begun else "w"
        self._candidates_begun = True
        with path.open(mode, encoding="utf-8") as file:
            for row_id, row in zip(ids, hypotheses):
                answers, scores = zip(*[(self.decode(h["tokens"]).strip(), h["score"]) for h in row])
                probabilities = torch.stack(scores).exp().tolist()
                entry = {"id": row_id, "answers": dict(zip(answers, probabilities))}
                file.write(json.dumps(entry, ensure_ascii=False) + "\n")

    _candidates_begun = False
