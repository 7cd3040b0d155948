"""A task that is written as one line: `--instruction '[image:photo] ... -> [text:answer]' --columns id,photo,...`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

from fairseq.tasks import register_task

from ..data.boxes import BoxFrame, box_text, parse_box
from ..data.example import Example
from ..data.image_transforms import Picture
from ..data.text_normalize import REFERENCE_SEPARATOR, pre_caption, strip_punctuation
from ..data.tsv import TsvFile
from ..generation.answer_space import AnswerSpace, TokenRange
from ..instruction import TEXT_TYPES, Instruction, Slot, parse
from ..metrics.row_metrics import BOX_METRICS, TEXT_METRICS, RowMetric, row_metric
from ..metrics.vqa_accuracy import with_answer, without_confidence
from ..vocabulary import parse_codes
from .answer_task import AnswerTask, AnswerTaskConfig


@dataclass
class InstructConfig(AnswerTaskConfig):
    """Options of a task that is written as one line."""

    instruction: str = field(
        default="", metadata={"help": "the task, e.g. '[image:photo] what is it? -> [text:name]'"}
    )
    columns: str = field(
        default="", metadata={"help": "names of the selected columns, e.g. id,photo,name; one must be id"}
    )
    answers: Optional[str] = field(
        default=None, metadata={"help": "file of the allowed answers, as --ans2label-file"}
    )
    metric: Optional[str] = field(
        default=None,
        metadata={
            "help": "score outputs in validation: accuracy, vqa, cider, rouge_l, box_accuracy, box_iou, or your own"
            " package.module:function; logged as score"
        },
    )
    prompt_type: str = field(
        default="none", metadata={"help": "what the decoder starts with: none, src or prev_output"}
    )
    max_image_size: Optional[int] = field(
        default=None,
        metadata={"help": "boxes: what the last bin stands for, in pixels (default: --patch-image-size)"},
    )
    normalize_text: bool = field(
        default=False,
        metadata={
            "help": "prepare source texts as releases do: lower case, - and / as spaces, --max-src-length words"
        },
    )


@register_task("instruct", dataclass=InstructConfig)
class InstructTask(AnswerTask):
    """Any task that one instruction says; its slots are filled from the columns of the same names.

    A column holds, by the type of its slot: a picture (base64 or a path); text; a label; a box `x0,y0,x1,y1` in pixels
    of the first picture; image codes between spaces. The column of a text or label that is the target's one slot may
    hold several references, `a&&b`, also with confidences, `0.6|!+a&&1.0|!+b`: the one of highest confidence (the first
    of equals) is learnt, all count when outputs are scored, with the text around the slot.
    """

    cfg: InstructConfig

    def __init__(self, cfg: InstructConfig) -> None:
        self._may_lack_options = True  # in fairseq-generate, until it has read the checkpoint
        super().__init__(cfg)
        self._may_lack_options = False

    def use_options(self) -> None:
        """See `OFATask.use_options`; for fairseq-generate a checkpoint may bring instruction and columns."""
        cfg = self.cfg
        cfg.ans2label_file = cfg.answers or cfg.ans2label_file
        if not (cfg.instruction and cfg.columns):
            if self._may_lack_options and self.generating and not cfg.zero_shot:
                return
            raise ValueError("task instruct needs --instruction and --columns, see docs/add_a_task.md")
        super().use_options()
        if self.answers is not None and not self.answer_slot:
            raise ValueError("--answers: expected a target with one slot, text or label")
        if cfg.metric in BOX_METRICS and self._only_slot != "box":
            raise ValueError(f"--metric {cfg.metric}: expected a target that is one box slot")
        if cfg.metric in TEXT_METRICS and self._only_slot == "box":
            raise ValueError(
                f"--metric {cfg.metric}: the target is a box, expected {' or '.join(BOX_METRICS)}"
            )
        self._validation_metric = row_metric(cfg.metric) if cfg.metric else None
        wanted = None if self.root is None else self.root.checkpoint.best_checkpoint_metric
        if wanted == self.score_name and not (cfg.metric or self.generating):
            raise ValueError(f"--best-checkpoint-metric {wanted} needs --metric")

    @property
    def columns(self) -> tuple[str, ...]:  # type: ignore[override]
        """The names given.

        Raises:
            ValueError: if a name is there twice, or none is id.
        """
        names = tuple(name.strip() for name in self.cfg.columns.split(","))
        if len(set(names)) < len(names) or "id" not in names:
            raise ValueError(f"--columns {self.cfg.columns}: expected different names, one of them id")
        return names

    def build_instruction(self) -> Instruction:
        """The one given."""
        return parse(self.cfg.instruction)

    @property
    def answer_slot(self) -> str:  # type: ignore[override]
        """The text or label that is the target's one slot, or nothing."""
        slots = self.instruction.slots("target")
        return slots[0].name if len(slots) == 1 and slots[0].type in TEXT_TYPES else ""

    def example(self, row: dict[str, str], split: str, root: Path) -> Example:
        """See `OFATask.example`.

        In a split that is neither train nor valid an empty target column makes a row that is not scored.
        """
        source, target = self.instruction.slots("source"), self.instruction.slots("target")
        pictures = [self.picture(row[slot.name], root) for slot in source if slot.type == "image"]
        values = {slot.name: self._value(slot, row, pictures) for slot in source if slot.type != "image"}
        if self.cfg.normalize_text:
            values |= {
                slot.name: pre_caption(row[slot.name], self.cfg.max_src_length)
                for slot in source
                if slot.type in TEXT_TYPES
            }
        missing = [slot.name for slot in target if not row[slot.name].strip()]
        if missing and split.startswith(("train", "valid")):
            raise ValueError(f"the column {missing[0]} is empty")
        more = {"learn": False} if missing else self._target(target, row, pictures, values, split)
        return self.make_example(row["id"], values, pictures, self.cfg.prompt_type, answers=self.trie, **more)

    def _target(
        self,
        slots: tuple[Slot, ...],
        row: dict[str, str],
        pictures: list[Picture],
        values: dict[str, Any],
        split: str,
    ) -> dict[str, Any]:
        """Fills `values`; returns other fields of the example."""
        if self.answer_slot:
            answers = self.best_answer(row[self.answer_slot], split)
            values[self.answer_slot] = answers.best
            return {
                "references": [self._filled(text) for text in answers.texts],
                "weight": answers.confidence,
                "learn": answers.learnable,
            }
        values |= {slot.name: self._value(slot, row, pictures) for slot in slots}
        for slot in slots:
            if slot.type in TEXT_TYPES and REFERENCE_SEPARATOR in row[slot.name]:
                raise ValueError(
                    f"the column {slot.name} holds several texts, expected one beside other slots"
                )
        if self._only_slot == "box":
            box = parse_box(row[slots[0].name], pictures[0].size)
            return {"references": [box_text(self._frame(pictures).to_bins(box))]}
        code_target = any(slot.type == "codes" for slot in slots)
        return {"references": [self.instruction.fill("target", values).strip()], "code_target": code_target}

    @property
    def _only_slot(self) -> str:
        """The type of the slot that is the whole target, without any text around it, or nothing."""
        target = self.instruction.target
        return target[0].type if len(target) == 1 and isinstance(target[0], Slot) else ""

    def _filled(self, text: str) -> str:
        """A reference of the target's one slot as outputs are compared with it; with its confidence where that counts.

        fairseq-generate keeps it for whichever `--scoring` it is asked for.
        """
        weighs = self.cfg.metric == "vqa" or self.generating
        return with_answer(self._as_output, text) if weighs else self.clean_reference(text)

    def _as_output(self, answer: str) -> str:
        return self.clean_output(self.instruction.fill("target", {self.answer_slot: answer.strip()}))

    def _value(self, slot: Slot, row: dict[str, str], pictures: list[Picture]) -> Any:
        text = row[slot.name]
        if slot.type == "box":
            if not pictures:
                raise ValueError(f"{slot} needs a picture that it is a box of")
            return self._frame(pictures).quantize(parse_box(text, pictures[0].size))
        if slot.type == "codes":
            try:
                return parse_codes(text)
            except ValueError as error:
                raise ValueError(f"{slot}: {error}") from None
        return text

    def _frame(self, pictures: list[Picture]) -> BoxFrame:
        width, height = pictures[0].size
        side = self.cfg.patch_image_size
        return BoxFrame(width, height, side, self.cfg.max_image_size or side, self.cfg.num_bins)

    def answer_space(self) -> AnswerSpace | None:
        """The answers; four bins where the target is a box; codes where it is codes."""
        vocabulary = self.vocabulary
        if self._only_slot == "box":
            return self.box_space()
        if self._only_slot == "codes":
            return TokenRange(*vocabulary.code_range, len(vocabulary))
        return super().answer_space()

    def prepare_split(self, split: str, rows: TsvFile) -> None:
        """For CIDEr-D, count the references' n-grams."""
        if self.cfg.metric == "cider" and split != "train" and self.answer_slot:
            self._validation_metric = self.cider(rows)

    def reference_column(self) -> str | None:
        """The answer's, where that is the target's one slot."""
        return self.answer_slot or None

    def clean_reference(self, text: str) -> str:
        """Without a confidence, with the text around the slot."""
        return self._as_output(without_confidence(text))

    def clean_output(self, text: str) -> str:
        """Without punctuation where CIDEr-D reads it."""
        return strip_punctuation(text) if self.cfg.metric == "cider" else text.strip()

    def validation_metric(self) -> RowMetric | None:
        """`--metric`."""
        return self._validation_metric
