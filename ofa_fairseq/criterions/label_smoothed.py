"""Label-smoothed cross entropy over the supervised positions of a batch, and its encouraging variant.

B batch, T target tokens, V vocabulary, M supervised positions (those with a target), K of them that are kept.
All masks: True = counts, or is allowed. Losses are natural logarithms (base e), in float32.

The model makes logits of the supervised positions only, none for a prompt in front of the target or for padding: [M, V]
instead of [B, T, V]. The functions hold no state; `supervised_tokens` and `token_losses` also serve other criterions.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce as fold
from typing import Any, NamedTuple, Optional

import torch
from fairseq import utils
from fairseq.criterions import FairseqCriterion, register_criterion
from fairseq.dataclass import FairseqDataclass
from fairseq.logging import metrics
from omegaconf import II
from torch import Tensor, nn

from ..generation.answer_space import TokenRange


class SupervisedTokens(NamedTuple):
    """The M positions of a batch that have a target."""

    logits: Tensor  # [M, V] float32, -inf where not allowed
    target: Tensor  # [M] int64
    allowed: Tensor | None  # [M, V] or [1, V] bool; None: every token is allowed
    weight: Tensor | None  # [M] float32, the confidence of the position's sample; None: 1


class TokenLosses(NamedTuple):
    loss: Tensor  # [M] smoothed and weighted
    nll: Tensor  # [M] weighted


class Drop(NamedTuple):
    """From update `after` + 1 on, keep the share 1 - `ratio` with the largest (or smallest) losses."""

    ratio: float
    after: int
    keep_largest: bool


def supervised_positions(
    target: Tensor, padding: int, ignore_prefix_size: int = 0, ignored_token: int | None = None
) -> Tensor:
    """[M] int64, b * T + t in rising order: positions of the target [B, T] that are not padding, not among the
    first `ignore_prefix_size`, not the ignored token."""
    supervised = target.ne(padding)
    supervised[:, :ignore_prefix_size] = False
    if ignored_token is not None:
        supervised &= target.ne(ignored_token)
    return supervised.flatten().nonzero().squeeze(-1)  # waits for the device: M is a shape


def supervised_tokens(
    logits: Tensor,
    sample: Mapping[str, Any],
    positions: Tensor,
    padding: int,
    token_range: TokenRange | None = None,
) -> SupervisedTokens:
    """What belongs to the supervised positions of a batch; what is not allowed there becomes impossible.

    `logits` [M, V] in any floating type, never written to, of the `positions` [M], which are
    `supervised_positions`. Of the sample it reads `target` [B, T] and, where present, `conf` [B] (a weight), and three
    restrictions that add up (a token must pass each): `constraint_masks` [B, T, V] bool, `answer_space` (an
    `AnswerSpace`) and the token range. A target outside of them makes its loss infinite: data loading has
    to refuse such a row.
    """
    logits = logits.float()
    masks = []
    if sample.get("constraint_masks") is not None:
        masks.append(sample["constraint_masks"].flatten(0, 1).index_select(0, positions))
    if sample.get("answer_space") is not None:
        # A trie walks whole answers, also where the first tokens of them are ignored.
        answer = sample["target"].ne(padding)
        row_of_position = answer.flatten().cumsum(0) - 1
        answer_masks = sample["answer_space"].target_masks(sample["target"], answer)
        masks.append(answer_masks.index_select(0, row_of_position[positions]))
    if token_range is not None:
        masks.append(token_range.next_tokens(sample["target"]))  # [1, V]
    allowed = fold(torch.logical_and, masks) if masks else None
    if allowed is not None:
        logits = logits.masked_fill(~allowed, -math.inf)
    weight = sample.get("conf")
    if weight is not None:
        weight = weight.float().index_select(0, positions // sample["target"].size(1))
    return SupervisedTokens(logits, sample["target"].flatten().index_select(0, positions), allowed, weight)


def token_losses(
    logits: Tensor,
    target: Tensor,
    epsilon: float = 0.0,
    allowed: Tensor | None = None,
    weight: Tensor | None = None,
) -> TokenLosses:
    """The loss of each token, [M]; arguments as in `SupervisedTokens`.

    With n allowed tokens at a position, logits z, target y and e = epsilon / (n - 1):
    `nll = logsumexp(z) - z_y`, `loss = (1 - epsilon - e) nll + e sum_v (logsumexp(z) - z_v)`, v over the
    allowed tokens; both times the weight. Infinite for a target that is not allowed.
    """
    log_probs = logits.log_softmax(-1)  # on CPUs faster than logsumexp, whose gradient is slow
    nll = -log_probs.gather(-1, target.unsqueeze(-1)).squeeze(-1)
    loss = nll
    if epsilon > 0:
        n: Any = logits.size(-1) if allowed is None else allowed.sum(-1)
        summed = log_probs if allowed is None else log_probs.masked_fill(~allowed, 0.0)
        # With a single allowed token both terms are 0, whatever the divisor.
        share = epsilon / (n - 1 if allowed is None else (n - 1).clamp(min=1))
        loss = (1 - epsilon - share) * nll - share * summed.sum(-1)
    return TokenLosses(loss, nll) if weight is None else TokenLosses(weight * loss, weight * nll)


def symmetric_kl(logits: Tensor, other: Tensor) -> Tensor:
    """[M]: (KL(p‖q) + KL(q‖p)) / 2 = sum_v (p_v - q_v)(log p_v - log q_v) / 2 of two [M, V] logits, which are
    -inf in the same places."""
    log_p, log_q = logits.log_softmax(-1), other.log_softmax(-1)
    ratio = (log_p - log_q).masked_fill(logits.isneginf(), 0.0)  # impossible in both: 0, not inf - inf
    return ((log_p.exp() - log_q.exp()) * ratio).sum(-1) / 2


def encouragement(tokens: SupervisedTokens, epsilon: float, log_end: float) -> Tensor:
    """[M], at most 0: the bonus for well-classified tokens, taken as the label is smoothed.

    `(1 - epsilon) bonus(p_y) + epsilon / V sum_v bonus(p_v)`, where p is the probability raised to the weight
    (the released form: log-probabilities are scaled by the weight, which has to be above 0).
    Zhao et al. 2022, "Well-classified Examples are Underestimated in Classification with Deep Neural
    Networks".
    """
    log_p = tokens.logits.log_softmax(-1)
    if tokens.weight is not None:
        log_p = log_p * tokens.weight.unsqueeze(-1)
    gains = bonus(log_p.exp(), log_end)
    chosen = gains.gather(-1, tokens.target.unsqueeze(-1)).squeeze(-1)
    return (1 - epsilon) * chosen + epsilon / gains.size(-1) * gains.sum(-1)


def bonus(p: Tensor, log_end: float) -> Tensor:
    """log(1 - p), beyond `log_end` continued as its tangent there (with `log_end` 1: cut off at log 1e-5)."""
    curve = (1 - p).clamp(min=1e-5).log()
    if log_end == 1:
        return curve
    return torch.where(p > log_end, math.log(1 - log_end) - (p - log_end) / (1 - log_end), curve)


def kept_tokens(losses: Tensor, drops: Iterable[Drop], update_num: int) -> Tensor | None:
    """[K] indices into `losses` [M] that pass all drops due at this update, in no order; None: all are kept.

    Each drop keeps `int(m (1 - ratio))` of the m tokens that the ones before it have left.
    """
    kept = None
    for ratio, after, keep_largest in drops:
        if ratio > 0 and update_num > after:
            left = losses if kept is None else losses[kept]
            best = left.topk(int(len(left) * (1 - ratio)), largest=keep_largest, sorted=False).indices
            kept = best if kept is None else kept[best]
    return kept


def repeat_batch(value: Any) -> Any:
    """The batch twice, as R-Drop wants it: tensors become [x; x], new ones; all else is passed on."""
    if isinstance(value, dict):
        return {key: repeat_batch(entry) for key, entry in value.items()}
    return torch.cat([value, value]) if isinstance(value, Tensor) and value.dim() > 0 else value


@dataclass
class AdjustLabelSmoothedCrossEntropyConfig(FairseqDataclass):
    label_smoothing: float = field(
        default=0.0, metadata={"help": "share of the target's probability that is spread over all tokens"}
    )
    report_accuracy: bool = field(
        default=False, metadata={"help": "log the share of supervised tokens that are the arg-max"}
    )
    ignore_prefix_size: int = field(default=0, metadata={"help": "ignore the first N target positions"})
    ignore_eos: bool = field(default=False, metadata={"help": "ignore the end of the target"})
    sentence_avg: bool = II("optimization.sentence_avg")
    drop_worst_ratio: float = field(
        default=0.0, metadata={"help": "share of a device's tokens with the largest losses to leave out"}
    )
    drop_worst_after: int = field(
        default=0, metadata={"help": "leave the worst out only after this many updates"}
    )
    use_rdrop: bool = field(
        default=False, metadata={"help": "R-Drop: two passes with other dropout, drawn together by their KL"}
    )
    reg_alpha: float = field(default=1.0, metadata={"help": "weight of R-Drop's divergence"})
    sample_patch_num: int = field(
        default=196,
        metadata={
            "help": "image patches kept in the first part of a two-part pretraining batch; nothing elsewhere"
        },
    )
    constraint_range: Optional[str] = field(
        default=None,
        metadata={"help": "'start,end': ids outside of it, special tokens excepted, are impossible"},
    )


@register_criterion("adjust_label_smoothed_cross_entropy", dataclass=AdjustLabelSmoothedCrossEntropyConfig)
class AdjustLabelSmoothedCrossEntropyCriterion(FairseqCriterion):
    """OFA's cross entropy: smoothed, weighted, restricted to the allowed tokens, without the worst tokens.

    Raises ValueError for a constraint range or a drop ratio that makes no sense.
    """

    def __init__(self, cfg: AdjustLabelSmoothedCrossEntropyConfig, task: Any) -> None:
        super().__init__(task)
        self.epsilon = cfg.label_smoothing
        self.report_accuracy = cfg.report_accuracy
        self.ignore_prefix_size = cfg.ignore_prefix_size
        self.ignored_token = task.target_dictionary.eos() if cfg.ignore_eos else None
        self.sentence_avg = cfg.sentence_avg
        self.use_rdrop = cfg.use_rdrop
        self.reg_alpha = cfg.reg_alpha
        self.token_range = None
        if cfg.constraint_range is not None:
            self.token_range = TokenRange.parse(cfg.constraint_range, len(task.target_dictionary))
        self.drops = [checked_drop("--drop-worst-ratio", cfg.drop_worst_ratio, cfg.drop_worst_after, False)]

    def forward(
        self, model: nn.Module, sample: Mapping[str, Any], update_num: int = 0, reduce: bool = True
    ) -> tuple[Tensor, int, dict[str, Any]]:
        """The batch's loss, its gradient's denominator, and the sums to log.

        `sample`: `net_input` (the model's arguments), `target` [B, T], `nsentences`, `ntokens`, and what
        `supervised_tokens` reads. `update_num` decides whether tokens are dropped; validation leaves it 0.
        The loss is a sum, or [K] in no order without `reduce`; the denominator counts the K kept tokens
        (R-Drop: of both passes), or rows with `--sentence-avg`. Without any target the loss is a 0 that has
        a graph.
        """
        doubled = self.use_rdrop and model.training
        if doubled:
            sample = repeat_batch(sample)
        positions = supervised_positions(
            sample["target"], self.padding_idx, self.ignore_prefix_size, self.ignored_token
        )
        logits = model(**sample["net_input"], output_positions=positions)[0]
        tokens = supervised_tokens(logits, sample, positions, self.padding_idx, self.token_range)
        losses, nll = token_losses(tokens.logits, tokens.target, self.epsilon, tokens.allowed, tokens.weight)
        kept = self.kept(losses.detach(), update_num, doubled)
        losses = losses + self.extra_losses(tokens, doubled)
        if kept is not None:
            losses, nll = losses[kept], nll[kept]
        rows = sample["nsentences"] * (2 if doubled else 1)
        sample_size = rows if self.sentence_avg else len(losses)
        logging_output = {
            "loss": losses.detach().sum(),
            "nll_loss": nll.detach().sum(),
            "ntokens": sample["ntokens"],
            "nsentences": sample["nsentences"],
            "sample_size": sample_size,
        }
        if self.report_accuracy:
            logging_output["n_correct"] = tokens.logits.argmax(-1).eq(tokens.target).sum()
            logging_output["total"] = len(tokens.target)
        return losses.sum() if reduce else losses, sample_size, logging_output

    def kept(self, losses: Tensor, update_num: int, doubled: bool) -> Tensor | None:
        """Indices of the kept tokens; of a doubled batch the first half decides for both."""
        if not doubled:
            return kept_tokens(losses, self.drops, update_num)
        half = len(losses) // 2
        kept = kept_tokens(losses[:half], self.drops, update_num)
        return None if kept is None else torch.cat([kept, kept + half])

    def extra_losses(self, tokens: SupervisedTokens, doubled: bool) -> Tensor | float:
        """[M], what is added to each token's loss after the drops were decided; here R-Drop's divergence."""
        if not doubled:
            return 0.0
        divergence = symmetric_kl(*tokens.logits.chunk(2)).repeat(2)
        if tokens.weight is not None:
            divergence = divergence * tokens.weight
        return self.reg_alpha / 2 * divergence  # each pair stands twice in the sum

    @staticmethod
    def reduce_metrics(logging_outputs: Sequence[Mapping[str, Any]]) -> None:
        """Log the loss and the negative log-likelihood over the sample size (so per row with
        `--sentence-avg`), both base e, `ppl = e^nll_loss` (the original took 2^nll_loss), and the accuracy in
        percent of the supervised tokens, dropped ones included."""
        sums = {
            key: sum(log.get(key, 0) for log in logging_outputs)
            for key in ("loss", "nll_loss", "sample_size", "n_correct", "total")
        }
        size = sums["sample_size"]
        if size > 0:
            metrics.log_scalar("loss", sums["loss"] / size, size, round=3)
            metrics.log_scalar("nll_loss", sums["nll_loss"] / size, size, round=3)
            metrics.log_derived(
                "ppl", lambda meters: utils.get_perplexity(meters["nll_loss"].avg, base=math.e)
            )
        if sums["total"] > 0:
            metrics.log_scalar("accuracy", 100.0 * sums["n_correct"] / sums["total"], sums["total"], round=3)

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        return True


@dataclass
class AdjustLabelSmoothedEncouragingLossConfig(AdjustLabelSmoothedCrossEntropyConfig):
    log_end: float = field(
        default=0.75, metadata={"help": "probability from which the bonus grows linearly; 1: never"}
    )
    drop_best_ratio: float = field(
        default=0.0, metadata={"help": "share of the tokens left with the smallest losses to leave out"}
    )
    drop_best_after: int = field(
        default=0, metadata={"help": "leave the best out only after this many updates"}
    )


@register_criterion(
    "adjust_label_smoothed_encouraging_loss", dataclass=AdjustLabelSmoothedEncouragingLossConfig
)
class AdjustLabelSmoothedEncouragingLossCriterion(AdjustLabelSmoothedCrossEntropyCriterion):
    """The cross entropy plus a bonus for what is already classified well; the logged nll stays as it is.

    Raises ValueError, besides the cases of its base, for a `log_end` outside of (0, 1].
    """

    def __init__(self, cfg: AdjustLabelSmoothedEncouragingLossConfig, task: Any) -> None:
        super().__init__(cfg, task)
        if not 0 < cfg.log_end <= 1:
            raise ValueError(f"--log-end {cfg.log_end}: expected a probability above 0 and at most 1")
        self.log_end = cfg.log_end
        self.drops.append(checked_drop("--drop-best-ratio", cfg.drop_best_ratio, cfg.drop_best_after, True))

    def extra_losses(self, tokens: SupervisedTokens, doubled: bool) -> Tensor | float:
        return super().extra_losses(tokens, doubled) + encouragement(tokens, self.epsilon, self.log_end)


def checked_drop(flag: str, ratio: float, after: int, keep_largest: bool) -> Drop:
    if not 0 <= ratio < 1:
        raise ValueError(f"{flag} {ratio}: expected a share from 0 to below 1")
    return Drop(ratio, after, keep_largest)
