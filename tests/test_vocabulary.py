import hashlib
import json
import pickle
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from fairseq.data import Dictionary
from fairseq.data.encoders.gpt2_bpe import GPT2BPE
from hypothesis import given
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

from ofa_fairseq import vocabulary as module
from ofa_fairseq.vocabulary import Vocabulary

SPECIAL_LOOKING = st.sampled_from(
    ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "<code_0>", "<bin_3>", "<0x41>", "▁"]
)
ANY_TEXT = st.lists(st.text() | SPECIAL_LOOKING).map("".join)


@pytest.fixture(scope="module")
def gpt2(gpt2_bpe_dir: Path) -> Vocabulary:
    return Vocabulary.load(str(gpt2_bpe_dir))


@pytest.fixture(scope="module")
def stock_bpe(gpt2_bpe_dir: Path) -> GPT2BPE:
    files = {"gpt2_encoder_json": "encoder.json", "gpt2_vocab_bpe": "vocab.bpe"}
    return GPT2BPE(Namespace(**{option: str(gpt2_bpe_dir / name) for option, name in files.items()}))


@pytest.fixture(scope="module")
def small(sentencepiece_dir: Path) -> Vocabulary:
    return Vocabulary.load(str(sentencepiece_dir), num_codes=16, num_bins=10)


def folder_with(folder: Path, **files: str) -> str:
    for name, content in files.items():
        (folder / name.replace("_", ".")).write_text(content)
    return str(folder)


@pytest.fixture(scope="module")
def boxes(sentencepiece_dir: Path) -> Vocabulary:
    return Vocabulary.load(str(sentencepiece_dir))  # 1,000 bins


# Layout


def test_released_layout(gpt2: Vocabulary) -> None:
    assert len(gpt2) == len(gpt2.dictionary) == 59457
    assert (gpt2.bos, gpt2.pad, gpt2.eos, gpt2.unk, gpt2.mask) == (0, 1, 2, 3, 50264)
    assert gpt2.code_range == (50265, 58457)
    assert gpt2.bin_range == (58457, 59457)
    assert [gpt2.dictionary[i] for i in (4, 50264, 50265, 58456, 58457, 59456)] == [
        "13",
        "<mask>",
        "<code_0>",
        "<code_8191>",
        "<bin_0>",
        "<bin_999>",
    ]


def test_released_ids(gpt2: Vocabulary, reference_dir: Path) -> None:
    for example in json.loads((reference_dir / "bpe_examples.json").read_text())["examples"]:
        assert gpt2.encode(example["text"]) == example["ids"]
        assert gpt2.decode(example["ids"]) == example["text"]


def test_sentencepiece_layout_follows_dict_txt(small: Vocabulary, sentencepiece_dir: Path) -> None:
    pieces = [line.rsplit(" ", 1)[0] for line in (sentencepiece_dir / "dict.txt").read_text().splitlines()]
    codes, bins = [f"<code_{i}>" for i in range(16)], [f"<bin_{i}>" for i in range(10)]
    assert small.dictionary.symbols == ["<s>", "<pad>", "</s>", "<unk>", *pieces, "<mask>", *codes, *bins]


def test_dictionary_is_filled_in_place(sentencepiece_dir: Path) -> None:
    dictionary = Dictionary()
    assert Vocabulary.load(str(sentencepiece_dir), dictionary=dictionary).dictionary is dictionary
    assert "<bin_999>" in dictionary
    with pytest.raises(ValueError, match="empty dictionary"):
        Vocabulary.load(str(sentencepiece_dir), dictionary=dictionary)


# Text


@given(text=ANY_TEXT)
def test_gpt2_round_trip_stays_in_text_pieces(gpt2: Vocabulary, text: str) -> None:
    ids = gpt2.encode(text)
    assert all(4 <= i < gpt2.mask for i in ids)
    assert gpt2.decode([gpt2.bos, *ids, gpt2.eos, gpt2.pad]) == text


@given(text=ANY_TEXT)
def test_sentencepiece_round_trip_stays_in_text_pieces(small: Vocabulary, text: str) -> None:
    ids = small.encode(text)
    assert all(4 <= i < small.mask for i in ids)
    assert small.decode([small.bos, *ids, small.eos, small.pad]) == text.replace("▁", " ")


@given(text=ANY_TEXT)
def test_gpt2_symbols_equal_fairseqs(gpt2: Vocabulary, stock_bpe: GPT2BPE, text: str) -> None:
    assert gpt2.bpe.encode(text) == stock_bpe.encode(text)
    assert gpt2.bpe.decode(stock_bpe.encode(text)) == text


@given(text=ANY_TEXT)
def test_sentencepiece_symbols_equal_the_librarys(
    small: Vocabulary, sentencepiece_dir: Path, text: str
) -> None:
    processor = SentencePieceProcessor(model_file=str(sentencepiece_dir / "sentencepiece.model"))
    assert small.bpe.encode(text) == " ".join(processor.encode(text, out_type=str))
    assert small.bpe.decode(small.bpe.encode(text)) == text.replace("▁", " ")


def test_what_is_not_text_shows_its_symbol(gpt2: Vocabulary) -> None:
    ids = [
        gpt2.bos,
        4420,
        gpt2.mask,
        gpt2.unk,
        *gpt2.code_ids([7]),
        50263,
        *gpt2.bin_ids([3, 999]),
        117,
        gpt2.eos,
    ]
    assert gpt2.decode(ids) == " yes<mask><unk><code_7>madeupword0002<bin_3><bin_999> no"
    assert gpt2.decode(torch.tensor(ids)) == gpt2.decode(ids)
    # fairseq-generate writes an unknown word of a reference as <<unk>>
    symbols = f"{gpt2.dictionary[4420]} <mask> <<unk>> <bin_3> <code_7> madeupword0002 {gpt2.dictionary[117]}"
    assert gpt2.bpe.decode(symbols) == " yes<mask><<unk>><bin_3><code_7>madeupword0002 no"


def test_special_symbols_of_a_sentencepiece_model_cannot_be_reached_by_text(tmp_path: Path) -> None:
    SentencePieceTrainer.train(
        sentence_iterator=iter(["a man"]),
        model_prefix=str(tmp_path / "sentencepiece"),
        vocab_size=30,
        hard_vocab_limit=False,
        user_defined_symbols=["<mask>", "<bin_0>"],
        minloglevel=2,
    )
    vocabulary = Vocabulary.load(folder_with(tmp_path, dict_txt="a 1\nm 1\nn 1\n▁ 1\n"))
    assert vocabulary.unk in vocabulary.encode("<mask><bin_0>")
    assert all(i < vocabulary.mask for i in vocabulary.encode("a <mask> <bin_0> man"))


def test_survives_pickling(gpt2: Vocabulary, small: Vocabulary) -> None:
    for vocabulary in (gpt2, small):
        other = pickle.loads(pickle.dumps(vocabulary))
        assert other.encode(" a man") == vocabulary.encode(" a man")
        assert other.dictionary == vocabulary.dictionary


# Codes and boxes


@given(codes=st.lists(st.integers(0, 15)), bins=st.lists(st.integers(0, 9)))
def test_codes_and_bins_round_trip(small: Vocabulary, codes: list[int], bins: list[int]) -> None:
    assert [small.dictionary[i] for i in small.code_ids(codes)] == [f"<code_{c}>" for c in codes]
    assert [small.dictionary[i] for i in small.bin_ids(bins)] == [f"<bin_{b}>" for b in bins]
    assert small.codes(small.code_ids(codes)) == codes
    assert small.bins(small.bin_ids(bins)) == bins


@pytest.mark.parametrize("call", ["code_ids", "codes", "bin_ids", "bins"])
def test_numbers_out_of_range_are_refused(small: Vocabulary, call: str) -> None:
    start, end = {
        "codes": small.code_range,
        "bins": small.bin_range,
        "code_ids": (0, 16),
        "bin_ids": (0, 10),
    }[call]
    for number in (start - 1, end):
        with pytest.raises(ValueError, match=f"^{number} is no .*: expected {start} to {end - 1}$"):
            getattr(small, call)([start, number])


def test_counts_too_small(sentencepiece_dir: Path) -> None:
    assert Vocabulary.load(str(sentencepiece_dir), num_codes=0).codes([]) == []
    for num_codes, num_bins in ((-1, 2), (0, 1)):
        with pytest.raises(ValueError, match="0 or more codes and 2 or more bins"):
            Vocabulary.load(str(sentencepiece_dir), None, num_codes, num_bins)


# Files


def test_model_outside_the_folder(sentencepiece_dir: Path, tmp_path: Path, small: Vocabulary) -> None:
    model = str(sentencepiece_dir / "sentencepiece.model")
    assert (
        Vocabulary.load(None, sentencepiece_model=model, num_codes=16, num_bins=10).dictionary
        == small.dictionary
    )
    folder = folder_with(tmp_path, dict_txt=(sentencepiece_dir / "dict.txt").read_text())
    assert Vocabulary.load(folder, sentencepiece_model=model).encode(" what") == small.encode(" what")


@pytest.mark.parametrize(
    ("bpe", "files", "missing"),
    [
        (None, [], "encoder.json"),
        ("gpt2", ["encoder_json"], "vocab.bpe"),
        ("sentencepiece", ["dict_txt"], "sentencepiece.model"),
    ],
)
def test_missing_file_is_named(tmp_path: Path, bpe: str | None, files: list[str], missing: str) -> None:
    folder = folder_with(tmp_path, **dict.fromkeys(files, ""))
    with pytest.raises(
        FileNotFoundError, match=f"{missing} is missing: --bpe-dir should name a folder with dict.txt"
    ):
        Vocabulary.load(folder, bpe)


def test_missing_dict_txt_is_named(tmp_path: Path, sentencepiece_dir: Path) -> None:
    (tmp_path / "sentencepiece.model").write_bytes((sentencepiece_dir / "sentencepiece.model").read_bytes())
    with pytest.raises(FileNotFoundError, match=r"dict.txt is missing"):
        Vocabulary.load(str(tmp_path))


@pytest.mark.parametrize(
    ("dict_txt", "problem"),
    [("<mask> 1\n", "<mask> stands in dict.txt"), ("a 1\na 1\n", r"dict.txt: .*'a'"), ("a\n", r"dict.txt: ")],
)
def test_bad_dict_txt(tmp_path: Path, sentencepiece_dir: Path, dict_txt: str, problem: str) -> None:
    model = str(sentencepiece_dir / "sentencepiece.model")
    with pytest.raises(ValueError, match=problem):
        Vocabulary.load(folder_with(tmp_path, dict_txt=dict_txt), sentencepiece_model=model)


def test_unsupported_bpe(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--bpe bert is not supported: use gpt2, or sentencepiece"):
        Vocabulary.load(str(tmp_path), "bert")
    with pytest.raises(ValueError, match="--bpe sentencepiece needs --bpe-dir"):
        Vocabulary.load(None, "sentencepiece")


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands for the public address, with other small files under their own checksums."""
    folder = tmp_path / "public"
    folder.mkdir()
    letters = {"a": 0, "b": 1, "ab": 2}
    folder_with(
        folder, dict_txt="0 1\n2 1\n1 1\n", encoder_json=json.dumps(letters), vocab_bpe="#version\na b\n"
    )
    checksums = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    monkeypatch.setattr(module, "GPT2_BPE_URL", folder.as_uri())
    monkeypatch.setattr(module, "GPT2_BPE_SHA256", checksums)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return folder


def test_public_files_are_fetched_once(served: Path, tmp_path: Path) -> None:
    assert Vocabulary.load(None, "gpt2").encode("abba") == [5, 6, 4]
    cache = tmp_path / "cache" / "ofa_fairseq" / "gpt2_bpe"
    assert sorted(path.name for path in cache.iterdir()) == ["dict.txt", "encoder.json", "vocab.bpe"]
    (cache / "vocab.bpe").write_text("half a fi")
    assert Vocabulary.load(None).encode("abba") == [5, 6, 4]  # what is damaged is fetched again
    for path in served.iterdir():
        path.unlink()
    assert Vocabulary.load(None).encode("abba") == [5, 6, 4]  # nothing is needed any more


def test_failed_download_says_what_to_do(served: Path) -> None:
    (served / "encoder.json").unlink()
    with pytest.raises(
        OSError, match=r"encoder.json can't be downloaded .* pass --bpe-dir with a local copy"
    ):
        Vocabulary.load(None)
    (served / "encoder.json").write_text("a page of the provider")
    with pytest.raises(
        OSError, match=r"something else than the public file: pass --bpe-dir with a local copy"
    ):
        Vocabulary.load(None)
