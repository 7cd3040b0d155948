"""`python -m ofa_fairseq.prepare presence`: precision and recall against a count by hand."""

from pathlib import Path

import numpy as np
import pytest

from ofa_fairseq.prepare.__main__ import main


def test_precision_and_recall_of_each_threshold(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    rows = [("absent", p) for p in rng.uniform(0, 0.6, 60)] + [
        ("present", p) for p in rng.uniform(0.2, 1, 40)
    ]
    lines = [f"D-{kind}-{i}\t{np.log2(p)}\t<bin_0><bin_0><bin_1><bin_1>" for i, (kind, p) in enumerate(rows)]
    (tmp_path / "g.txt").write_text("\n".join(lines) + "\n")
    main(["presence", "--predictions", str(tmp_path / "g.txt")])
    _, *table, last = capsys.readouterr().out.splitlines()
    assert len(table) == 5
    for line, wanted in zip(table, (50, 70, 80, 90, 95)):
        threshold, precision, recall = map(float, line.split())
        found = [kind for kind, p in rows if p <= threshold * 1.001]
        assert precision == pytest.approx(100 * found.count("absent") / len(found), abs=2)
        assert recall == pytest.approx(100 * found.count("absent") / 60, abs=2)
        assert recall >= wanted
    assert "chance 60.0) over 100 phrases" in last


def test_other_rows_are_refused(tmp_path: Path) -> None:
    (tmp_path / "g.txt").write_text("D-1\t-1.0\tx\n")
    with pytest.raises(SystemExit, match="expected rows present- and absent-, or exists- with both answers"):
        main(["presence", "--predictions", str(tmp_path / "g.txt")])


def test_questions_are_told_by_the_probability_of_no(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        ("no", "no", 0.9),
        ("no", "no", 0.6),
        ("no", "yes", 0.55),
        ("yes", "yes", 0.8),
        ("yes", "no", 0.5),
    ]
    lines = ["T-colour-9-0\t1.0|!+no", "D-colour-9-0\t-9\tno"]  # not asked
    for i, (truth, answer, p) in enumerate(rows):
        lines += [f"T-exists-{i}-0\t1.0|!+{truth}", f"D-exists-{i}-0\t{np.log2(p)}\t{answer}"]
    (tmp_path / "g.txt").write_text("\n".join(lines) + "\n")
    main(["presence", "--predictions", str(tmp_path / "g.txt")])
    # Doubts, the largest first: no 0.9, no 0.6, yes 0.5, no 0.45, yes 0.2.
    expected = (1 + 1 + 3 / 4) / 3
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"average precision {100 * expected:.1f} (chance 60.0) over 5 phrases"
