"""Visual entailment: `[image:picture] does the image describe " [text:hypothesis] "? -> [label:relation]`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional

from fairseq.tasks import register_task

from ..data.example import Example
from ..data.text_normalize import pre_caption
from ..instruction import RELEASED, Instruction, parse
from ..metrics.row_metrics import RowMetric, row_metric
from .answer_task import AnswerTask, AnswerTaskConfig

ANSWERS = {"contradiction": "no", "entailment": "yes", "neutral": "maybe"}


@dataclass
class SnliVeConfig(AnswerTaskConfig):
    """Options of entailment."""

    ans2label_dict: Optional[str] = field(
        default='{"no": 0, "yes": 1, "maybe": 2}', metadata={"help": "the answers as JSON"}
    )
    add_caption: bool = field(
        default=False, metadata={"help": "the premise is the picture and the caption column's text"}
    )
    keep_text: bool = field(
        default=False,
        metadata={"help": "take texts as they are (releases lower-case them and turn - and / into spaces)"},
    )


@register_task("snli_ve", dataclass=SnliVeConfig)
class SnliVeTask(AnswerTask):
    """Whether a sentence follows from a picture (yes), contradicts it (no), or neither (maybe).

    Of each text the first `--max-src-length` words are used. In other splits than training the label may be empty: the
    row is then left out of scores.
    """

    instruction_name = "snli_ve"
    columns = ("id", "picture", "hypothesis", "caption", "relation")
    answer_slot = "relation"
    score_name = "snli_score"
    cfg: SnliVeConfig

    def build_instruction(self) -> Instruction:
        """With `--add-caption`, the one with a text premise."""
        return parse(RELEASED["snli_ve_caption" if self.cfg.add_caption else "snli_ve"])

    def example(self, row: dict[str, str], split: str, root: Path) -> Example:
        """See `OFATask.example`."""
        label = row["relation"].strip()
        if label not in ANSWERS and (label or split == "train"):
            raise ValueError(f"the label {label!r}: expected one of {', '.join(ANSWERS)}")
        answers = self.best_answer(ANSWERS.get(label, ""), split)
        hypothesis = self._text(row["hypothesis"])
        if not hypothesis:
            raise ValueError("the hypothesis is empty")
        values = {
            "hypothesis": hypothesis,
            "caption": self._text(row["caption"]),
            "relation": answers.best,
        }
        return self.make_example(
            row["id"],
            values,
            [self.picture(row["picture"], root)],
            self.cfg.prompt_type,
            learn=answers.learnable,
            references=answers.texts,
            answers=self.trie,
        )

    def _text(self, text: str) -> str:
        return text.strip() if self.cfg.keep_text else pre_caption(text, self.cfg.max_src_length)

    def validation_metric(self) -> RowMetric | None:
        """The share of right answers."""
        return row_metric("accuracy")
