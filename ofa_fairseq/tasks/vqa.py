"""Visual question answering: `[image:picture] [text:question] -> [text:answer]`."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional

from fairseq.tasks import register_task

from ..data.example import Example
from ..data.text_normalize import pre_question, split_references
from ..instruction import RELEASED, Instruction, parse
from ..metrics.row_metrics import RowMetric, row_metric
from .answer_task import AnswerTask, AnswerTaskConfig


@dataclass
class VqaConfig(AnswerTaskConfig):
    """Options of question answering."""

    max_object_length: int = field(default=30, metadata={"help": "number of object labels kept"})
    add_object: bool = field(default=False, metadata={"help": "append the object labels to the question"})
    unconstrained_training: bool = field(
        default=False, metadata={"help": "free answers, even if a list of answers is given"}
    )
    keep_question: bool = field(
        default=False,
        metadata={
            "help": "take questions as they are (releases lower-case them and turn - and / into spaces)"
        },
    )
    eval_args: Optional[str] = field(
        default='{"beam": 5, "unnormalized": true, "temperature": 1.0}',
        metadata={"help": "JSON with generation options for validation by beam search"},
    )


@register_task("vqa", dataclass=VqaConfig)
class VqaTask(AnswerTask):
    """Answers to questions about a picture.

    The answer column holds plain answers, or answers with confidences (`0.6|!+cat&&1.0|!+dog`), scored by the official
    soft accuracy. The one of highest confidence is learnt (with an answer list: of those in it), weighted by it.
    """

    instruction_name = "vqa"
    columns = ("id", "picture", "question", "answer", "objects", "caption")  # captions are not used
    optional_columns = 2
    answer_slot = "answer"
    score_name = "vqa_score"
    zero_shot_is_free = True
    cfg: VqaConfig

    def build_instruction(self) -> Instruction:
        """With `--add-object`, the one that lists objects."""
        return parse(RELEASED["vqa_objects" if self.cfg.add_object else "vqa"])

    def layouts(self) -> list[Sequence[str]]:
        """With `--add-object`, those that have objects."""
        return [names for names in super().layouts() if "objects" in names or not self.cfg.add_object]

    @property
    def answers(self) -> list[str] | None:
        """None with `--unconstrained-training`."""
        return None if self.cfg.unconstrained_training else super().answers

    def example(self, row: dict[str, str], split: str, root: Path) -> Example:
        """See `OFATask.example`.

        Without an answer that may be learnt, a training row is bad; in other splits it is scored all the same.
        """
        answers = self.best_answer(row["answer"], split)
        values = {"question": self._question(row["question"]), "answer": answers.best}
        if self.cfg.add_object:
            labels = split_references(row["objects"])[: self.cfg.max_object_length]
            values["objects"] = " ".join(labels)
        return self.make_example(
            row["id"],
            values,
            [self.picture(row["picture"], root)],
            self.cfg.prompt_type,
            learn=answers.learnable,
            weight=answers.confidence,
            references=answers.texts,
            answers=self.trie,
        )

    def _question(self, text: str) -> str:
        question = text.strip() if self.cfg.keep_question else pre_question(text, self.cfg.max_src_length)
        if not question.strip("? "):
            raise ValueError("the question is empty")
        return question if question.endswith("?") else question + "?"

    def validation_metric(self) -> RowMetric | None:
        """The confidence of the answer that is given."""
        return row_metric("vqa")


@register_task("vqa_gen", dataclass=VqaConfig)
class VqaGenTask(VqaTask):
    """The released name of `vqa`."""
