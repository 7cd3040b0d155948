"""TsvFile against plain reads of the same bytes, and all that can go wrong with a file or its index."""

import multiprocessing
import os
import pickle
from collections.abc import Iterator
from io import FileIO
from multiprocessing.queues import Queue
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset

from ofa_fairseq.data import tsv
from ofa_fairseq.data.tsv import RowError, TsvFile, parse_columns


def write(path: Path, content: bytes | str) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def expected_lines(content: bytes) -> list[bytes]:
    lines = content.split(b"\n")
    if lines[-1] == b"":
        lines.pop()
    return [line[:-1] if line.endswith(b"\r") else line for line in lines]


def all_rows(file: TsvFile) -> list[list[str]]:
    return [file[row] for row in range(len(file))]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "rows.tsv"


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder of the test's own."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


# Small blocks put row ends everywhere: inside blocks, at their edges, and many blocks without any.
@pytest.fixture(params=[1, 3, 1 << 20])
def block_bytes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tsv, "_BLOCK_BYTES", request.param)


@pytest.mark.usefixtures("block_bytes")
@pytest.mark.parametrize(
    ("content", "rows"),
    [
        (b"a\tb\nc\td\n", [["a", "b"], ["c", "d"]]),
        (b"a\tb\nc\td", [["a", "b"], ["c", "d"]]),
        (b"a\tb\r\nc\td\r\n", [["a", "b"], ["c", "d"]]),
        (b"a\tb\r\nc\td\r", [["a", "b"], ["c", "d"]]),
        (b"a\rz\tb\n\rc\td\r\r\n", [["a\rz", "b"], ["\rc", "d\r"]]),
        (b"\t\t\n\tx\t\n", [["", "", ""], ["", "x", ""]]),
        (b"a\n\nb\n\n", [["a"], [""], ["b"], [""]]),
        ("a\u2028b\x0b\x0c\x85\tß\n語\t\U0001f600\n", [["a\u2028b\x0b\x0c\x85", "ß"], ["語", "\U0001f600"]]),
        (b'"a\tb"\n\'c\t"\n', [['"a', 'b"'], ["'c", '"']]),
        (b"\xef\xbb\xbf0\tb\r\n1\td\n", [["0", "b"], ["1", "d"]]),
        ("\ufeff\ufeffa\t\ufeffb\n\ufeffc\td\n", [["\ufeffa", "\ufeffb"], ["\ufeffc", "d"]]),
        (b"\n", [[""]]),
        (b"x", [["x"]]),
    ],
)
def test_rows(path: Path, content: bytes | str, rows: list[list[str]]) -> None:
    file = TsvFile(write(path, content))
    assert len(file) == len(rows)
    assert file.num_columns == len(rows[0])
    assert all_rows(file) == rows


@given(content=st.lists(st.sampled_from([b"\n", b"\r", b"\r\n", b"a", b"bc", b" ", b"\xc3\xa9"]), min_size=1))
def test_any_bytes_equal_a_plain_split(
    tmp_path_factory: pytest.TempPathFactory, content: list[bytes]
) -> None:
    data = b"".join(content)
    file = TsvFile(write(tmp_path_factory.mktemp("bytes") / "file.tsv", data))
    assert [columns[0].encode() for columns in all_rows(file)] == expected_lines(data)


@given(data=st.data(), num_columns=st.integers(1, 4), line_end=st.sampled_from(["\n", "\r\n"]))
def test_any_rows_written_are_read(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, num_columns: int, line_end: str
) -> None:
    text = st.text(st.characters(exclude_characters="\t\n\r\ufeff", exclude_categories=["Cs"]))
    rows = data.draw(st.lists(st.lists(text, min_size=num_columns, max_size=num_columns), min_size=1))
    content = "".join("\t".join(columns) + line_end for columns in rows)
    selected = data.draw(st.lists(st.integers(0, num_columns - 1), min_size=1))
    file = TsvFile(write(tmp_path_factory.mktemp("rows") / "file.tsv", content), selected)
    assert all_rows(file) == [[columns[column] for column in selected] for columns in rows]


def test_rows_of_five_megabytes(path: Path) -> None:
    rows = [[str(number), chr(ord("A") + number) * 5_000_000, "end"] for number in range(4)]
    file = TsvFile(write(path, "\r\n".join("\t".join(columns) for columns in rows)), [2, 1])
    for number in (3, 0, 2, 1):
        assert file[number] == ["end", rows[number][1]]


def test_many_rows_in_random_order(path: Path) -> None:
    generator = np.random.RandomState(0)
    lines = [f"{row}\t{'x' * length}" for row, length in enumerate(generator.randint(0, 400, 20_000))]
    file = TsvFile(write(path, "\n".join(lines)))
    for row in generator.randint(0, len(lines), 2_000):
        assert "\t".join(file[row]) == lines[row]


@pytest.mark.parametrize("row", [-1, 2, 10**20])
def test_rows_outside_the_file(path: Path, row: int) -> None:
    with pytest.raises(IndexError, match=f"rows 0 to 1, not {row}"):
        TsvFile(write(path, "a\nb\n"))[row]


# Rows that can't be used


def test_wrong_number_of_columns(path: Path) -> None:
    file = TsvFile(write(path, "1\t2\t3\t4\t5\n1\t2\t3\t4\n1\t2\t3\t4\t5\n"), [0])
    with pytest.raises(RowError, match="has 4 columns, other rows have 5") as caught:
        file[1]
    assert (caught.value.path, caught.value.row) == (path, 2)
    assert str(caught.value) == f"{path}, row 2: has 4 columns, other rows have 5"
    assert file[2] == ["1"]


def test_the_first_row_may_be_the_broken_one(path: Path) -> None:
    file = TsvFile(write(path, "1\t2\n1\t2\t3\n4\t5\t6\n"), [2])
    with pytest.raises(RowError, match="row 1: has 2 columns, other rows have 3"):
        file[0]
    assert [file[1], file[2]] == [["3"], ["6"]]


def test_bytes_that_are_not_utf8(path: Path) -> None:
    file = TsvFile(write(path, b"a\tb\nc\t\xff\xfe\n"))
    assert file[0] == ["a", "b"]
    with pytest.raises(RowError, match="row 2: is not UTF-8 .*0xff"):
        file[1]


def test_rows_too_long_for_one_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tsv, "_MAX_ROW_BYTES", 10)
    file = TsvFile(write(path, "short\n" + "x" * 50 + "\n"))
    with pytest.raises(RowError, match="row 2: is 51 bytes long, 10 are allowed"):
        file[1]


def test_row_error_survives_pickling(path: Path) -> None:
    error = pickle.loads(pickle.dumps(RowError(path, 7, "has no text")))
    assert (error.path, error.row, error.reason, str(error)) == (
        path,
        7,
        "has no text",
        f"{path}, row 7: has no text",
    )


# Files and columns that can't be used


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="absent.tsv: no such TSV file"):
        TsvFile(tmp_path / "absent.tsv")


def test_folder_in_place_of_a_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected a TSV file, this is a folder"):
        TsvFile(tmp_path)


def test_empty_file(path: Path) -> None:
    with pytest.raises(ValueError, match="at least one row, this file is empty"):
        TsvFile(write(path, ""))


@pytest.mark.parametrize("column", [3, -1])
def test_selected_column_that_does_not_exist(path: Path, column: int) -> None:
    write(path, "17\ta goat\t/9j/" + "A" * 100_000 + "\n")
    with pytest.raises(ValueError, match=f"selected column {column} does not exist") as caught:
        TsvFile(path, [0, column])
    message = str(caught.value)
    assert "the first line has 3 columns: '17', 'a goat', '/9j/AAAA" in message
    assert len(message) < 500


def test_selected_columns_come_in_the_given_order(path: Path) -> None:
    assert TsvFile(write(path, "a\tb\tc\n"), [2, 0, 2])[0] == ["c", "a", "c"]


@pytest.mark.parametrize(
    ("text", "columns"), [(None, None), ("0,4,2", [0, 4, 2]), ("3", [3]), (" 1, 2 ", [1, 2])]
)
def test_parse_columns(text: str | None, columns: list[int] | None) -> None:
    assert parse_columns(text) == columns


@pytest.mark.parametrize("text", ["", "a", "0,", ",0", "0,,2", "-1", "0;2", "1.5", "0 2", "1_0"])
def test_parse_columns_refuses(text: str) -> None:
    with pytest.raises(ValueError, match="--selected-cols: expected column numbers such as 0,4,2") as caught:
        parse_columns(text)
    assert repr(text) in str(caught.value)


# The index


@pytest.fixture
def scans(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were scanned for row ends."""
    paths: list[Path] = []
    row_ends = tsv._row_ends

    def counting(path: Path, stamp: tsv.FileStamp) -> Iterator[np.ndarray]:
        paths.append(path)
        yield from row_ends(path, stamp)

    monkeypatch.setattr(tsv, "_row_ends", counting)
    return paths


def test_index_is_made_once(path: Path, scans: list[Path]) -> None:
    write(path, "a\nb\nc\n")
    for _ in range(3):
        assert all_rows(TsvFile(path)) == [["a"], ["b"], ["c"]]
    assert scans == [path]
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["rows.tsv", "rows.tsv.ofa_index"]


def test_an_index_of_the_original_is_left_alone(path: Path) -> None:
    theirs = path.with_name("rows.tsv.index")
    theirs.write_bytes(pickle.dumps((3, [0, 2, 4])))
    assert all_rows(TsvFile(write(path, "a\nb\nc\n"))) == [["a"], ["b"], ["c"]]
    assert pickle.loads(theirs.read_bytes()) == (3, [0, 2, 4])


def test_index_of_a_changed_file_is_made_again(path: Path, scans: list[Path]) -> None:
    TsvFile(write(path, "aa\nb\n"))
    os.utime(write(path, "a\nbb\n"), ns=(1, 1))  # the same size, another time
    assert all_rows(TsvFile(path)) == [["a"], ["bb"]]
    os.utime(write(path, "a\nbb\nc"), ns=(1, 1))  # the same time, another size
    assert all_rows(TsvFile(path)) == [["a"], ["bb"], ["c"]]
    assert len(scans) == 3


@pytest.mark.parametrize("kept", [0, 5, 8, 24, 32, 39, 40, "garbage", "pickle"])
def test_damaged_index_is_made_again(path: Path, scans: list[Path], kept: int | str) -> None:
    TsvFile(write(path, "a\nb\nc\n"))
    index = path.with_name("rows.tsv.ofa_index")
    whole = index.read_bytes()
    if isinstance(kept, int):
        index.write_bytes(whole[:kept])
    else:
        index.write_bytes(bytes(len(whole)) if kept == "garbage" else pickle.dumps((3, [0, 2, 4])))
    assert all_rows(TsvFile(path)) == [["a"], ["b"], ["c"]]
    assert index.read_bytes() == whole
    assert len(scans) == 2


@pytest.mark.parametrize("offset", [0, 2, 3, 5, 6, 8])
def test_wrong_offset_within_the_index_is_noticed(path: Path, offset: int) -> None:
    TsvFile(write(path, "a\tb\nc\td\n"))
    index = path.with_name("rows.tsv.ofa_index")
    values = np.fromfile(index, dtype=np.int64)
    assert values[4] == 4
    values[4] = offset
    values.tofile(index)
    with pytest.raises(RuntimeError, match=r"delete its index \(.*rows.tsv.ofa_index or "):
        TsvFile(path)


@pytest.fixture
def read_only_folder(path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The TSV's folder, refusing new files as a read-only one does (chmod would not keep root out)."""
    write_index = tsv._write_index

    def refusing(place: Path, tsv_path: Path, stamp: tsv.FileStamp) -> None:
        if place.parent == path.parent:
            raise PermissionError(13, "Permission denied", str(place))
        write_index(place, tsv_path, stamp)

    monkeypatch.setattr(tsv, "_write_index", refusing)
    return path.parent


@pytest.mark.usefixtures("read_only_folder")
def test_read_only_folder(path: Path, cache: Path, scans: list[Path]) -> None:
    write(path, "a\nb\n")
    for _ in range(2):
        assert all_rows(TsvFile(path)) == [["a"], ["b"]]
    assert len(scans) == 1
    assert [entry.name for entry in path.parent.iterdir()] == ["rows.tsv"]
    assert len(list((cache / "ofa_fairseq" / "tsv_index").glob("*.ofa_index"))) == 1


@pytest.mark.usefixtures("read_only_folder")
def test_nowhere_to_write(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(write(path, "a\n")))  # a file where a folder is wanted
    with pytest.raises(OSError, match="can't be kept .*Permission denied.*name a writable XDG_CACHE_HOME"):
        TsvFile(path)


def test_failed_write_leaves_nothing_behind(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        TsvFile(write(path, "a\n"))
    assert [entry.name for entry in path.parent.iterdir()] == ["rows.tsv"]


def test_file_that_grows_while_it_is_indexed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(path, "a\nb\n")
    open_unchanged = tsv._open_unchanged

    def growing(path: Path, stamp: tsv.FileStamp) -> FileIO:
        file = open_unchanged(path, stamp)
        with open(path, "a") as writer:
            writer.write("c\n")
        return file

    monkeypatch.setattr(tsv, "_open_unchanged", growing)
    with pytest.raises(RuntimeError, match="changed while it was being indexed"):
        TsvFile(path)


def test_file_that_changed_before_a_worker_opens_it(path: Path) -> None:
    pickled = pickle.dumps(TsvFile(write(path, "a\nb\n")))
    write(path, "a\nb\nc\n")
    with pytest.raises(RuntimeError, match="has changed since it was opened"):
        pickle.loads(pickled)[0]


def test_file_that_is_shortened_while_it_is_read(path: Path) -> None:
    file = TsvFile(write(path, "a\nbcd\n"))
    os.truncate(path, 4)
    with pytest.raises(RuntimeError, match="row 2: the file is not the one that was indexed"):
        file[1]


# Processes


def test_pickle_is_small_and_works(path: Path) -> None:
    file = TsvFile(write(path, "".join(f"{row}\tx\n" for row in range(10_000))), [1, 0])
    file[9_999]
    pickled = pickle.dumps(file)
    assert len(pickled) < 1_000
    assert pickle.loads(pickled)[1234] == ["x", "1234"]


@pytest.mark.parametrize("context", ["spawn", "fork"])
def test_data_loader_workers(path: Path, context: str) -> None:
    file = TsvFile(write(path, "".join(f"{row}\t{'x' * (row % 97)}\r\n" for row in range(500))), [0, 1])
    file[0]  # forked workers inherit open handles
    loader: DataLoader = DataLoader(
        cast(Dataset, file), batch_size=7, num_workers=2, multiprocessing_context=context, collate_fn=list
    )
    rows = [columns for batch in loader for columns in batch]
    assert rows == [[str(row), "x" * (row % 97)] for row in range(500)]


def open_and_report(path: Path, reports: Queue) -> None:
    file = TsvFile(path)
    reports.put((len(file), file[49_999]))


def test_processes_that_index_at_once(path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(path, "".join(f"{row}\n" for row in range(50_000)))
    context = multiprocessing.get_context("fork")
    barrier, reports, row_ends = context.Barrier(3), context.Queue(), tsv._row_ends

    def overlapping(path: Path, stamp: tsv.FileStamp) -> Iterator[np.ndarray]:
        barrier.wait(60)  # every process has begun its index, none has finished
        yield from row_ends(path, stamp)

    monkeypatch.setattr(tsv, "_row_ends", overlapping)
    processes = [context.Process(target=open_and_report, args=(path, reports)) for _ in range(3)]
    for process in processes:
        process.start()
    results = [reports.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert results == [(50_000, ["49999"])] * 3
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["rows.tsv", "rows.tsv.ofa_index"]
    assert not list(cache.iterdir())
