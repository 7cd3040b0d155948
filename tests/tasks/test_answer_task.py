"""Closed sets of answers in a task: where they come from, and how outputs are found among them."""

import json
import pickle
from argparse import Namespace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import open_dict
from task_builders import Run, batch_of, picture, rows_run, task_run

from ofa_fairseq.generation.answer_space import AnswerTrie
from ofa_fairseq.generation.candidates import CandidateScorer
from ofa_fairseq.generation.generator import OFASequenceGenerator

PAD, EOS = 1, 2
ANSWERS = ["red", "red ball", "blue", "a green one"]
LIST = ("--ans2label-dict", json.dumps(ANSWERS))
ROWS = [
    ["0", picture(), "what?", "red", ""],
    ["1", picture((0, 90, 0)), "what is the round thing?", "red ball", ""],
    ["2", picture(), "is it red?", "blue", ""],
]


def run_of(folder: Path, bpe_dir: Path, *flags: str, split: str = "valid") -> Run:
    return rows_run("vqa", folder, ROWS, bpe_dir, *flags, split=split)


def generating(run: Run) -> Run:
    """As fairseq-generate has it."""
    with open_dict(run.cfg):
        run.cfg.common_eval.path = "model.pt"
    run.task.root = run.cfg
    return run


def peaked_model(run: Run, seed: int = 1) -> Any:
    """Random weights, and distributions far from uniform."""
    torch.manual_seed(seed)
    model = run.model()
    with torch.no_grad():
        model.decoder.output_projection.weight.mul_(20)
    return model


# The list


@pytest.mark.parametrize("name", ["answers.txt", "answers.json", "answers.pkl"])
def test_files_of_all_formats_make_the_same_task(name: str, tmp_path: Path, sentencepiece_dir: Path) -> None:
    path = tmp_path / name
    if path.suffix == ".pkl":
        path.write_bytes(pickle.dumps({answer: i for i, answer in enumerate(ANSWERS)}))
    else:
        path.write_text(json.dumps(ANSWERS) if path.suffix == ".json" else "\n".join(ANSWERS))
    task = run_of(tmp_path, sentencepiece_dir, "--ans2label-file", str(path)).task
    assert task.answers == ANSWERS
    assert task.answer_ids == [task.vocabulary.encode(" " + answer) for answer in ANSWERS]


def test_a_file_comes_before_the_option(tmp_path: Path, sentencepiece_dir: Path) -> None:
    (tmp_path / "answers.txt").write_text("yes\nno\n")
    file = ("--ans2label-file", str(tmp_path / "answers.txt"))
    assert task_run("vqa", "a,b", sentencepiece_dir, *LIST, *file).task.answers == ["yes", "no"]


def test_without_a_list_answers_are_free(tmp_path: Path, sentencepiece_dir: Path) -> None:
    task = run_of(tmp_path, sentencepiece_dir).task
    assert task.answers is task.trie is task.answer_space() is None
    assert task.is_allowed("anything")
    assert task_run("snli_ve", "a,b", sentencepiece_dir).task.answers == ["no", "yes", "maybe"]


def test_a_wrong_list_stops_before_training(tmp_path: Path, sentencepiece_dir: Path) -> None:
    path = tmp_path / "answers.txt"
    for text, message in (("yes\nyes\n", "'yes', stands there twice"), ("", "there are no answers")):
        path.write_text(text)
        with pytest.raises(ValueError, match=rf"answers.txt: .*{message}"):
            task_run("vqa", "a,b", sentencepiece_dir, "--ans2label-file", str(path))
    with pytest.raises(ValueError, match="--ans2label-dict: not JSON"):
        task_run("vqa", "a,b", sentencepiece_dir, "--ans2label-dict", "{'yes': 0}")


def test_a_list_that_imports_something_is_refused_by_name(tmp_path: Path, sentencepiece_dir: Path) -> None:
    path = tmp_path / "answers.pkl"
    path.write_bytes(pickle.dumps({Fraction(1, 2): 0}))
    with pytest.raises(pickle.UnpicklingError, match=r"answers.pkl: refused.*'fractions.Fraction'"):
        task_run("vqa", "a,b", sentencepiece_dir, "--ans2label-file", str(path))


def test_answers_that_the_vocabulary_can_not_tell_apart_are_named(
    tmp_path: Path, sentencepiece_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = run_of(tmp_path, sentencepiece_dir, "--ans2label-dict", '["yes", "Red", "no", "red"]').task
    assert len(task.answer_ids) == 4
    task.use_options()  # a vocabulary without capital letters
    encode = task.vocabulary.encode
    monkeypatch.setattr(task.vocabulary, "encode", lambda text: encode(text.lower()))
    message = "answers 'Red' and 'red' are the same to the vocabulary, both 'red': keep one of them"
    with pytest.raises(ValueError, match=message):
        task.load_dataset("valid")  # not one bad row after the other


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ("--val-inference-type", "greedy"),
            "--val-inference-type greedy: expected one of allcand, beamsearch",
        ),
        (("--valid-batch-size", "0"), "--valid-batch-size and --candidate-memory: expected numbers above 0"),
        (("--candidate-memory", "0"), "--valid-batch-size and --candidate-memory: expected numbers above 0"),
        (("--uses-ema",), "--uses-ema: there are no averaged weights without --store-ema"),
    ],
)
def test_options_that_make_no_sense(flags: tuple[str, ...], message: str, sentencepiece_dir: Path) -> None:
    with pytest.raises(ValueError, match=message):
        task_run("vqa", "a,b", sentencepiece_dir, *flags)


def test_a_checkpoint_brings_its_answers(tmp_path: Path, sentencepiece_dir: Path) -> None:
    saved = run_of(tmp_path, sentencepiece_dir, *LIST, "--prompt-type", "src")
    run = generating(run_of(tmp_path, sentencepiece_dir))
    assert run.task.is_allowed("yellow")
    assert run.task.trie is None
    run.task.build_model(saved.cfg.model, from_checkpoint=True)
    assert run.task.answers == ANSWERS
    assert not run.task.is_allowed("yellow")
    assert run.task.is_allowed("a green one")
    assert run.task.cfg.prompt_type == "src"
    batch = batch_of(run.task.dataset("valid"))
    assert isinstance(batch["answer_space"], AnswerTrie)


def test_a_list_given_to_a_checkpoint_replaces_its_own(tmp_path: Path, sentencepiece_dir: Path) -> None:
    saved = run_of(tmp_path, sentencepiece_dir, *LIST)
    run = generating(run_of(tmp_path, sentencepiece_dir, "--ans2label-dict", '["yes"]'))
    assert not run.task.is_allowed("red")
    run.task.build_model(saved.cfg.model, from_checkpoint=True)
    assert run.task.answers == ["yes"]


def test_data_workers_can_be_spawned(tmp_path: Path, sentencepiece_dir: Path) -> None:
    dataset = run_of(tmp_path, sentencepiece_dir, *LIST, split="train").task.dataset("train")
    expected, found = batch_of(dataset), batch_of(pickle.loads(pickle.dumps(dataset)))
    assert torch.equal(found["target"], expected["target"])
    supervised = expected["target"].ne(PAD)
    masks = [b["answer_space"].target_masks(b["target"], supervised) for b in (expected, found)]
    assert torch.equal(*masks)


# Generators


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (LIST, CandidateScorer),
        ((*LIST, "--val-inference-type", "beamsearch"), OFASequenceGenerator),
        ((*LIST, "--beam-search-vqa-eval"), OFASequenceGenerator),
        ((*LIST, "--zero-shot"), OFASequenceGenerator),
        ((*LIST, "--unconstrained-training"), OFASequenceGenerator),
        ((), OFASequenceGenerator),
    ],
    ids=lambda value: " ".join(value[2:]) if isinstance(value, tuple) else "",
)
def test_all_answers_are_scored_unless_something_asks_for_beam_search(
    flags: tuple[str, ...], expected: type, tmp_path: Path, sentencepiece_dir: Path
) -> None:
    run = run_of(tmp_path, sentencepiece_dir, *flags)
    generator = run.task.build_generator([run.model()], Namespace(beam=2))
    assert isinstance(generator, expected)
    if isinstance(generator, OFASequenceGenerator):
        constrained = flags[2:] in (("--val-inference-type", "beamsearch"), ("--beam-search-vqa-eval",))
        assert (generator.model.answer_space is not None) == constrained


def test_chunks_follow_the_options(tmp_path: Path, sentencepiece_dir: Path) -> None:
    flags = (*LIST, "--valid-batch-size", "3", "--candidate-memory", "7")
    run = run_of(tmp_path, sentencepiece_dir, *flags)
    scorer = run.task.build_generator([run.model()], Namespace())
    assert (scorer.chunk, scorer.memory) == (3, 7)


@pytest.mark.parametrize("prompt", ["none", "src", "prev_output"])
def test_both_ways_find_the_same_answers_without_prompts(
    prompt: str, tmp_path: Path, sentencepiece_dir: Path
) -> None:
    """Beams are as many as answers; scores are of the answers alone, both times."""
    run = run_of(tmp_path, sentencepiece_dir, *LIST, "--prompt-type", prompt)
    model, batch = peaked_model(run), batch_of(run.task.dataset("valid"))
    scorer = run.task.build_generator([model], Namespace())
    scored = run.task.inference_step(scorer, [model], batch)
    run.task.cfg.val_inference_type = "beamsearch"
    beams = run.task.build_generator([model], Namespace(beam=len(ANSWERS), unnormalized=True))
    searched = run.task.inference_step(beams, [model], batch)
    allowed = {(*ids, EOS) for ids in run.task.answer_ids}
    for a, b in zip(scored, searched, strict=True):
        assert {tuple(h["tokens"].tolist()) for h in a} == allowed
        assert {tuple(h["tokens"].tolist()): float(h["score"]) for h in b} == pytest.approx(
            {tuple(h["tokens"].tolist()): float(h["score"]) for h in a}, abs=1e-3
        )


@pytest.mark.parametrize("prompt", ["none", "src", "prev_output"])
def test_free_answers_hold_no_prompt_and_score_as_the_answer_alone(
    prompt: str, tmp_path: Path, sentencepiece_dir: Path
) -> None:
    run = run_of(tmp_path, sentencepiece_dir, "--prompt-type", prompt)
    model, dataset = peaked_model(run), run.task.dataset("valid")
    batch = batch_of(dataset)
    generator = run.task.build_generator([model], Namespace(beam=2, max_len_b=40))
    for row, hypotheses in enumerate(run.task.inference_step(generator, [model], batch)):
        example = dataset[row]
        start = [0, *([] if example.prompt is None else example.prompt.tolist())]
        inputs = dataset.collater([example])["net_input"]
        for hypothesis in hypotheses:
            answer = hypothesis["tokens"].tolist()
            assert answer[-1] == EOS
            assert answer.count(EOS) == 1
            inputs["prev_output_tokens"] = torch.tensor([start + answer[:-1]])
            with torch.no_grad():
                log_probs = model(**inputs)[0][0, len(start) - 1 :].log_softmax(dim=-1)
            expected = log_probs.gather(1, torch.tensor(answer)[:, None]).squeeze(1)
            torch.testing.assert_close(hypothesis["positional_scores"], expected, atol=1e-3, rtol=1e-3)
            assert float(hypothesis["score"]) == pytest.approx(float(expected.mean()), abs=1e-3)


def test_one_long_question_does_not_end_a_run(
    tmp_path: Path, sentencepiece_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = run_of(tmp_path, sentencepiece_dir, "--eval-args", '{"max_len_b": 6}')
    batch = batch_of(run.task.dataset("valid"))
    lengths = batch["prefix_tokens"].ne(PAD).sum(dim=1)
    assert lengths.max() > 6
    assert len(run.task.generate_texts(batch, run.model())) == 3
    assert f"a forced prompt of {lengths.max()} tokens leaves no room" in caplog.text


def test_a_prompt_that_fairseq_gives_is_part_of_the_output(tmp_path: Path, sentencepiece_dir: Path) -> None:
    """`--prefix-size`."""
    run = run_of(tmp_path, sentencepiece_dir)
    model, batch = peaked_model(run), batch_of(run.task.dataset("valid"))
    generator = run.task.build_generator([model], Namespace(beam=1, max_len_b=10))
    given = torch.tensor([[5], [6], [7]])
    hypotheses = run.task.inference_step(generator, [model], batch, prefix_tokens=given)
    assert [row[0]["tokens"][0].item() for row in hypotheses] == [5, 6, 7]


@pytest.mark.parametrize("kind", ["allcand", "beamsearch"])
def test_validation_gives_the_most_probable_answer(
    kind: str, tmp_path: Path, sentencepiece_dir: Path
) -> None:
    run = run_of(tmp_path, sentencepiece_dir, *LIST, "--val-inference-type", kind)
    model, batch = peaked_model(run), batch_of(run.task.dataset("valid"))
    scorer = CandidateScorer([model], run.task.dictionary, run.task.answer_ids)
    scores, _ = scorer.score(batch, batch["prefix_tokens"])
    expected = [ANSWERS[i] for i in scores.argmax(dim=1).tolist()]
    assert [text.strip() for text in run.task.generate_texts(batch, model)] == expected
    log = run.task.validate(batch, model)
    right = sum(answer == row[3] for answer, row in zip(expected, ROWS))
    assert log == {"_score_sum": float(right), "_score_cnt": 3}


# The distribution over the answers


def test_all_probabilities_are_written(tmp_path: Path, sentencepiece_dir: Path) -> None:
    path = tmp_path / "candidates.jsonl"
    path.write_text("of an earlier run\n")
    run = generating(run_of(tmp_path, sentencepiece_dir, *LIST, "--candidates", str(path)))
    model, dataset = peaked_model(run), run.task.dataset("valid")
    scorer = run.task.build_generator([model], Namespace())
    for rows in ([0, 1], [2]):  # two batches
        run.task.inference_step(scorer, [model], dataset.collater([dataset[i] for i in rows]))
    batch = batch_of(dataset)
    expected = scorer.score(batch, batch["prefix_tokens"])[0].exp().tolist()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["id"] for line in lines] == ["0", "1", "2"]
    for line, probabilities in zip(lines, expected, strict=True):
        assert line["answers"] == pytest.approx(dict(zip(ANSWERS, probabilities)), abs=1e-5)
        assert sum(line["answers"].values()) == pytest.approx(1, abs=1e-4)
        assert list(line["answers"].values()) == sorted(line["answers"].values(), reverse=True)


@pytest.mark.parametrize("flags", [(), (*LIST, "--beam-search-vqa-eval")], ids=["free", "beams"])
def test_there_is_no_distribution_without_scoring_all(
    flags: tuple[str, ...], tmp_path: Path, sentencepiece_dir: Path
) -> None:
    run = run_of(tmp_path, sentencepiece_dir, *flags, "--candidates", str(tmp_path / "candidates.jsonl"))
    with pytest.raises(ValueError, match="--candidates needs a closed set of answers"):
        run.task.build_generator([run.model()], Namespace())


def test_each_process_writes_its_own_candidates(tmp_path: Path, sentencepiece_dir: Path) -> None:
    path = tmp_path / "candidates.jsonl"
    for rank, rows in enumerate(([0, 2], [1])):
        run = generating(run_of(tmp_path, sentencepiece_dir, *LIST, "--candidates", str(path)))
        place = run.task.root.distributed_training
        place.distributed_world_size, place.distributed_rank = 2, rank
        dataset = run.task.dataset("valid")
        scorer = run.task.build_generator([run.model()], Namespace())
        run.task.inference_step(scorer, [run.model()], dataset.collater([dataset[i] for i in rows]))
    assert not path.exists()
    for rank, ids in enumerate((["0", "2"], ["1"])):
        lines = (tmp_path / f"candidates.jsonl.{rank}").read_text().splitlines()
        assert [json.loads(line)["id"] for line in lines] == ids


def test_validation_during_training_writes_no_candidates(tmp_path: Path, sentencepiece_dir: Path) -> None:
    path = tmp_path / "candidates.jsonl"
    run = run_of(tmp_path, sentencepiece_dir, *LIST, "--candidates", str(path))
    run.task.validate(batch_of(run.task.dataset("valid")), run.model())
    assert not path.exists()
