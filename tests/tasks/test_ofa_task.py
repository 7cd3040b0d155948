import json
import logging
from argparse import Namespace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fairseq import checkpoint_utils, search, tasks
from fairseq.data import data_utils
from fairseq.dataclass.configs import GenerationConfig
from omegaconf import OmegaConf, open_dict
from task_builders import Run, caption_run, write_captions

from ofa_fairseq.optim import training_length
from ofa_fairseq.tasks.caption import CaptionConfig, CaptionTask
from ofa_fairseq.vocabulary import Vocabulary

SAVED = {
    "selected_cols": "0,4,2",
    "max_tgt_length": 7,
    "patch_image_size": 48,
    "data": "saved.tsv",
    "strict_data": True,
}


# Options from a checkpoint


def generating_task(**options: Any) -> CaptionTask:
    """A task as fairseq-generate makes it: nothing is known but the data and these options."""
    cfg = CaptionConfig(_name="caption", data="test.tsv", **options)
    return CaptionTask.setup_task(OmegaConf.structured(cfg))


def saved_config(digits_dir: Path, kind: str, **options: Any) -> Any:
    """The model's part of a checkpoint's configuration, in fairseq's new or old form."""
    run = caption_run("saved.tsv", digits_dir)
    options = {**SAVED, "bpe_dir": str(digits_dir), "code_dict_size": 16, "num_bins": 16, **options}
    if kind == "Namespace":
        model = {k: v for k, v in run.cfg.model.items() if not k.startswith("_") and "positions" not in k}
        return Namespace(**model, arch="ofa_nano", task="caption", **options)
    with open_dict(run.cfg):
        run.cfg.task.update(options)
    return run.cfg.model


@pytest.mark.parametrize("kind", ["DictConfig", "Namespace"])
def test_a_checkpoint_gives_what_the_command_line_left_out(kind: str, digits_dir: Path) -> None:
    task = generating_task(max_tgt_length=5)
    held_by_fairseq = task.target_dictionary
    task.build_model(saved_config(digits_dir, kind), from_checkpoint=True)
    assert (task.cfg.selected_cols, task.cfg.patch_image_size, task.cfg.bpe_dir) == (
        "0,4,2",
        48,
        str(digits_dir),
    )
    assert task.cfg.max_tgt_length == 5  # the command line's
    assert (task.cfg.data, task.cfg.strict_data) == ("test.tsv", False)  # of one run only
    assert task.transform.size == 48
    # fairseq-generate took the dictionary before it loaded the model.
    expected = Vocabulary.load(str(digits_dir), num_codes=16, num_bins=16)
    assert task.target_dictionary is held_by_fairseq is task.source_dictionary
    assert held_by_fairseq.symbols == expected.dictionary.symbols


def test_zero_shot_takes_nothing_from_the_checkpoint(digits_dir: Path) -> None:
    task = generating_task(zero_shot=True, bpe_dir=str(digits_dir), code_dict_size=16, num_bins=16)
    task.build_model(saved_config(digits_dir, "DictConfig"), from_checkpoint=True)
    assert (task.cfg.selected_cols, task.cfg.max_tgt_length, task.cfg.patch_image_size) == (None, 30, 480)


def test_building_a_model_for_training_adopts_nothing(digits_dir: Path) -> None:
    run = caption_run("a.tsv,b.tsv", digits_dir)
    run.task.build_model(saved_config(digits_dir, "DictConfig"))
    assert run.task.cfg.max_tgt_length == 30


@pytest.fixture(scope="module")
def checkpoint(digits_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with one set of weights, and another (all 0.5) as their average."""
    run = caption_run("saved.tsv", digits_dir, "--selected-cols", "0,4,2", "--max-tgt-length", "7")
    weights = run.model().state_dict()
    averaged = {k: torch.full_like(v, 0.5) if v.is_floating_point() else v for k, v in weights.items()}
    state: dict[str, Any] = {
        "cfg": OmegaConf.to_container(run.cfg),
        "args": None,
        "model": weights,
        "optimizer_history": [{"optimizer_name": "FairseqAdam", "lr_scheduler_state": {}, "num_updates": 3}],
        "extra_state": {"train_iterator": {"epoch": 1}, "ema": averaged},
    }
    path = tmp_path_factory.mktemp("checkpoint") / "model.pt"
    torch.save(state, path)
    del state["extra_state"]["ema"]
    torch.save(state, path.with_name("no_ema.pt"))
    return path


@pytest.mark.parametrize("overrides", [{}, {"max_tgt_length": 9, "data": "other.tsv"}])
def test_model_overrides_act_on_what_is_adopted(
    overrides: dict[str, Any], checkpoint: Path, digits_dir: Path
) -> None:
    task = generating_task()
    [model], _ = checkpoint_utils.load_model_ensemble([str(checkpoint)], arg_overrides=overrides, task=task)
    assert task.cfg.max_tgt_length == overrides.get("max_tgt_length", 7)
    assert task.cfg.data == "test.tsv"
    saved = torch.load(checkpoint)["model"]
    assert all(torch.equal(saved[name], value) for name, value in model.state_dict().items())


def test_fairseq_makes_the_task_from_the_checkpoint_alone(checkpoint: Path) -> None:
    _, _, task = checkpoint_utils.load_model_ensemble_and_task([str(checkpoint)], {"data": "mine.tsv"})
    assert (task.cfg.data, task.cfg.max_tgt_length) == ("mine.tsv", 7)


# Averaged weights


def test_averaged_weights_are_evaluated_on_request(checkpoint: Path, digits_dir: Path) -> None:
    run = caption_run("test.tsv", digits_dir, "--ema-eval")
    models = [run.model(), run.model()]
    run.cfg.common_eval.path = f"{checkpoint}:{checkpoint}"
    run.task.build_generator(models, GenerationConfig())
    for model in models:
        assert all((p == 0.5).all() for p in model.parameters())


def test_without_the_request_weights_stay(checkpoint: Path, digits_dir: Path) -> None:
    run = caption_run("test.tsv", digits_dir)
    model = run.model()
    run.cfg.common_eval.path = str(checkpoint)
    run.task.build_generator([model], GenerationConfig())
    assert not any((p == 0.5).all() for p in model.parameters())


def test_a_file_without_averaged_weights_is_named(checkpoint: Path, digits_dir: Path) -> None:
    run = caption_run("test.tsv", digits_dir, "--ema-eval")
    run.cfg.common_eval.path = str(checkpoint.with_name("no_ema.pt"))
    with pytest.raises(ValueError, match=r"--ema-eval: .*no_ema.pt holds no averaged weights"):
        run.task.build_generator([run.model()], GenerationConfig())


# Files and epochs


def files_run(tmp_path: Path, digits_dir: Path, sizes: dict[str, int], *flags: str) -> Run:
    files = [write_captions(tmp_path / name, [f"{name} {i}" for i in range(n)]) for name, n in sizes.items()]
    return caption_run(",".join(map(str, files)), digits_dir, *flags)


def test_training_files_take_turns_and_the_last_is_for_validation(tmp_path: Path, digits_dir: Path) -> None:
    task = files_run(tmp_path, digits_dir, {"a.tsv": 3, "b.tsv": 4, "valid.tsv": 2}).task
    assert task.has_sharded_data("train")
    assert not task.has_sharded_data("valid")

    def file_of(split: str, epoch: int) -> str:
        task.load_dataset(split, epoch=epoch)
        return task.dataset(split).rows.path.name

    assert [file_of("train", epoch) for epoch in range(1, 6)] == ["a.tsv", "b.tsv", "a.tsv", "b.tsv", "a.tsv"]
    assert [file_of(split, 3) for split in ("valid", "test")] == ["valid.tsv", "valid.tsv"]
    assert task.dataset("train").shuffle
    assert not task.dataset("valid").shuffle


def test_one_training_file_needs_no_reloading(digits_dir: Path) -> None:
    assert not caption_run("a.tsv,valid.tsv", digits_dir).task.has_sharded_data("train")


@pytest.mark.parametrize("data", ["train.tsv", ",", ""])
def test_too_few_files_are_an_error_that_says_what_is_expected(data: str, digits_dir: Path) -> None:
    with pytest.raises(ValueError, match=r"last one for validation \(train.tsv,valid.tsv\)"):
        caption_run(data, digits_dir).task.load_dataset("train")


def test_a_single_file_is_enough_for_everything_but_training(tmp_path: Path, digits_dir: Path) -> None:
    task = files_run(tmp_path, digits_dir, {"test.tsv": 2}).task
    task.load_dataset("test")
    assert len(task.dataset("test")) == 2


def test_a_missing_file_is_named(tmp_path: Path, digits_dir: Path) -> None:
    task = caption_run(str(tmp_path / "nothing.tsv"), digits_dir).task
    with pytest.raises(FileNotFoundError, match=r"nothing.tsv: no such TSV file"):
        task.load_dataset("valid")


@pytest.mark.parametrize(
    ("iterator", "expected"),
    [
        ({"max_sentences": 4}, (3, 2)),
        ({"max_sentences": 4, "num_shards": 2}, (2, 1)),
        ({"max_tokens": 100}, (2, 1)),
        ({"max_sentences": 4, "skip_remainder_batch": True}, (2, 1)),
    ],
)
def test_the_length_of_training_is_announced(
    iterator: dict[str, Any], expected: tuple[int, ...], tmp_path: Path, digits_dir: Path
) -> None:
    task = files_run(
        tmp_path,
        digits_dir,
        {"a.tsv": 10 if "max_tokens" not in iterator else 20, "b.tsv": 7, "valid.tsv": 2},
    ).task
    lengths = []
    for epoch in (1, 2):
        task.load_dataset("train", epoch=epoch)
        batches = task.get_batch_iterator(task.dataset("train"), epoch=epoch, **iterator)
        lengths.append(len(batches.next_epoch_itr()))
    assert tuple(lengths) == expected
    assert training_length.announced() == expected


def test_validation_announces_nothing(
    tmp_path: Path, digits_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = files_run(tmp_path, digits_dir, {"valid.tsv": 2}).task
    task.load_dataset("valid")
    monkeypatch.setattr(training_length, "announce", lambda _: pytest.fail("announced"))
    task.get_batch_iterator(task.dataset("valid"), max_sentences=1)


# Generation


@pytest.fixture(scope="module")
def generation(digits_dir: Path) -> tuple[Run, Any, dict[str, Any]]:
    """A task, a model with random weights, and a batch."""
    run = caption_run(str(digits_dir / "valid.tsv"), digits_dir, "--selected-cols", "0,4,2")
    with data_utils.numpy_seed(1):
        torch.manual_seed(1)
        model = run.model()
    # Peaked distributions, so that outputs differ from each other and repeat themselves.
    with torch.no_grad():
        model.decoder.output_projection.weight.mul_(20)
    run.task.load_dataset("valid")
    dataset = run.task.dataset("valid")
    return run, model, dataset.collater([dataset[i] for i in range(4)])


def outputs(generation: tuple[Run, Any, dict[str, Any]], **options: Any) -> list[list[list[int]]]:
    run, model, batch = generation
    generator = run.task.build_generator([model], Namespace(**{"max_len_b": 12, **options}))
    hypotheses = run.task.inference_step(generator, [model], batch)
    return [[hypothesis["tokens"].tolist() for hypothesis in row] for row in hypotheses]


def repeated_bigrams(tokens: list[int]) -> int:
    pairs = list(pairwise(tokens))
    return len(pairs) - len(set(pairs))


def test_no_repeat_ngram_size(generation: Any) -> None:
    def repetitions(**options: Any) -> int:
        rows = outputs(generation, beam=3, min_len=10, **options)
        return sum(repeated_bigrams(tokens) for row in rows for tokens in row)

    assert repetitions() > 0
    assert repetitions(no_repeat_ngram_size=2) == 0


def test_lengths(generation: Any) -> None:
    for row in outputs(generation, beam=2, min_len=4, max_len_b=6):
        assert all(4 < len(tokens) <= 7 for tokens in row)


def test_sampling_is_seeded_and_top_1_is_greedy(generation: Any) -> None:
    greedy = outputs(generation, beam=1)
    assert outputs(generation, beam=1, sampling=True, sampling_topk=1) == greedy
    assert outputs(generation, beam=1, sampling=True, sampling_topp=1e-6) == greedy
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(outputs(generation, beam=1, sampling=True, sampling_topk=50, temperature=30.0))
    assert drawn[0] == drawn[1] != drawn[2]


def test_diverse_beams_differ_with_the_penalty_of_the_paper(generation: Any) -> None:
    run, model, _ = generation
    args = Namespace(beam=4, diverse_beam_groups=4, diverse_beam_strength=2.0)
    found = run.task.build_generator([model], args).search
    assert isinstance(found, search.DiverseBeamSearch)
    assert (found.num_groups, found.diversity_strength, found.diversity_discount) == (4, -2.0, 0.0)
    first = [
        {tokens[0] for tokens in row}
        for row in outputs(generation, **{**vars(args), "diverse_beam_strength": 1e4})
    ]
    assert all(len(tokens) == 4 for tokens in first)


def test_outputs_stay_inside_the_constraint_range(digits_dir: Path) -> None:
    flags = ("--selected-cols", "0,4,2", "--constraint-range", "10,20")
    run = caption_run(str(digits_dir / "valid.tsv"), digits_dir, *flags)
    model = run.model()
    run.task.load_dataset("valid")
    dataset = run.task.dataset("valid")
    batch = dataset.collater([dataset[i] for i in range(2)])
    tokens = [t for row in outputs((run, model, batch), beam=3, min_len=3) for hyp in row for t in hyp]
    assert {t for t in tokens if t >= 4} <= set(range(10, 20))
    assert any(t >= 4 for t in tokens)


def test_validation_uses_the_options_of_eval_args(generation: Any) -> None:
    run, model, batch = generation
    run.task.cfg.eval_args = json.dumps({"beam": 3, "max_len_b": 3, "min_len": 2})
    texts = run.task.generate_texts(batch, model)
    expected = [
        run.task.decode(torch.tensor(row[0])) for row in outputs(generation, beam=3, max_len_b=3, min_len=2)
    ]
    assert texts == expected


@pytest.mark.parametrize("text", ["{'beam': 5}", "[5]", "5", '{"baem": 5}'])
def test_bad_eval_args_are_refused_before_training(text: str, digits_dir: Path) -> None:
    with pytest.raises(ValueError, match=r"--eval-args"):
        caption_run("a.tsv,b.tsv", digits_dir, "--eval-args", text)


# The run's configuration


def test_unused_valid_subsets_are_no_error(digits_dir: Path) -> None:
    cfg = caption_run("a.tsv,b.tsv", digits_dir).cfg
    data_utils.raise_if_valid_subsets_unintentionally_ignored(cfg)


def test_bf16_is_no_tpu(digits_dir: Path) -> None:
    cfg = caption_run("a.tsv,b.tsv", digits_dir, "--bf16").cfg
    assert cfg.common.bf16
    assert not cfg.common.tpu


def test_bf16_is_no_tpu_when_processes_are_launched() -> None:
    from task_builders import training_config

    assert not training_config("a.tsv,b.tsv", "--bf16").distributed_training.tpu


def test_lists_of_bad_rows_lie_beside_the_results(digits_dir: Path, tmp_path: Path) -> None:
    run = caption_run("a.tsv,b.tsv", digits_dir, "--save-dir", str(tmp_path))
    assert run.task.bad_rows.path == tmp_path / "bad_rows.tsv"
    run = caption_run("a.tsv,b.tsv", digits_dir, "--bad-rows", str(tmp_path / "mine.tsv"))
    assert run.task.bad_rows.path == tmp_path / "mine.tsv"
    with open_dict(run.cfg):
        run.cfg.common_eval.path = "checkpoint.pt"  # as fairseq-generate sets it
    for results, expected in ((None, Path("bad_rows.tsv")), (str(tmp_path), tmp_path / "bad_rows.tsv")):
        run.cfg.common_eval.results_path = results
        run.cfg.task.bad_rows = None
        assert tasks.setup_task(run.cfg.task).bad_rows.path == expected


# Steps


class RecordingCriterion:
    """Takes part in a step and keeps what it was given."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    def __call__(self, model: Any, sample: dict[str, Any], **more: Any) -> tuple[Any, int, dict[str, Any]]:
        self.calls.append({"training": model.training, **more})
        return model(**sample["net_input"])[0].sum(), 1, {}


def test_training_tells_the_criterion_the_update_and_counts_skipped_rows(generation: Any) -> None:
    run, model, batch = generation
    criterion = RecordingCriterion()
    backward: list[torch.Tensor] = []
    optimizer = SimpleNamespace(backward=backward.append)
    for ignore in (False, True):
        sample = {**batch, "skipped_rows": 3}
        loss, _, log = run.task.train_step(
            sample, model, criterion, optimizer, update_num=17, ignore_grad=ignore
        )
        assert log["skipped_rows"] == 3
        assert backward[-1] is loss
        assert (loss == 0) == ignore
    assert criterion.calls == [{"training": True, "update_num": 17}] * 2


def test_validation_runs_in_evaluation_mode_on_the_averaged_model_if_there_is_one(generation: Any) -> None:
    run, model, batch = generation
    criterion = RecordingCriterion()
    model.train()
    loss, _, _ = run.task.valid_step(batch, model, criterion)
    assert not loss.requires_grad
    averaged = run.model().train()
    other, _, _ = run.task.valid_step(batch, model, criterion, ema_model=averaged)
    assert criterion.calls == [{"training": False}] * 2
    assert loss != other


def test_what_was_adopted_is_logged(
    checkpoint: Path, digits_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        checkpoint_utils.load_model_ensemble([str(checkpoint)], task=generating_task())
    assert "'max_tgt_length': 7" in caplog.text


def test_sentencepiece_may_be_named_without_its_model(digits_dir: Path) -> None:
    task = caption_run("a.tsv,b.tsv", digits_dir, "--bpe", "sentencepiece").task
    assert task.decode(torch.tensor(task.vocabulary.encode("a red one"))).strip() == "a red one"
