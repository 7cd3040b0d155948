"""What all OFA tasks share: vocabulary, data, generation and validation.

A task adds its instruction, what its columns are called, which answers are allowed, and its metric: see `caption.py`
for a whole one. The way of a row: TSV row -> `example` -> collate -> model -> criterion or generator -> `decode` ->
metric.
"""

import inspect
import logging
import math
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from fairseq import metrics
from fairseq.data import Dictionary
from omegaconf import DictConfig, open_dict
from PIL import Image
from torch import Tensor, nn

from ..data.bad_rows import BadRows
from ..data.example import DEFAULT_BATCH_SIZE, Batch, Example, ExampleDataset
from ..data.image_transforms import Picture, SquareResize, read_picture
from ..data.text_normalize import REFERENCE_SEPARATOR, split_references
from ..data.tsv import RowError, TsvFile, parse_columns
from ..generation.answer_space import AnswerSpace, TokenRange
from ..instruction import RELEASED, Instruction, Value, parse
from ..metrics.cider import CiderD, DocumentFrequencies
from ..metrics.row_metrics import RowMetric
from ..models.checkpoint import prepare_for_averaging
from ..optim import training_length
from ..vocabulary import Vocabulary
from .configuration import adjust_run, adopt_options, make_paths_absolute, root_of
from .generating_task import GeneratingTask
from .options import OFATaskConfig
from .picture_log import PictureLog
from .row_hints import with_hint

logger = logging.getLogger(__name__)

# What the model takes from the task, if it is not told itself.
OPTIONS_OF_MODEL_TOO = (
    *("max_source_positions", "max_target_positions", "orig_patch_image_size"),
    "code_image_size",  # of tasks that have it
)


class OFATask(GeneratingTask):
    """Base of the tasks.

    Class attributes that a task sets:
        instruction_name: its row in `instruction.RELEASED`.
        columns: what the selected columns hold, in order.
        optional_columns: so many of the last ones may be missing (see `layouts`).
        score_name: what the validation score is called in logs and for `--best-checkpoint-metric`.
    """

    instruction_name: str
    columns: Sequence[str]
    optional_columns: int = 0
    score_name: str = "score"
    cfg: OFATaskConfig

    def __init__(self, cfg: OFATaskConfig) -> None:
        super().__init__(cfg)
        self._vocabulary: Vocabulary | None = None
        self._pictures = PictureLog(self.root)
        self.num_updates = 0
        self.use_options()
        self.bad_rows = BadRows(self._bad_rows_path(), cfg.strict_data)
        # A mistake in them should not wait for the first validation.
        self._eval_options()
        self.scst_options()
        criterion = str(getattr(self.root.criterion, "_name", "")) if self.root is not None else ""
        if cfg.scst and ("cross_entropy" in criterion or "label_smoothed" in criterion):
            raise ValueError(
                "--scst is for --criterion scst_reward_criterion: others would learn all references as one text"
            )

    @classmethod
    def setup_task(cls, cfg: Any, **kwargs: Any) -> "OFATask":
        """Called by fairseq. The vocabulary is read later, since a checkpoint may say where it is."""
        adjust_run(root_of(cfg))
        make_paths_absolute(cfg)
        return cls(cfg)

    def __getstate__(self) -> dict[str, Any]:
        """For spawned data workers: without what only the main process has."""
        own: dict[str, Any] = {
            "state": None,
            "datasets": {},
            "dataset_to_epoch_iter": {},
            "_generators": {},
            "root": None,
            "_pictures": None,
        }
        return vars(self) | own

    # -- what a task defines --------------------------------------------------------------------------

    def build_instruction(self) -> Instruction:
        """The task's instruction; overridden where options choose between several."""
        return parse(RELEASED[self.instruction_name])

    def example(self, row: dict[str, str], split: str, root: Path) -> Example:
        """Make an example of a row, given by column name; `root` is the folder of its file.

        Raises:
            ValueError: for a row that can't be used; the message is the reason.
        """
        raise NotImplementedError

    def answer_space(self) -> AnswerSpace | None:
        """What generated outputs may be (None: anything)."""
        if self.cfg.constraint_range is None:
            return None
        return TokenRange.parse(self.cfg.constraint_range, len(self.dictionary))

    def box_space(self) -> TokenRange:
        """Outputs that are a box: exactly four bins."""
        return TokenRange(*self.vocabulary.bin_range, len(self.vocabulary), length=4, eos=self.vocabulary.eos)

    def reference_column(self) -> str | None:
        """The column that holds a row's references as text, if one does."""
        return None

    def clean_reference(self, text: str) -> str:
        """One reference of that column as it is scored."""
        return self.clean_output(text)

    def references(self, rows: TsvFile) -> Iterator[tuple[str, list[str]]]:
        """Id and references of each row, for metrics that count over all of them.

        Rows that can't be read are left out; the dataset lists them.

        Raises:
            ValueError: for a task that has no `reference_column`.
        """
        name = self.reference_column()
        if name is None:
            raise ValueError(
                f"the references of the task {self.cfg._name} are no text in a column to count words in"
            )
        column, name_column = self.columns.index(name), self.columns.index("id")
        for i in range(len(rows)):
            with suppress(RowError):
                row = rows[i]
                yield row[name_column], [self.clean_reference(text) for text in split_references(row[column])]

    def cider(self, rows: TsvFile) -> RowMetric:
        """CIDEr-D with document frequencies of all references in these rows."""
        references = [texts for _, texts in self.references(rows)]
        return CiderD(DocumentFrequencies.from_references(references)).score

    def training_references(self) -> list[list[str]]:
        """Of each id (in captioning a picture's) in all training files; see `references`."""
        found: dict[str, list[str]] = {}
        for path in dict.fromkeys(self._files("train")):
            for row_id, texts in self.references(self._open(path)):
                found.setdefault(row_id, []).extend(filter(None, texts))
        return [texts for texts in found.values() if texts]

    def validation_metric(self) -> RowMetric | None:
        """Scores outputs against `Example.references` in validation (None: nothing is generated there)."""
        return None

    def clean_output(self, text: str) -> str:
        """An output as it is scored."""
        return text.strip()

    def outputs(self, tokens: Sequence[Tensor]) -> list[Any]:
        """Outputs as rewards take them."""
        return [self.clean_output(self.decode(output)) for output in tokens]

    # -- vocabulary -----------------------------------------------------------------------------------

    @property
    def vocabulary(self) -> Vocabulary:
        """Read on first use, into the dictionary that fairseq may already hold."""
        if self._vocabulary is None:
            cfg = self.cfg
            self._vocabulary = Vocabulary.load(
                cfg.bpe_dir,
                cfg.bpe,
                cfg.code_dict_size,
                cfg.num_bins,
                self.dictionary,
                cfg.sentencepiece_model or None,
            )
            logger.info("vocabulary: %d entries", len(self._vocabulary))
        return self._vocabulary

    @property
    def source_dictionary(self) -> Dictionary:
        """fairseq's dictionary; source and target share one."""
        return self.dictionary

    @property
    def target_dictionary(self) -> Dictionary:
        """See `source_dictionary`."""
        return self.dictionary

    def build_bpe(self, args: Any) -> Any:
        """The vocabulary's own encoder and decoder, for fairseq-generate; its `--bpe` options are not needed."""
        return self.vocabulary.bpe

    def build_tokenizer(self, args: Any) -> None:
        """Nothing is tokenized before the subword model."""
        return None

    # -- model ----------------------------------------------------------------------------------------

    def build_model(self, cfg: Any, from_checkpoint: bool = False) -> nn.Module:
        """Build the model; from a checkpoint, first take over the options that its task was trained with."""
        if from_checkpoint and not self.cfg.zero_shot:
            saved = cfg if isinstance(cfg, Namespace) else getattr(root_of(cfg), "task", None)
            adopt_options(self.cfg, saved)
            self.use_options()
        assert len(self.vocabulary) == len(self.dictionary)
        with open_dict(cfg) if isinstance(cfg, DictConfig) else nullcontext():
            for name in OPTIONS_OF_MODEL_TOO:
                # YAML with a preset's name has no fields of its own.
                if getattr(cfg, name, None) is None and hasattr(self.cfg, name):
                    setattr(cfg, name, getattr(self.cfg, name))
        model = super().build_model(cfg, from_checkpoint)
        if self.root is not None and self.root.ema.store_ema:
            prepare_for_averaging(model)
        return model

    def use_options(self) -> None:
        """Make what follows from the options: at first, and anew where a checkpoint has brought others.

        Raises:
            ValueError: options that make no sense.
        """
        self.instruction = self.build_instruction()
        self.instruction.check(self.columns)

    # -- data -----------------------------------------------------------------------------------------

    def has_sharded_data(self, split: str) -> bool:
        """Several training files: fairseq then loads one an epoch."""
        return split == "train" and len(self._files("train")) > 1

    def _files(self, split: str) -> list[str]:
        """The files of a split: all but the last for training, else the last.

        Raises:
            ValueError: if there are too few.
        """
        files = [f for f in (self.cfg.data or "").split(",") if f]
        if not files or (split == "train" and len(files) < 2):
            raise ValueError(
                f"data {self.cfg.data!r}: expected comma-separated TSV files, the last one for validation"
                " (train.tsv,valid.tsv); a single file only for fairseq-generate"
            )
        return files[:-1] if split == "train" else files[-1:]

    def _open(self, path: str) -> TsvFile:
        selected = parse_columns(self.cfg.selected_cols)
        rows = TsvFile(path, selected)
        if self._layout(rows) is None:
            layouts = self.layouts()
            counts = sorted(map(len, layouts))
            wanted = f"{counts[0]} to {counts[-1]}" if counts[1:] else str(counts[0])
            raise ValueError(
                f"{path} has {rows.num_columns} columns between tabs, {self._num_selected(rows)} of them selected"
                f" (--selected-cols {self.cfg.selected_cols}): task {self.cfg._name} needs {wanted}"
                f" ({', '.join(layouts[0])})"
            )
        return rows

    def layouts(self) -> list[Sequence[str]]:
        """The columns that rows may have, the most first; no two of a length."""
        most = len(self.columns)
        return [self.columns[:count] for count in range(most, most - self.optional_columns - 1, -1)]

    def _num_selected(self, rows: TsvFile) -> int:
        selected = parse_columns(self.cfg.selected_cols)
        return rows.num_columns if selected is None else len(selected)

    def _layout(self, rows: TsvFile) -> Sequence[str] | None:
        """The one of `layouts` that a file has."""
        count = self._num_selected(rows)
        return next((columns for columns in self.layouts() if len(columns) == count), None)

    def load_dataset(
        self, split: str, combine: bool = False, task_cfg: Any = None, epoch: int = 1, **kwargs: Any
    ) -> None:
        """Open the file of a split (and epoch)."""
        files = self._files(split)
        rows = self._open(files[(epoch - 1) % len(files)])
        self.prepare_split(split, rows)
        self.datasets[split] = ExampleDataset(
            rows,
            RowBuilder(self, split, rows.path.parent, self._layout(rows) or ()),
            self.dictionary.pad(),
            shuffle=split == "train",
            bad_rows=self.bad_rows,
            block=self.cfg.rows_per_picture,
        )

    def prepare_split(self, split: str, rows: TsvFile) -> None:
        """Hook: look at a split's file before it is read."""

    def _bad_rows_path(self) -> Path:
        if self.cfg.bad_rows:
            return Path(self.cfg.bad_rows)
        folder = None
        if self.root is not None:
            folder = self.root.common_eval.results_path if self.generating else self.root.checkpoint.save_dir
        return Path(folder or ".") / "bad_rows.tsv"

    def get_batch_iterator(self, dataset: ExampleDataset, *args: Any, **kwargs: Any) -> Any:
        """fairseq's iterator; for training, also tells the schedule how long an epoch is."""
        iterator = super().get_batch_iterator(dataset, *args, **kwargs)
        if dataset.shuffle:
            size = kwargs.get("max_sentences") or DEFAULT_BATCH_SIZE
            shards = kwargs.get("num_shards", 1)
            # fairseq leaves out the last batch of each process then, full or not.
            left_out = int(kwargs.get("skip_remainder_batch", False))
            rows = [len(self._open(file)) for file in self._files("train")]
            training_length.announce([math.ceil(math.ceil(n / size) / shards) - left_out for n in rows])
        return iterator

    def make_example(
        self,
        id: str,
        values: Mapping[str, Value],
        pictures: Sequence[Picture] = (),
        prompt_type: str = "none",
        learn: bool = True,
        **more: Any,
    ) -> Example:
        """An example from the values of the instruction's slots.

        Args:
            id: the row's name in outputs.
            values: for `Instruction.encode_source` and `encode_target`.
            pictures: none, one or two, from `picture`.
            prompt_type: what the decoder starts with before the target: `none`, `src` (the source again) or
                `prev_output` (the source without its end).
            learn: False for a row without a target.
            more: other fields of `Example`.

        Raises:
            ValueError: if source or target is longer than its positions.
        """
        v = self.vocabulary
        source = [v.bos, *self.instruction.encode_source(values, v), v.eos]
        prompt = {"none": source[:1], "src": source, "prev_output": source[:-1]}[prompt_type]
        answer = self.cut_target(self.instruction.encode_target(values, v)) if learn else []
        limits = [("source", len(source), self.cfg.max_source_positions)]
        if not more.get("code_target"):  # codes have positions of their own
            limits.append(("target", len(prompt) + len(answer), self.cfg.max_target_positions))
        for name, length, limit in limits:
            if length > limit:
                raise ValueError(f"the {name} has {length} tokens, at most {limit} fit")
        images = [picture.pixels for picture in pictures]
        return Example(
            id=id,
            source=torch.tensor(source),
            target=torch.tensor([v.pad] * (len(prompt) - 1) + ([*answer, v.eos] if learn else [v.pad])),
            prev_output=torch.tensor([*prompt, *answer]),
            prompt=torch.tensor(prompt[1:]) if len(prompt) > 1 else None,
            image=images[0] if images else None,
            image_2=images[1] if len(images) > 1 else None,
            **more,
        )

    def picture(self, value: str, root: Path) -> Picture:
        """The picture of a column; raises ImageError. Rows that follow one another share it."""
        return read_picture(value, root, self.transform)

    def cut_target(self, tokens: list[int]) -> list[int]:
        """Hook: a target of limited length."""
        return tokens

    @property
    def transform(self) -> SquareResize:
        """From a picture to the model's input."""
        return _square_resize(self.cfg.patch_image_size, self.cfg.imagenet_default_mean_and_std)

    def max_positions(self) -> tuple[int, int]:
        """Longest source and target, in tokens."""
        return self.cfg.max_source_positions, self.cfg.max_target_positions

    # -- training and validation ----------------------------------------------------------------------

    def train_step(
        self,
        sample: Batch,
        model: Any,
        criterion: Any,
        optimizer: Any,
        update_num: int,
        ignore_grad: bool = False,
        **extra: Any,
    ) -> tuple[Tensor, Any, dict[str, Any]]:
        """As stock's, but criterions see the number of updates (drop-worst starts late)."""
        self.num_updates = update_num + 1
        model.train()
        model.set_num_updates(update_num)
        device = sample["target"].device.type
        # Ours drop their worst tokens only after some updates; stock criterions know nothing of updates.
        counted = {"update_num": update_num} if takes_update_num(criterion) else {}
        with torch.autocast(device, enabled=self._autocast()):
            loss, sample_size, logging_output = criterion(model, sample, **counted)
        if ignore_grad:
            loss = loss * 0
        optimizer.backward(loss)
        logging_output["skipped_rows"] = sample.get("skipped_rows", 0)
        return loss, sample_size, logging_output

    def _autocast(self) -> bool:
        return self.root is not None and bool(self.root.common.amp)

    def valid_step(
        self, sample: Batch, model: nn.Module, criterion: nn.Module, ema_model: nn.Module | None = None
    ) -> tuple[Tensor, Any, dict[str, Any]]:
        """Loss, and whatever `validate` adds; with `--uses-ema` on the averaged weights."""
        model = model if ema_model is None else ema_model
        model.eval()
        with torch.no_grad():
            loss, sample_size, logging_output = criterion(model, sample)
            logging_output["skipped_rows"] = sample.get("skipped_rows", 0)
            logging_output.update(self.validate(sample, model))
        return loss, sample_size, logging_output

    def begin_valid_epoch(self, epoch: int, model: nn.Module) -> None:
        """Start a new grid of pictures."""
        self._pictures.begin()

    def post_validate(self, model: nn.Module, stats: Any, agg: Any) -> None:
        """Write the grid."""
        self._pictures.write(self.num_updates)

    def validate(self, sample: Batch, model: nn.Module) -> dict[str, float]:
        """Generate and score; the same keys for every batch. Rows without references are left out."""
        metric = self.validation_metric()
        if metric is None:
            return {}
        outputs = [self.clean_output(text) for text in self.generate_texts(sample, model)]
        self._pictures.add(self._shown(sample, self._pictures.wanted), outputs)
        rows = [(o, r) for o, r in zip(outputs, sample["references"]) if r]
        if not rows:
            return {"_score_sum": 0.0, "_score_cnt": 0}
        if self.cfg.eval_print_samples:
            logger.info("output: %s | references: %s", rows[0][0], " && ".join(rows[0][1]))
        scores = metric([output for output, _ in rows], [references for _, references in rows])
        return {"_score_sum": float(scores.sum()), "_score_cnt": len(rows)}

    def _shown(self, sample: Batch, count: int) -> list[Image.Image]:
        """What the model sees of the first `count` rows of a batch; nothing if it has no pictures."""
        inputs = sample["net_input"]
        images, rows = inputs.get("patch_images"), inputs.get("patch_rows")
        if images is None:
            return []
        images = images[:count] if rows is None else images[rows[:count]]
        return [self.transform.picture(image) for image in images.float().cpu()]

    def reduce_metrics(self, logging_outputs: list[dict[str, Any]], criterion: Any) -> None:
        """Stock's metrics, the mean score of all validation rows and the number of skipped rows."""
        super().reduce_metrics(logging_outputs, criterion)
        count = sum(log.get("_score_cnt", 0) for log in logging_outputs)
        if count:
            total = sum(log["_score_sum"] for log in logging_outputs)
            metrics.log_scalar(self.score_name, float(total) / float(count), float(count), round=4)
        skipped = sum(int(log.get("skipped_rows", 0)) for log in logging_outputs)
        if skipped:
            metrics.log_scalar_sum("skipped_rows", skipped)


class RowBuilder:
    """Names a row's columns and hands it to the task; pickles for spawned data-loading processes.

    In fairseq-generate the target becomes what an output is scored against, all of it: fairseq hands the target's text
    to the scorer (`--scoring`), and prints it (`T-` lines).
    """

    def __init__(self, task: OFATask, split: str, root: Path, columns: Sequence[str]) -> None:
        self.task, self.split, self.root, self.columns = task, split, root, columns
        self.for_scoring = task.generating

    def __call__(self, row: list[str]) -> Example:
        values = dict(zip(self.columns, row))
        try:
            example = self.task.example(values, self.split, self.root)
        except ValueError as error:
            raise ValueError(with_hint(str(error), values)) from error
        if not self.for_scoring:
            return example
        vocabulary = self.task.vocabulary
        # Never without a token: stock's default scorer crashes at an empty target.
        text = vocabulary.encode(REFERENCE_SEPARATOR.join(example.references))
        return replace(example, target=torch.tensor([*text, vocabulary.eos]))


_square_resize = cache(SquareResize)


def takes_update_num(criterion: Any) -> bool:
    """Whether a criterion wants to know the number of updates."""
    parameters = inspect.signature(getattr(criterion, "forward", criterion)).parameters.values()
    return any(p.name == "update_num" or p.kind == p.VAR_KEYWORD for p in parameters)
