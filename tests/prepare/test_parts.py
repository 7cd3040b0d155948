"""Parts: all items once and in order, whatever the number of processes, and nothing that is finished is done again."""

from functools import partial
from pathlib import Path

import pytest

from ofa_fairseq.prepare import parts
from ofa_fairseq.prepare.parts import UnusableError, make_parts, read_failures, read_rows


def square(item: int, log: Path) -> str:
    with log.open("a") as file:
        file.write(f"{item}\n")
    if item % 7 == 3:
        raise UnusableError(f"{item} is unusable")
    if (log.parent / f"stop at {item}").exists():
        raise KeyError("interrupted")
    return str(item * item)


@pytest.mark.parametrize("workers", [1, 3])
def test_interrupted_work_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    monkeypatch.setattr(parts, "PART_SIZE", 4)
    log, stop, folder = tmp_path / "log", tmp_path / "stop at 13", tmp_path / "parts"
    work = partial(square, log=log)
    stop.touch()
    with pytest.raises(KeyError, match="interrupted"):
        make_parts(range(30), work, folder, workers, "test")
    finished = {int(path.stem) for path in folder.glob("*.tsv")}
    assert 12 not in finished

    stop.unlink()
    before = len(log.read_text().split())
    make_parts(range(30), work, folder, workers, "test")
    again = {int(item) for item in log.read_text().split()[before:]}
    assert again == {item for item in range(30) if item - item % 4 not in finished}
    assert list(read_rows(folder)) == [str(item * item) for item in range(30) if item % 7 != 3]
    assert read_failures(folder) == [f"{item} is unusable" for item in (3, 10, 17, 24)]
