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
    with pytest.raises(SystemExit, match="expected ids that begin with present- and with absent-"):
        main(["presence", "--predictions", str(tmp_path / "g.txt")])
