"""How a task generates: its generator and search, a row's own prompt, and generation in validation."""

import json
from argparse import Namespace
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import fields
from types import NoneType
from typing import Any

import torch
from fairseq import checkpoint_utils
from fairseq.data import Dictionary
from fairseq.dataclass.configs import GenerationConfig
from fairseq.tasks import FairseqTask
from torch import Tensor, nn

from ..data.example import Batch
from ..generation.answer_space import AnswerSpace
from ..generation.generator import OFASequenceGenerator, diverse_beam_search
from ..vocabulary import Vocabulary
from .configuration import plain_options, root_of
from .options import RELEASED_EVAL_OPTIONS, OFATaskConfig


class GeneratingTask(FairseqTask):
    """What `OFATask` does in generation; the vocabulary and the answer space are for it to say.

    Class attribute:
        zero_shot_is_free: whether `--zero-shot` lifts the answer space.
    """

    zero_shot_is_free = True
    cfg: OFATaskConfig

    def __init__(self, cfg: OFATaskConfig) -> None:
        super().__init__(plain_options(cfg))
        self.root = root_of(cfg)
        self.dictionary = Dictionary()
        self._generators: dict[Hashable, Any] = {}

    @property
    def vocabulary(self) -> Vocabulary:
        """Whose tokens outputs are."""
        raise NotImplementedError

    def answer_space(self) -> AnswerSpace | None:
        """What generated outputs may be (None: anything)."""
        raise NotImplementedError

    @property
    def generating(self) -> bool:
        """Whether this is a run of fairseq-generate."""
        return self.root is not None and self.root.common_eval.path is not None

    @property
    def free(self) -> bool:
        """Whether `--zero-shot` has lifted the answer space."""
        return self.cfg.zero_shot and self.zero_shot_is_free

    def build_generator(
        self,
        models: Sequence[nn.Module],
        args: Any,
        seq_gen_cls: Any = None,
        extra_gen_cls_kwargs: dict[str, Any] | None = None,
        prefix_allowed_tokens_fn: Any = None,
    ) -> OFASequenceGenerator:
        """A generator with fairseq's options (`--beam`, `--lenpen`, ...) over the task's answer space."""
        self.prepare_models(models)
        extra = {
            "answer_space": None if self.free else self.answer_space(),
            **(extra_gen_cls_kwargs or {}),
        }
        generator = super().build_generator(
            models, args, seq_gen_cls or OFASequenceGenerator, extra, prefix_allowed_tokens_fn
        )
        groups = getattr(args, "diverse_beam_groups", -1)
        if groups > 0:
            generator.search = diverse_beam_search(
                self.dictionary, groups, getattr(args, "diverse_beam_strength", 0.5)
            )
        return generator

    def prepare_models(self, models: Sequence[nn.Module]) -> None:
        """With `--ema-eval`, give the models their averaged weights."""
        if self.cfg.ema_eval and self.generating:
            load_ema(models, self.root.common_eval.path)

    def inference_step(
        self,
        generator: Any,
        models: Sequence[nn.Module],
        sample: Batch,
        prefix_tokens: Tensor | None = None,
        constraints: Tensor | None = None,
    ) -> list[list[dict[str, Tensor]]]:
        """Generate; a row's own prompt is forced, and no part of the output, unless the caller gives another."""
        own = sample.get("prefix_tokens") if prefix_tokens is None else None
        searching = isinstance(generator, OFASequenceGenerator)
        if own is not None:
            prefix_tokens = generator.unending(own) if searching else own
        with torch.no_grad():
            hypotheses = generator.generate(
                models, sample, prefix_tokens=prefix_tokens, constraints=constraints
            )
        if own is not None and searching:
            for row, length in zip(hypotheses, own.ne(self.dictionary.pad()).sum(dim=1).tolist()):
                for hypothesis in row:
                    generator.remove_prompt(hypothesis, length)
        return hypotheses

    def generate_texts(self, sample: Batch, model: nn.Module) -> list[str]:
        """The best output of each row with the options of `--eval-args`, as text."""
        hypotheses = self.inference_step(self.search(model, self._eval_options()), [model], sample)
        return [self.decode(best[0]["tokens"]) if best else "" for best in hypotheses]

    def search(self, model: nn.Module, options: Mapping[str, Any], seq_gen_cls: Any = None) -> Any:
        """The generator for these of fairseq-generate's options, kept for the next time."""
        key = id(model), seq_gen_cls, json.dumps(options, sort_keys=True)
        if key not in self._generators:
            training = model.training
            self._generators[key] = self.build_generator([model], Namespace(**options), seq_gen_cls)
            model.train(training)  # stock's constructor leaves it in evaluation mode
        return self._generators[key]

    def sampler(self, model: nn.Module, options: Mapping[str, Any]) -> OFASequenceGenerator:
        """The generator for these options: a search, also where answers are a closed set."""
        return self.search(model, options, OFASequenceGenerator)

    def _eval_options(self) -> dict[str, Any]:
        return generation_options("--eval-args", self.cfg.eval_args)

    def scst_options(self) -> dict[str, Any]:
        """How self-critical training samples outputs, as fairseq-generate's options."""
        return generation_options("--scst-args", self.cfg.scst_args)

    def decode(self, tokens: Tensor) -> str:
        """Text of an output."""
        return self.vocabulary.decode(tokens.tolist())


# fairseq-generate's options and their types, which are classes or typing's Optional[...] and Any.
OPTION_TYPES = {f.name: f.type for f in fields(GenerationConfig)} | dict.fromkeys(RELEASED_EVAL_OPTIONS, bool)
# What JSON gives for a type, and how an error calls it.
JSON_TYPES: dict[Any, tuple[tuple[type, ...], str]] = {
    bool: ((bool,), "true or false"),
    int: ((int,), "a whole number"),
    float: ((float, int), "a number"),
}


def generation_options(flag: str, text: str | None) -> dict[str, Any]:
    """Options of fairseq-generate from a flag's JSON.

    Raises:
        ValueError: not a JSON object of such options, or a value is not of its option's type.
    """
    text = text or "{}"
    try:
        options = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{flag} {text}: not JSON ({error})") from error
    if not isinstance(options, dict):
        raise ValueError(f"{flag} {text}: expected a JSON object of generation options")
    unknown = options.keys() - OPTION_TYPES.keys()
    if unknown:
        raise ValueError(f"{flag} {text}: fairseq-generate has no option {', '.join(sorted(unknown))}")
    for name, value in options.items():
        types, expected = JSON_TYPES.get(OPTION_TYPES[name], ((str, NoneType), "a text or null"))
        if OPTION_TYPES[name] is not Any and type(value) not in types:  # true is no number here
            raise ValueError(f'{flag} with "{name}": {json.dumps(value)}: expected {expected}')
    return options


def load_ema(models: Sequence[Any], paths: str) -> None:
    """Replace models' weights by the averaged ones of the files they came from (colon-separated).

    Raises:
        ValueError: if a file has none.
    """
    for model, path in zip(models, paths.split(":")):
        state = checkpoint_utils.load_checkpoint_to_cpu(path)
        if "ema" not in state["extra_state"]:
            raise ValueError(
                f"--ema-eval: {path} holds no averaged weights (extra_state.ema);"
                " leave --ema-eval out (in scripts: --ema no)"
            )
        model.load_state_dict(state["extra_state"]["ema"], strict=True)
