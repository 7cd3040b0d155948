"""Generation in a task: its options, its search, and averaged weights."""

import json
from argparse import Namespace
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq import search
from fairseq.dataclass.configs import GenerationConfig
from task_builders import Run, caption_run, captioning, save_checkpoint

from ofa_fairseq.tasks.generating_task import generation_options


@pytest.fixture(scope="module")
def generation(digits_dir: Path) -> tuple[Run, Any, dict[str, Any]]:
    return captioning(digits_dir)


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


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"beam": "five"}, '"beam": "five": expected a whole number'),
        ({"beam": 5.0}, '"beam": 5.0: expected a whole number'),
        ({"beam": True}, '"beam": true: expected a whole number'),
        ({"beam": None}, '"beam": null: expected a whole number'),
        ({"beam": 2, "lenpen": "1"}, '"lenpen": "1": expected a number'),
        ({"temperature": [1.0]}, r'"temperature": \[1.0\]: expected a number'),
        ({"sampling": 1}, '"sampling": 1: expected true or false'),
        ({"stop_on_max_len": "yes"}, '"stop_on_max_len": "yes": expected true or false'),
        ({"replace_unk": 3}, '"replace_unk": 3: expected a text or null'),
    ],
)
@pytest.mark.parametrize("flag", ["--eval-args", "--scst-args"])
def test_options_of_a_wrong_type_are_named(flag: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=f"^{flag} with {said}$"):
        generation_options(flag, json.dumps(options))


def test_options_of_the_right_type_are_taken_as_they_are() -> None:
    options = {"beam": 5, "lenpen": 1, "temperature": 0.9, "sampling": True, "replace_unk": None}
    options |= {"stop_on_max_len": False, "retain_dropout_modules": ["decoder"]}
    assert generation_options("--eval-args", json.dumps(options)) == options
    # Each option's own default passes, if JSON has it.
    defaults = {f.name: f.default for f in fields(GenerationConfig)}
    assert generation_options("--eval-args", json.dumps(defaults)) == defaults


# Averaged weights


@pytest.fixture(scope="module")
def checkpoint(digits_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with one set of weights, and another (all 0.5) as their average; beside it one without the other."""
    path, run = tmp_path_factory.mktemp("checkpoint") / "model.pt", caption_run("saved.tsv", digits_dir)
    weights = save_checkpoint(path.with_name("no_ema.pt"), run)
    averaged = {k: torch.full_like(v, 0.5) if v.is_floating_point() else v for k, v in weights.items()}
    save_checkpoint(path, run, ema=averaged)
    return path


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
