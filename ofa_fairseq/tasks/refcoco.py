"""Visual grounding: `[image:picture] which region does the text " [text:phrase] " describe? -> [box:region]`."""

from dataclasses import dataclass, field
from pathlib import Path

from fairseq.tasks import register_task

from ..data.boxes import BoxFrame, box_text, parse_box
from ..data.example import Example
from ..data.text_normalize import pre_caption
from ..data.tsv import TsvFile
from ..generation.answer_space import AnswerSpace
from ..metrics.row_metrics import RowMetric, row_metric
from .ofa_task import OFATask
from .options import OFATaskConfig


@dataclass
class RefcocoConfig(OFATaskConfig):
    """Options of grounding."""

    eval_acc: bool = field(default=False, metadata={"help": "generate in validation and log the accuracy"})
    max_image_size: int = field(
        default=512, metadata={"help": "what the last bin stands for, in pixels of the resized picture"}
    )
    keep_phrase: bool = field(
        default=False,
        metadata={"help": "take phrases as they are (releases lower-case them and turn - and / into spaces)"},
    )


@register_task("refcoco", dataclass=RefcocoConfig)
class RefcocoTask(OFATask):
    """The box of what a phrase names; scored by Acc@0.5, with exactly four bins as output.

    Of a phrase the first `--max-src-length` words are used. In other splits than training the box may be empty: the
    row is then left out of scores.
    """

    instruction_name = "refcoco"
    columns = ("id", "picture", "phrase", "region")
    score_name = "score"
    cfg: RefcocoConfig

    def example(self, row: dict[str, str], split: str, root: Path) -> Example:
        """See `OFATask.example`."""
        text, region = row["phrase"], row["region"].strip()
        phrase = text.strip() if self.cfg.keep_phrase else pre_caption(text, self.cfg.max_src_length)
        if not phrase:
            raise ValueError("the phrase is empty")
        picture = self.picture(row["picture"], root)
        values: dict = {"phrase": phrase}
        references = []
        if region or split == "train":
            box, frame = parse_box(region, picture.size), self.box_frame(picture.size)
            values["region"] = frame.quantize(box)
            references = [box_text(frame.to_bins(box))]
        return self.make_example(row["id"], values, [picture], learn=bool(references), references=references)

    def prepare_split(self, split: str, rows: TsvFile) -> None:
        """Raises ValueError if bins don't reach to a picture's end; a checkpoint may have brought the options."""
        if self.cfg.patch_image_size > self.cfg.max_image_size:
            raise ValueError(
                f"--max-image-size {self.cfg.max_image_size} is smaller than --patch-image-size"
                f" {self.cfg.patch_image_size}: bins would not reach to the picture's end"
            )

    def box_frame(self, size: tuple[int, int]) -> BoxFrame:
        """How boxes in a picture of this size become bins."""
        width, height = size
        return BoxFrame(width, height, self.cfg.patch_image_size, self.cfg.max_image_size, self.cfg.num_bins)

    def answer_space(self) -> AnswerSpace | None:
        """Four bins; training is not restricted, as released."""
        return self.box_space()

    def validation_metric(self) -> RowMetric | None:
        """Acc@0.5 with `--eval-acc`."""
        return row_metric("box_accuracy") if self.cfg.eval_acc else None
