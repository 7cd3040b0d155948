"""Grounding: rows, the prompt, boxes as bins and back, and the validation score."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from task_builders import (
    EOS,
    PAD,
    bad_rows,
    batch_like,
    batch_of,
    dataset_of,
    each_reference_row,
    picture,
    rows_run,
    source_of,
    target_of,
    task_run,
    validated,
)
from torchvision.ops import box_iou

from ofa_fairseq.generation.answer_space import TokenRange

SIZE = (40, 30)


def row(phrase: str = "the left one", box: str = "4,3,20,15") -> list[str]:
    return ["12_0", picture(size=SIZE), phrase, box]


@each_reference_row("refcoco")
def test_rows_agree_with_the_original(case: dict[str, Any], gpt2_bpe_dir: Path, tmp_path: Path) -> None:
    batch = batch_like(case, tmp_path, gpt2_bpe_dir)
    assert "prefix_tokens" not in batch
    # The reference is the exact box in units of bins; the original scores in pixels.
    x0, y0, x1, y1 = (float(part) for part in batch["references"][0][0].split(","))
    unit = case["options"]["max_image_size"] / (case["options"]["num_bins"] - 1)
    width, height = unit / case["w_resize_ratio"], unit / case["h_resize_ratio"]
    pixels = [x0 * width, y0 * height, x1 * width, y1 * height]
    assert pixels == pytest.approx(case["region_coord"], abs=1e-3)


# The prompt


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ((), ' which region does the text " the red person on left. " describe?'),
        (("--max-src-length", "3"), ' which region does the text " the red person " describe?'),
        (("--keep-phrase",), ' which region does the text " ,the RED <person>  on/left. " describe?'),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_the_question_as_text(
    flags: tuple[str, ...], expected: str, tmp_path: Path, sentencepiece_dir: Path
) -> None:
    rows = [row(",the RED <person>  on/left. ")]
    assert source_of(dataset_of("refcoco", tmp_path, rows, sentencepiece_dir, *flags)) == expected


@pytest.mark.parametrize("phrase", ["", "  ", "..."])
@pytest.mark.parametrize("split", ["train", "valid"])
def test_a_row_without_a_phrase_is_a_bad_row(
    phrase: str, split: str, tmp_path: Path, sentencepiece_dir: Path
) -> None:
    dataset = dataset_of("refcoco", tmp_path, [row(), row(phrase)], sentencepiece_dir, split=split)
    assert dataset[1] is None
    assert bad_rows(tmp_path) == ["the phrase is empty"]


# Boxes


def test_the_target_is_four_bins(tmp_path: Path, sentencepiece_dir: Path) -> None:
    flags = ("--max-image-size", "32")  # as the picture's side; the last of 16 bins is its end
    dataset = dataset_of(
        "refcoco", tmp_path, [row(box="0,0,40,30"), row(box="8,10,16,20")], sentencepiece_dir, *flags
    )
    assert target_of(dataset) == "<bin_0><bin_0><bin_15><bin_15>"
    assert target_of(dataset, 1) == "<bin_3><bin_5><bin_6><bin_10>"
    assert dataset[1].target[-1] == EOS
    assert dataset[1].prev_output.tolist() == [0, *dataset[1].target.tolist()[:-1]]
    assert list(dataset[1].references) == ["3.0000,5.0000,6.0000,10.0000"]


def test_a_span_wider_than_the_picture_leaves_bins_unused(tmp_path: Path, sentencepiece_dir: Path) -> None:
    dataset = dataset_of("refcoco", tmp_path, [row(box="0,0,40,30")], sentencepiece_dir)  # 32 of 512 pixels
    assert target_of(dataset) == "<bin_0><bin_0><bin_1><bin_1>"


def test_a_span_smaller_than_the_picture_is_refused(tmp_path: Path, sentencepiece_dir: Path) -> None:
    with pytest.raises(ValueError, match=r"--max-image-size 16 is smaller than --patch-image-size 32"):
        dataset_of("refcoco", tmp_path, [row()], sentencepiece_dir, "--max-image-size", "16")


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        ("4,3,40.5,15", "the box 4,3,40.5,15 reaches out of the picture of 40 x 30 pixels"),
        ("4,-1,20,15", "the box 4,-1,20,15 reaches out of the picture of 40 x 30 pixels"),
        ("20,3,4,15", "the box 20,3,4,15 has no area: expected x0 < x1 and y0 < y1"),
        ("4,3,20,3", "the box 4,3,20,3 has no area: expected x0 < x1 and y0 < y1"),
        ("4,3,20", "the box '4,3,20': expected four numbers x0,y0,x1,y1"),
        ("4,3,20,15,1", "the box '4,3,20,15,1': expected four numbers x0,y0,x1,y1"),
        ("a,b,c,d", "the box 'a,b,c,d': expected four numbers x0,y0,x1,y1"),
        ("nan,3,20,15", "the box nan,3,20,15 reaches out of the picture of 40 x 30 pixels"),
    ],
)
@pytest.mark.parametrize("split", ["train", "valid"])
def test_impossible_boxes_are_bad_rows(
    box: str, reason: str, split: str, tmp_path: Path, sentencepiece_dir: Path
) -> None:
    dataset = dataset_of("refcoco", tmp_path, [row(), row(box=box)], sentencepiece_dir, split=split)
    assert dataset[1] is None
    assert bad_rows(tmp_path) == [reason]


def test_a_box_is_needed_in_training_only(tmp_path: Path, sentencepiece_dir: Path) -> None:
    rows = [row(), row(box="")]
    assert dataset_of("refcoco", tmp_path, rows, sentencepiece_dir)[1] is None
    assert bad_rows(tmp_path) == ["the box '': expected four numbers x0,y0,x1,y1"]
    batch = batch_of(dataset_of("refcoco", tmp_path, rows, sentencepiece_dir, split="valid"))
    assert [len(references) for references in batch["references"]] == [1, 0]
    assert batch["target"].ne(PAD).any(dim=1).tolist() == [True, False]


def test_the_answer_space_is_four_bins_and_the_end(sentencepiece_dir: Path) -> None:
    task = task_run("refcoco", "a.tsv,b.tsv", sentencepiece_dir).task
    space, (start, end) = task.answer_space() if task.vocabulary else None, task.vocabulary.bin_range
    assert isinstance(space, TokenRange)
    for length in range(5):
        allowed = space.next_tokens(torch.full((1, 1 + length), start))[0].nonzero().flatten().tolist()
        assert allowed == (list(range(start, end)) if length < 4 else [EOS])


# Score


@given(
    st.tuples(st.integers(1, 500), st.integers(1, 500)),
    st.lists(st.floats(0, 1), min_size=4, max_size=4, unique=True),
    st.lists(st.integers(0, 99), min_size=4, max_size=4),
    st.sampled_from([(64, 64), (48, 64), (512, 512)]),
)
def test_boxes_score_as_in_pixels(
    size: tuple[int, int], shares: list[float], bins: list[int], sides: tuple[int, int]
) -> None:
    """The IoU of an output with its reference, both in units of bins, is torchvision's in pixels."""
    from ofa_fairseq.data.boxes import BoxFrame, box_text
    from ofa_fairseq.metrics.row_metrics import row_metric

    frame = BoxFrame(*size, *sides, 100)
    x0, x1, y0, y1 = *sorted(shares[:2]), *sorted(shares[2:])
    box = (x0 * size[0], y0 * size[1], x1 * size[0], y1 * size[1])
    output = [min(bins[0], bins[2]), min(bins[1], bins[3]), max(bins[0], bins[2]), max(bins[1], bins[3])]
    pixels = torch.tensor([frame.to_pixels(output)], dtype=torch.float64)
    expected = float(box_iou(pixels, torch.tensor([box], dtype=torch.float64)).nan_to_num())
    text = "".join(f"<bin_{i}>" for i in output)
    (found,) = row_metric("box_iou")([text], [[box_text(frame.to_bins(box))]])
    # References have four digits after the point, of one bin.
    assert found == pytest.approx(expected, abs=2e-3)


def test_the_validation_score_is_the_share_of_found_boxes(
    tmp_path: Path, sentencepiece_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [row(box="0,0,40,30"), row(box="0,0,40,30"), row(box="0,0,40,30"), row(box="")]
    flags = ("--eval-acc", "--max-image-size", "32")
    task = rows_run("refcoco", tmp_path, rows, sentencepiece_dir, *flags, split="valid").task
    outputs = [
        "<bin_0><bin_0><bin_15><bin_15>",
        "<bin_0><bin_0><bin_15><bin_7>",  # 7/15: not half
        "<bin_0><bin_0><bin_15>",
        "<bin_0><bin_0><bin_15><bin_15>",
    ]
    assert validated(task, outputs, monkeypatch) == {"_score_sum": 1.0, "_score_cnt": 3}
    assert task.score_name == "score"


def test_without_eval_acc_nothing_is_generated(
    sentencepiece_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = task_run("refcoco", "a.tsv,b.tsv", sentencepiece_dir).task
    monkeypatch.setattr(task, "generate_texts", lambda *_: pytest.fail("generated"))
    assert task.validate({}, torch.nn.Identity()) == {}


@pytest.mark.parametrize(
    "options",
    [
        {"beam": 5, "min_len": 4, "max_len_a": 0, "max_len_b": 4},  # training
        {"beam": 5, "min_len": 4, "max_len_a": 0, "max_len_b": 4, "no_repeat_ngram_size": 3},  # evaluation
        {"beam": 3},
        {"beam": 4, "sampling": True, "sampling_topk": 3},
    ],
    ids=str,
)
def test_outputs_are_four_bins_whatever_the_options(
    options: dict[str, Any], tmp_path: Path, sentencepiece_dir: Path
) -> None:
    torch.manual_seed(0)
    flags = ("--eval-acc", "--eval-args", json.dumps(options))
    run = rows_run("refcoco", tmp_path, [row(), row("that")], sentencepiece_dir, *flags, split="valid")
    model, batch = run.model(), batch_of(run.task.dataset("valid"))
    texts = run.task.generate_texts(batch, model)
    (generator,) = run.task._generators.values()
    start, end = run.task.vocabulary.bin_range
    for hypotheses, text in zip(run.task.inference_step(generator, [model], batch), texts):
        assert len(hypotheses) == options["beam"]
        assert text.count("<bin_") == 4
        for hypothesis in hypotheses:
            *bins, last = hypothesis["tokens"].tolist()
            assert len(bins) == 4
            assert all(start <= token < end for token in bins)
            assert last == EOS
