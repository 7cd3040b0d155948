"""Self-critical sequence training: outputs that score better than their baseline become more probable.

Rennie et al., CVPR 2017, "Self-critical Sequence Training for Image Captioning". For k sampled outputs y_j of a picture
with rewards r_j and baselines b_j, the gradient of

    loss = - sum_j (r_j - b_j) log p(y_j)

is, but for its sign and scale, an unbiased estimate of that of the expected reward, if the outputs are drawn from p and
no b_j depends on y_j. Beam search (the released recipe) draws nothing: its "samples" are the k most probable outputs,
and the estimate is biased towards what the model prefers already. So it is with top-k and top-p sampling, n-gram
blocking, a shortest length and a temperature, which draw from another distribution than p.

An update encodes its pictures once, with gradients and as training has it (dropout, BatchNorm's batch statistics unless
the stem is frozen). From that the decoder samples token by token, without gradients and dropout; one pass over all
samples then gives their log-probabilities. In validation nothing is in training mode, so that no running statistic
moves.

B rows, k samples of each, T tokens of the longest one.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Optional

import numpy as np
import torch
from fairseq.criterions import FairseqCriterion, register_criterion
from fairseq.data.data_utils import collate_tokens
from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from fairseq.logging import metrics
from numpy.typing import NDArray
from omegaconf import II
from torch import Tensor, nn

from ..generation.answer_space import AnswerSpace
from ..metrics.cider import Floats
from ..metrics.rewards import Reward, reward
from .label_smoothed import supervised_positions, supervised_tokens, token_losses

logger = logging.getLogger(__name__)

Baseline: Any = ChoiceEnum(["others", "greedy"])
# Updates in a row that teach nothing, at which the log says so.
COLLAPSES_TOLD = {10**n for n in range(1, 9)}
# Advantages below are rounding errors of equal rewards.
SMALLEST_ADVANTAGE = 1e-9
# Of --scst-args, what the greedy baseline shares with the samples.
GREEDY_OPTIONS = ("max_len_a", "max_len_b", "min_len", "no_repeat_ngram_size")


class Sample(NamedTuple):
    """One sampled output."""

    tokens: Tensor  # its tokens, </s> at the end
    ended: bool  # the model ended it; False: the limit of length did


class TeacherForced(NamedTuple):
    """What the decoder reads and should have said, rows of one picture beside each other."""

    prev_output: Tensor  # [B k, T]
    target: Tensor  # [B k, T], padding where nothing was chosen


class Samples(NamedTuple):
    """The sampled outputs of B rows."""

    outputs: list[list[Sample]]  # [B][k]
    real: NDArray[np.bool_]  # [B, k]; False: a copy that fills up a row of which fewer were found
    space: AnswerSpace | None  # what they were chosen from


def leave_one_out(rewards: Floats, real: NDArray[np.bool_] | None = None) -> Floats:
    """[B, k] rewards -> for each sample the mean of the row's others (its own reward where there are none).

    Only samples that are `real` [B, k] count.
    """
    real = np.ones_like(rewards, dtype=bool) if real is None else real
    others = real.sum(axis=1, keepdims=True) - 1
    total = (rewards * real).sum(axis=1, keepdims=True)
    return np.where(others > 0, (total - rewards) / np.maximum(others, 1), rewards)


def spread(rewards: Floats, real: NDArray[np.bool_]) -> Floats:
    """Standard deviation of each row's real rewards, [B, 1]."""
    count = np.maximum(real.sum(axis=1, keepdims=True), 1)
    mean = (rewards * real).sum(axis=1, keepdims=True) / count
    return np.sqrt(((rewards - mean) ** 2 * real).sum(axis=1, keepdims=True) / count)


def teacher_forced(
    samples: Sequence[Sequence[Sample]], prompts: Tensor | None, bos: int, pad: int
) -> TeacherForced:
    """Rows for the decoder, from k samples of each of B rows and the rows' prompts [B, n], right-padded.

    Nothing is learnt of a prompt, nor of an end that the limit of length forced: neither was the model's choice.
    """
    prev_output, target = [], []
    for row, of_row in enumerate(samples):
        prompt = of_row[0].tokens[:0] if prompts is None else prompts[row][prompts[row].ne(pad)]
        for tokens, ended in of_row:
            start = tokens.new_tensor([bos])
            chosen = tokens if ended else torch.cat([tokens[:-1], tokens.new_tensor([pad])])
            prev_output.append(torch.cat([start, prompt, tokens[:-1]]))
            target.append(torch.cat([torch.full_like(prompt, pad), chosen]))
    return TeacherForced(collate_tokens(prev_output, pad), collate_tokens(target, pad))


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Without dropout; afterwards the module is in the mode that it was in."""
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)


@dataclass
class SelfCriticalConfig(FairseqDataclass):
    """Options of self-critical training for whatever reward."""

    scst_baseline: Baseline = field(
        default="others",
        metadata={
            "help": "what a sample's reward is compared with: the mean of the other samples, or the greedy output's"
        },
    )
    ignore_prefix_size: int = field(default=0, metadata={"help": "ignore the first N tokens of each sample"})
    sentence_avg: bool = II("optimization.sentence_avg")
    constraint_range: Optional[str] = field(
        default=None,
        metadata={"help": "'start,end': ids outside of it, special tokens excepted, are impossible"},
    )


class SelfCriticalCriterion(FairseqCriterion):
    """Trains a task that samples (`--scst`) for a reward of its outputs, which a criterion derived from this names.

    How outputs are sampled is in `--scst-args`, as for fairseq-generate: `beam` is the number of samples k.

    Raises:
        ValueError: without `--scst`, for one sample without another to compare it with, or a constraint range that is
            not the task's.
    """

    def __init__(self, cfg: SelfCriticalConfig, task: Any) -> None:
        super().__init__(task)
        if not getattr(task.cfg, "scst", False):
            raise ValueError("self-critical training needs the task's --scst (and --scst-args)")
        options = task.scst_options()
        self.num_samples = options.get("beam", 5)
        if not isinstance(self.num_samples, int) or self.num_samples < 1:
            raise ValueError(f'--scst-args with "beam": {self.num_samples!r}: expected the number of samples')
        self.baseline = str(cfg.scst_baseline)
        if self.baseline == "others" and self.num_samples < 2:
            raise ValueError(
                f'--scst-args with "beam": {self.num_samples}: the mean of the other samples needs two or more'
                " (or --scst-baseline greedy)"
            )
        self.greedy_options = {name: options[name] for name in GREEDY_OPTIONS if name in options} | {
            "beam": 1
        }
        if cfg.constraint_range != task.cfg.constraint_range:
            raise ValueError(
                f"criterion.constraint_range {cfg.constraint_range} and task.constraint_range"
                f" {task.cfg.constraint_range}: expected the same"
            )
        self.ignore_prefix_size = cfg.ignore_prefix_size
        self.sentence_avg = cfg.sentence_avg
        self.rank = task.root.distributed_training.distributed_rank if task.root is not None else 0
        self.collapses = 0  # updates in a row that taught nothing
        self.latest_update = (0, False)  # its number, and whether it has taught something

    def reward(self, outputs: Sequence[tuple[Any, bool]], references: Sequence[Sequence[str]]) -> Floats:
        """The reward [H] of each output, given with whether the model ended it, against its references."""
        raise NotImplementedError

    def forward(
        self, model: Any, sample: Mapping[str, Any], update_num: int = 0, reduce: bool = True
    ) -> tuple[Tensor, int, dict[str, Any]]:
        """The batch's loss, its gradient's denominator, and the sums to log.

        `sample`: `net_input` (the model's arguments), `references` (rows without any teach nothing), and where
        the task has them `prefix_tokens` [B, n]. The denominator counts the tokens that were
        chosen, or samples with `--sentence-avg`.
        """
        sample = encoded(model, sample)
        samples = self.sample(model, sample, self.task.scst_options() | {"beam": self.num_samples})
        references = sample["references"]
        learnt = samples.real & np.array([bool(texts) for texts in references])[:, None]
        rewards = self.rewards(samples.outputs, references)
        if self.baseline == "greedy":
            greedy = self.sample(model, sample, self.greedy_options)
            learnt &= greedy.real
            baselines = np.broadcast_to(self.rewards(greedy.outputs, references), rewards.shape)
        else:
            baselines = leave_one_out(rewards, learnt)
        advantages = rewards - baselines
        advantages[np.abs(advantages) < SMALLEST_ADVANTAGE] = 0.0

        rows = teacher_forced(
            samples.outputs,
            sample.get("prefix_tokens"),
            self.task.target_dictionary.bos(),
            self.padding_idx,
        )
        device = rows.target.device
        not_learnt = torch.from_numpy(~learnt.ravel()).to(device)
        target = rows.target.masked_fill(not_learnt[:, None], self.padding_idx)
        positions = supervised_positions(target, self.padding_idx, self.ignore_prefix_size)
        inputs = {**sample["net_input"], "prev_output_tokens": rows.prev_output}
        logits = model(**inputs, output_positions=positions)[0]
        weighted = {
            "target": target,
            "answer_space": samples.space,
            "conf": torch.from_numpy(advantages.ravel()).to(device),
        }
        tokens = supervised_tokens(logits, weighted, positions, self.padding_idx)
        losses = token_losses(tokens.logits, tokens.target, allowed=tokens.allowed, weight=tokens.weight).loss

        num_samples = int(learnt.sum())
        sample_size = num_samples if self.sentence_avg else len(losses)
        lengths = np.array([[len(s.tokens) - 1 for s in of_row] for of_row in samples.outputs])
        collapsed = ~((advantages != 0) & learnt).any(axis=1, keepdims=True)
        logging_output = {
            "loss": losses.detach().sum(),
            "ntokens": len(losses),
            "nsentences": num_samples,
            "sample_size": sample_size,
            "reward": float(rewards[learnt].sum()),
            "baseline": float(baselines[learnt].sum()),
            "reward_spread": float((spread(rewards, learnt) * learnt).sum()),
            "sample_length": int(lengths[learnt].sum()),
            "entropy": entropy(tokens.logits.detach()),
            "collapsed": int((collapsed & learnt).sum()),
        }
        if model.training and num_samples:
            self.watch(update_num, bool((~collapsed).any()), float(rewards[learnt].mean()))
        return losses.sum() if reduce else losses, sample_size, logging_output

    def sample(self, model: Any, sample: Mapping[str, Any], options: Mapping[str, Any]) -> Samples:
        """Outputs of each row, best first, `options["beam"]` of each or less if no row has more."""
        generator = self.task.sampler(model, options)
        prompts = sample.get("prefix_tokens")
        # fairseq seeds all processes alike: this has each draw other samples.
        torch.rand(self.rank, device=sample["net_input"]["src_tokens"].device)
        with evaluating(model.decoder):
            found = self.task.inference_step(generator, [model], sample)
        # Where autocast is on, older PyTorch would use the decoder's cast weights, made without gradients, again.
        torch.clear_autocast_cache()

        space, limit = generator.model.answer_space, generator.model.max_len
        prompt_lengths = [0] * len(found)
        if prompts is not None:
            prompt_lengths = prompts.ne(self.padding_idx).sum(dim=1).tolist()
        outputs = [
            [
                Sample(h["tokens"], len(h["tokens"]) + length < limit + 1)
                for h in hypotheses[: options["beam"]]
            ]
            for hypotheses, length in zip(found, prompt_lengths)
        ]
        most = max(1, *map(len, outputs))
        real = np.arange(most) < np.array([[len(row)] for row in outputs])
        end = sample["net_input"]["src_tokens"].new_tensor([self.task.target_dictionary.eos()])
        filled = [row + (row[-1:] or [Sample(end, False)]) * (most - len(row)) for row in outputs]
        return Samples(filled, real, space)

    def rewards(self, samples: Sequence[Sequence[Sample]], references: Sequence[Sequence[str]]) -> Floats:
        """[B, k]; 0 for rows without references."""
        scores = np.zeros((len(samples), len(samples[0])))
        rows = [row for row, texts in enumerate(references) if texts]
        if rows:
            scored = [s for row in rows for s in samples[row]]
            outputs = self.task.outputs([s.tokens for s in scored])
            repeated = [references[row] for row in rows for _ in samples[row]]
            rewards = self.reward(list(zip(outputs, (s.ended for s in scored))), repeated)
            scores[rows] = rewards.reshape(len(rows), -1)
        return scores

    def watch(self, update_num: int, teaches: bool, mean_reward: float) -> None:
        """Say so in the log when many updates in a row teach nothing."""
        number, taught = self.latest_update
        if update_num == number:  # another part of the same update
            self.latest_update = number, taught or teaches
            return
        self.collapses = 0 if taught else self.collapses + 1
        self.latest_update = update_num, teaches
        if self.collapses in COLLAPSES_TOLD:
            logger.warning(
                "SCST learns nothing: in %d updates in a row no output was better or worse than its baseline"
                " (mean reward %.4g). If outputs are all alike, sample them or more of them (--scst-args); if the"
                " reward is 0, train with cross entropy first, and look at outputs and references.",
                self.collapses,
                mean_reward,
            )

    @staticmethod
    def reduce_metrics(logging_outputs: Sequence[Mapping[str, Any]]) -> None:
        """Log the loss over the sample size; of the samples the mean reward, baseline, spread of rewards (standard
        deviation within a picture), length in tokens and share of collapsed pictures; entropy in nats a token."""
        names = ("reward", "baseline", "reward_spread", "sample_length", "collapsed")
        sums = {
            key: sum(float(log.get(key, 0)) for log in logging_outputs)
            for key in ("loss", "sample_size", "ntokens", "nsentences", "entropy", *names)
        }
        if sums["sample_size"] > 0:
            metrics.log_scalar("loss", sums["loss"] / sums["sample_size"], sums["sample_size"], round=4)
        if sums["ntokens"] > 0:
            metrics.log_scalar("entropy", sums["entropy"] / sums["ntokens"], sums["ntokens"], round=3)
        for name in names if sums["nsentences"] > 0 else ():
            metrics.log_scalar(name, sums[name] / sums["nsentences"], sums["nsentences"], round=4)

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        return True


@dataclass
class ScstRewardConfig(SelfCriticalConfig):
    """Options of self-critical training for a metric."""

    scst_cider_cached_tokens: Optional[str] = field(
        default=None,
        metadata={
            "help": "document frequencies for the CIDEr-D reward, from `prepare document_frequencies` or released"
            " (default: counted over the training file, which takes a while for a large one)"
        },
    )
    scst_reward: str = field(
        default="cider",
        metadata={
            "help": "cider, rouge_l, accuracy, vqa, box_accuracy, box_iou, or a function of your own"
            " as package.module:function"
        },
    )


@register_criterion("scst_reward_criterion", dataclass=ScstRewardConfig)
class ScstRewardCriterion(SelfCriticalCriterion):
    """Trains for a metric of the outputs.

    Raises:
        ValueError: besides the cases of its base, for an unknown reward or one that can't be given for the task.
    """

    def __init__(self, cfg: ScstRewardConfig, task: Any) -> None:
        super().__init__(cfg, task)
        if cfg.scst_reward == "cider" and task.reference_column() is None:
            raise ValueError(
                "--scst-reward cider, the default, compares texts, which this task's references are not:"
                " give another one, e.g. accuracy, vqa or box_iou"
            )
        self._reward: Reward = reward(cfg.scst_reward, cfg.scst_cider_cached_tokens, task.training_references)

    def reward(self, outputs: Sequence[tuple[Any, bool]], references: Sequence[Sequence[str]]) -> Floats:
        """`--scst-reward`."""
        return self._reward(outputs, references)


@register_criterion("clip_scst_reward_criterion", dataclass=SelfCriticalConfig)
class ClipScstRewardCriterion(SelfCriticalCriterion):
    """Trains `image_gen` for what ranks its samples: CLIP's similarity of drawing and caption, as released.

    Raises:
        ValueError: besides the cases of its base, if the task does not rank.
    """

    def __init__(self, cfg: SelfCriticalConfig, task: Any) -> None:
        super().__init__(cfg, task)
        if not hasattr(task, "drawer"):
            raise ValueError("clip_scst_reward_criterion is for the task image_gen")
        self.scorer = task.drawer.scorer
        if self.scorer is None:
            raise ValueError(
                "clip_scst_reward_criterion needs a ranking of drawings: give --clip-model-path, or another --rank-by"
            )

    def reward(self, outputs: Sequence[tuple[Any, bool]], references: Sequence[Sequence[str]]) -> Floats:
        """2.5 times the score of each drawing (Hessel et al. 2021, CLIPScore)."""
        return 2.5 * self.scorer([picture for picture, _ in outputs], [texts[0] for texts in references])


def encoded(model: Any, sample: Mapping[str, Any]) -> dict[str, Any]:
    """The sample with its sources encoded, for whatever comes after."""
    encoder_out = model.encoder.forward_torchscript(sample["net_input"])
    return {**sample, "net_input": {**sample["net_input"], "encoder_out": encoder_out}}


@torch.no_grad()
def entropy(logits: Tensor) -> Tensor:
    """Summed entropy in nats of the distributions of [M, V] logits."""
    return torch.special.entr(logits.softmax(-1)).sum()
