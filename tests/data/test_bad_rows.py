import base64
import logging
import multiprocessing
import struct
import zlib
from pathlib import Path

import pytest
from task_builders import caption_run, picture, write_tsv

from ofa_fairseq.data.bad_rows import NAMED_IN_LOG, BadRows
from ofa_fairseq.data.example import ExampleDataset
from ofa_fairseq.data.images import MAX_PIXELS
from ofa_fairseq.data.tsv import RowError


def huge_picture() -> str:
    """A PNG of 60,000 x 60,000 pixels, as its header says, in less than 100 bytes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(bytes(9))), chunk(b"IEND", b"")]
    return base64.urlsafe_b64encode(b"\x89PNG\r\n\x1a\n" + b"".join(parts)).decode()


PICTURE = picture()
# Kind -> the row's columns and what the list says of it.
BAD: dict[str, tuple[list[str | bytes], str]] = {
    "columns": (["1", PICTURE, "a dog", "more"], "has 4 columns, other rows have 3"),
    "base64": (["2", PICTURE[:-8] + "A===BBBB", "a dog"], "base64"),
    "truncated": (["3", PICTURE[: len(PICTURE) // 2 // 4 * 4], "a dog"], "the image can't be decoded: "),
    "no picture": (["4", base64.urlsafe_b64encode(b"no picture").decode(), "a dog"], "not an image"),
    "huge": (["5", huge_picture(), "a dog"], str(MAX_PIXELS)),
    "missing file": (["6", "nowhere/picture.jpg", "a dog"], "nowhere/picture.jpg"),
    "no words": (["7", PICTURE, "..."], "the caption is empty"),
    "encoding": (["8", PICTURE, b"un caf\xe9"], "is not UTF-8"),
}
GOOD: list[str | bytes] = ["0", PICTURE, "a dog"]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """One good row, then one of each bad kind."""
    return write_tsv(tmp_path / "rows.tsv", [GOOD, *(row for row, _ in BAD.values())])


def dataset_of(file: Path, bpe_dir: Path, *flags: str) -> ExampleDataset:
    flags = ("--bad-rows", str(file.with_name("bad_rows.tsv")), *flags)
    task = caption_run(f"{file},{file}", bpe_dir, *flags).task
    assert task.vocabulary
    task.load_dataset("train")
    return task.dataset("train")


def listed(file: Path) -> list[list[str]]:
    return [line.split("\t") for line in file.with_name("bad_rows.tsv").read_text().splitlines()]


def test_every_kind_is_skipped_and_listed_with_its_reason(
    file: Path, sentencepiece_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    dataset = dataset_of(file, sentencepiece_dir)
    batch = dataset.collater([dataset[i] for i in range(len(dataset))])
    assert batch["skipped_rows"] == len(BAD)
    assert batch["id"].tolist() == ["0"]

    entries = listed(file)
    assert [(path, int(row)) for path, row, _ in entries] == [(str(file), i + 2) for i in range(len(BAD))]
    for (_, _, reason), (_, expected) in zip(entries, BAD.values()):
        assert expected in reason
    named = [record.message for record in caplog.records if record.message.startswith("skipped")]
    assert named == [f"skipped {path}, row {row}: {reason}" for path, row, reason in entries[:NAMED_IN_LOG]]
    assert f"all are listed in {file.with_name('bad_rows.tsv')}" in caplog.text


@pytest.mark.parametrize("kind", BAD)
def test_strict_data_stops_with_the_same_message(kind: str, tmp_path: Path, sentencepiece_dir: Path) -> None:
    file = write_tsv(tmp_path / "rows.tsv", [GOOD, BAD[kind][0]])
    assert dataset_of(file, sentencepiece_dir)[1] is None
    [[path, row, reason]] = listed(file)
    strict = dataset_of(file, sentencepiece_dir, "--strict-data")
    assert strict[0] is not None
    with pytest.raises(RowError) as caught:
        strict[1]
    assert str(caught.value) == f"{path}, row {row}: {reason}"


def test_rows_are_listed_once_over_epochs_and_runs(file: Path, sentencepiece_dir: Path) -> None:
    for _ in range(2):  # runs
        dataset = dataset_of(file, sentencepiece_dir)
        for _ in range(2):  # epochs
            assert sum(dataset[i] is None for i in range(len(dataset))) == len(BAD)
    assert len(listed(file)) == len(BAD)


def add_rows(path: Path, first: int) -> None:
    rows = BadRows(path)
    for i in range(first, first + 60):
        rows.add(RowError(Path("rows.tsv"), i + 1, f"reason {i}"))


def test_several_processes_share_the_list(tmp_path: Path) -> None:
    """Each row is added by two or three of four processes at once."""
    path = tmp_path / "folder" / "bad_rows.tsv"
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=add_rows, args=(path, first)) for first in (0, 20, 40, 20)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    lines = path.read_text().splitlines()
    assert sorted(lines) == sorted(f"rows.tsv\t{i + 1}\treason {i}" for i in range(100))


def test_a_reason_takes_one_line(tmp_path: Path) -> None:
    rows = BadRows(tmp_path / "bad_rows.tsv")
    rows.add(RowError(Path("a.tsv"), 3, "several\nlines\tand a tab"))
    assert (tmp_path / "bad_rows.tsv").read_text() == "a.tsv\t3\tseveral lines and a tab\n"
    assert (
        rows.summary()
        == f"1 are listed in {tmp_path / 'bad_rows.tsv'}, the first: a.tsv, 3, several lines and a tab"
    )


def test_nothing_is_written_while_all_is_well(tmp_path: Path, sentencepiece_dir: Path) -> None:
    file = write_tsv(tmp_path / "rows.tsv", [GOOD])
    assert dataset_of(file, sentencepiece_dir)[0] is not None
    assert not (tmp_path / "bad_rows.tsv").exists()
    assert BadRows(tmp_path / "bad_rows.tsv").summary() == ""
