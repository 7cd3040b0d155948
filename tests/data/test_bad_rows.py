import base64
import logging
import multiprocessing
import os
import pickle
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
    assert f"all are listed in {file.with_name('bad_rows.tsv')}," in caplog.text


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


def errors(first: int, last: int) -> list[RowError]:
    return [RowError(Path("rows.tsv"), row, f"reason {row}") for row in range(first, last + 1)]


def lines(first: int, last: int) -> list[str]:
    return [f"rows.tsv\t{row}\treason {row}" for row in range(first, last + 1)]


def add_all(rows: BadRows, first: int, last: int) -> None:
    for error in errors(first, last):
        rows.add(error)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "bad_rows.tsv"


@pytest.fixture
def earlier(path: Path) -> Path:
    """The list, as a run a minute ago left it: rows 1 to 3."""
    add_all(BadRows(path), 1, 3)
    a_minute_ago = path.stat().st_mtime - 60
    os.utime(path, (a_minute_ago, a_minute_ago))
    return path


def test_rows_are_listed_once_over_epochs(file: Path, sentencepiece_dir: Path) -> None:
    dataset = dataset_of(file, sentencepiece_dir)
    for _ in range(2):  # epochs
        assert sum(dataset[i] is None for i in range(len(dataset))) == len(BAD)
    assert len(listed(file)) == len(BAD)


def test_a_new_run_has_its_own_warnings_and_its_own_list(
    earlier: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Rows 1 and 2 were mended since, row 3 was not."""
    rows = BadRows(earlier)
    assert earlier.read_text().splitlines() == lines(1, 3), "kept until there is something to list"
    caplog.clear()
    add_all(rows, 3, 10)
    add_all(rows, 3, 10)
    assert earlier.read_text().splitlines() == lines(3, 10)
    where, *named = [record.message for record in caplog.records]
    assert str(earlier) in where
    assert named == [f"skipped {error}" for error in errors(3, 3 + NAMED_IN_LOG - 1)]
    assert rows.summary().startswith(
        f"8 are listed in {earlier}, the first: rows.tsv, 3, reason 3; rows.tsv, 4,"
    )


@pytest.mark.parametrize("spawned", [False, True])
def test_several_processes_share_the_list(spawned: bool, earlier: Path) -> None:
    """Each row is added by one to three of four workers of two ranks at once, and again in the next epoch."""
    ranks = [BadRows(earlier), BadRows(earlier)]
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(4)

    def work(rows: BadRows, first: int) -> None:
        barrier.wait(60)
        add_all(rows, first, first + 299)

    for _ in range(2):  # epochs
        copies = pickle.loads(pickle.dumps(ranks)) if spawned else ranks
        processes = [
            context.Process(target=work, args=(copies[i % 2], first))
            for i, first in enumerate((1, 101, 201, 101))
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        assert sorted(earlier.read_text().splitlines()) == sorted(lines(1, 500))
    add_all(ranks[0], 500, 501)
    assert earlier.read_text().splitlines()[500:] == lines(501, 501)


def test_only_what_was_appended_is_read(path: Path) -> None:
    """What one process has read may even be overwritten without another notice."""
    ours, theirs = BadRows(path), BadRows(path)
    add_all(ours, 1, 2)
    add_all(theirs, 3, 4)
    add_all(ours, 5, 5)
    with open(path, "r+") as list_file:
        list_file.write("X" * len("\n".join(lines(1, 2))))
    add_all(theirs, 6, 6)
    add_all(ours, 1, 7)
    assert path.read_text().splitlines()[1:] == lines(3, 7)
    assert ours.summary().startswith("7 are listed")


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
