"""The command counts what the reward counts, whichever way the captions are spread over rows."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from task_builders import write_tsv

from ofa_fairseq.metrics.cider import DocumentFrequencies
from ofa_fairseq.metrics.rewards import END, frequencies_with_ends
from ofa_fairseq.prepare.__main__ import main

PICTURES = {"7": ["a dog runs.", "the dog"], "8": ["a cat"], "9": ["two birds, on a wire", "birds"]}


def counted(
    folder: Path, rows: Sequence[Sequence[str]], *flags: str, name: str = "frequencies.json.gz"
) -> DocumentFrequencies:
    data, out = write_tsv(folder / "train.tsv", rows), folder / name
    main(["document_frequencies", "--data", str(data), "--out", str(out), *flags])
    return DocumentFrequencies.load(out)


def joined() -> list[list[str]]:
    return [["0", image, "&&".join(texts), "labels", "picture"] for image, texts in PICTURES.items()]


def test_counts_are_those_of_the_reward(tmp_path: Path) -> None:
    texts = [[text.replace(".", "").replace(",", "") for text in texts] for texts in PICTURES.values()]
    expected = frequencies_with_ends(texts)
    found = counted(tmp_path, joined())
    assert dict(found.counts) == dict(expected.counts)
    assert found.num_documents == expected.num_documents == 3
    assert found.counts[END,] == 3


def test_several_rows_of_a_picture_are_one_document(tmp_path: Path) -> None:
    single = [["0", image, text] for image, texts in PICTURES.items() for text in texts]
    assert counted(tmp_path, single) == counted(tmp_path, joined())


def test_without_ends_and_with_punctuation(tmp_path: Path) -> None:
    found = counted(tmp_path, joined(), "--no-ends", "--keep-punctuation")
    assert (END,) not in found.counts
    assert found.counts["runs.",] == 1


def test_unreadable_rows_are_left_out_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = counted(tmp_path, [*joined(), ["a row", "of two columns"]])
    assert found.num_documents == 3
    assert "row 4" in caplog.text


def test_nothing_to_count_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no captions in column 2"):
        counted(tmp_path, [["0", "7", ""]])
    with pytest.raises(SystemExit, match="expected two columns"):
        counted(tmp_path, joined(), "--selected-cols", "2")


def test_the_folder_is_made(tmp_path: Path) -> None:
    assert counted(tmp_path, joined(), name="a/new/folder/frequencies.json.gz").num_documents == 3


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("frequencies.json", "frequencies.json: expected a name that ends in .json.gz"),
        ("coco-train-words.p", "coco-train-words.p: expected a name that ends in .json.gz"),
        ("train.tsv/frequencies.json.gz", "File exists|Not a directory"),
    ],
)
def test_a_place_where_nothing_can_be_written_is_refused_before_counting(
    tmp_path: Path, name: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ofa_fairseq.prepare.document_frequencies.tqdm", pytest.fail)
    with pytest.raises(SystemExit, match=said):
        counted(tmp_path, joined(), name=name)
