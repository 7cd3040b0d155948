"""`python -m ofa_fairseq.prepare collect_predictions`: several outputs of fairseq-generate become one result."""

import json
import re
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from pycocoevalcap.cider.cider_scorer import CiderScorer as CocoCider
from task_builders import write_tsv

from ofa_fairseq.data.boxes import BoxFrame
from ofa_fairseq.data.images import encode_image
from ofa_fairseq.prepare.__main__ import main
from ofa_fairseq.prepare.predictions import read_outputs, read_targets

ROWS = {
    "7": ("a red seven, small.", "a small red seven&&one red seven at the left"),
    "8": ("a blue eight", "a large blue eight&&a blue eight on the right"),
    "9": ("a green nine below it", "a green nine&&the green nine below a red one"),
}


def write_output(path: Path, ids: list[str]) -> Path:
    """As fairseq-generate writes: target, hypothesis and its detokenized form, of two hypotheses for each row."""
    lines = ["2026-01-01 | INFO | a line of the log"]
    for key in ids:
        caption, references = ROWS[key]
        lines += [f"S-{key}\twhat does the image describe?", f"T-{key}\t{references}"]
        lines += [f"H-{key}\t-0.1\t{caption}", f"D-{key}\t-0.1\t{caption}", f"P-{key}\t-0.1 -0.1"]
        lines += [f"H-{key}\t-0.9\tworse", f"D-{key}\t-0.9\tworse"]
    path.write_text("\n".join([*lines, "Generate test with beam=5: CIDEr = 0.5"]) + "\n", encoding="utf-8")
    return path


def test_files_are_merged_and_scored_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = write_output(tmp_path / "0.txt", ["8", "7"])
    second = write_output(tmp_path / "1.txt", ["9", "7"])  # padding repeats a row
    out = tmp_path / "test_predict.json"
    main(["collect_predictions", "--generated", str(first), str(second), "--out", str(out)])
    assert json.loads(out.read_text()) == [
        {"image_id": "8", "caption": "a blue eight"},
        {"image_id": "7", "caption": "a red seven small"},
        {"image_id": "9", "caption": "a green nine below it"},
    ]
    printed = capsys.readouterr().out
    match = re.fullmatch(r"CIDEr = ([0-9.]+) \(BLEU-4 = .*, ROUGE-L = .*\) over 3 pictures\n", printed)
    assert match
    assert float(match[1]) == pytest.approx(_cider_d(), abs=1e-4)


def _cider_d() -> float:
    """CIDEr-D of the rows by pycocoevalcap, whose class is CIDEr-D under the name of CIDEr."""
    scorer = CocoCider(n=4, sigma=6.0)
    for caption, references in ROWS.values():
        scorer += (re.sub("[,.]", "", caption), references.split("&&"))
    return float(scorer.compute_score()[0])


def test_targets_keep_their_tabs(tmp_path: Path) -> None:
    path = tmp_path / "generate-test.txt"
    path.write_text("T-a\tone\ttwo&&three\r\nD-a\t0\tx\n", encoding="utf-8", newline="")
    assert read_targets(path) == {"a": "one\ttwo&&three"}


def test_without_references_there_is_no_score(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "g.txt").write_text("D-5\t-0.1\ta cat!\n")
    main(["collect_predictions", "--generated", str(tmp_path / "g.txt"), "--out", str(tmp_path / "p.json")])
    assert json.loads((tmp_path / "p.json").read_text()) == [{"image_id": "5", "caption": "a cat"}]
    assert capsys.readouterr().out == ""


def test_a_file_without_captions_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "g.txt").write_text("nothing\n")
    with pytest.raises(SystemExit, match=r"g\.txt: expected .* found none"):
        main(
            ["collect_predictions", "--generated", str(tmp_path / "g.txt"), "--out", str(tmp_path / "p.json")]
        )
    assert not (tmp_path / "p.json").exists()


def test_answers_have_the_form_of_the_vqa_server(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "g.txt").write_text("T-262148000\t1.0|!+red&&0.6|!+dark red\nD-262148000\t-1.0\t red\n")
    out = tmp_path / "p.json"
    main(["collect_predictions", "--task", "vqa", "--generated", str(tmp_path / "g.txt"), "--out", str(out)])
    assert json.loads(out.read_text()) == [{"question_id": 262148000, "answer": "red"}]
    assert (tmp_path / "p.scores.tsv").read_text() == "262148000\t0.5\tred\n"
    assert capsys.readouterr().out == "VQA accuracy = 100.00 over 1 rows\n"


OPTIONS = {"patch_image_size": 64, "max_image_size": 128, "num_bins": 128}


@pytest.mark.parametrize(
    "state",
    [
        {"cfg": {"task": OPTIONS}},
        {"cfg": OmegaConf.create({"task": OPTIONS})},
        {"cfg": None, "args": Namespace(**OPTIONS)},  # of fairseq's before YAML
    ],
    ids=["container", "config", "namespace"],
)
def test_boxes_are_in_pixels_of_the_stored_picture(
    state: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(state | {"model": {"weight": torch.zeros(2)}}, tmp_path / "m.pt")
    image = Image.new("RGB", (100, 50))
    write_tsv(tmp_path / "d.tsv", [["a/1", encode_image(image), "the dog", "10,5,60,40"]])
    # The picture is stretched to 64 x 64, of which the last of 128 bins is pixel 128.
    bins = BoxFrame(100, 50, 64, 128, 128).quantize((10, 5, 60, 40))
    output = "".join(f"<bin_{bin_}>" for bin_ in bins)
    (tmp_path / "g.txt").write_text(f"T-a/1\t6.35,6.35,38.1,50.8\nD-a/1\t-1.0\t{output}\n")
    run = f"collect_predictions --task refcoco --generated {tmp_path}/g.txt --out {tmp_path}/p.json"
    options = f"--data {tmp_path}/d.tsv --selected-cols 0,1,2,3 --draw {tmp_path}/drawn"
    with pytest.raises(SystemExit, match="--model, the checkpoint"):
        main(f"{run} {options}".split())
    torch.save({"model": {}}, tmp_path / "weights.pt")
    with pytest.raises(SystemExit, match=r"weights\.pt: expected a checkpoint of training"):
        main(f"{run} {options} --model {tmp_path}/weights.pt".split())
    main(f"{run} {options} --model {tmp_path}/m.pt".split())
    [entry] = json.loads((tmp_path / "p.json").read_text())
    assert entry["uniq_id"] == "a/1"
    assert entry["box"] == pytest.approx([10, 5, 60, 40], abs=1)
    assert "Acc@0.5 = 100.00" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "drawn").iterdir()] == ["a_1.png"]


def test_an_output_may_hold_tabs_and_carriage_returns(tmp_path: Path) -> None:
    path = tmp_path / "generate-test.txt"
    path.write_bytes(b"D-7\t-1\ta\tb\nD-8\t-1\tc\rD-9\t-1\td\n")
    outputs = read_outputs(path)
    assert {key: output.text for key, output in outputs.items()} == {"7": "a\tb", "8": "c\rD-9\t-1\td"}


def test_rows_that_share_an_id_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "generate-test.txt"
    path.write_text("T-1\tcat\nT-1\tdog\nT-2\tcow\n")
    assert read_targets(path) == {"1": "dog", "2": "cow"}
    assert "3 rows, but only 2 different ids" in caplog.text
