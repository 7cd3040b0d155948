from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor

from ofa_fairseq.prepare.sentencepiece_model import train_sentencepiece
from ofa_fairseq.vocabulary import Vocabulary

TEXTS = [
    "a large red seven to the left of a small blue three",
    "there are no digits above the purple nine",
    'a <mask> of <s> and <0x41>, "quoted"\r\nin two\u2028lines\x85 with a\0zero and an▁underline',
] * 20
WORDS = sorted(set(" ".join(TEXTS[:2]).split()))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    train_sentencepiece(iter(TEXTS), folder, vocab_size=600)
    return folder


@pytest.fixture(scope="module")
def processor(folder: Path) -> SentencePieceProcessor:
    return SentencePieceProcessor(model_file=str(folder / "sentencepiece.model"))


def test_words_are_single_pieces(processor: SentencePieceProcessor) -> None:
    for word in WORDS:
        assert processor.encode(f" {word}", out_type=str) == [f"▁{word}"]
        assert processor.encode(word, out_type=str) != [f"▁{word}"]


@given(text=st.lists(st.text() | st.sampled_from(["  ", " a", "<mask>", "\n", *WORDS])).map("".join))
def test_any_text_round_trips(processor: SentencePieceProcessor, text: str) -> None:
    ids = processor.encode(text)
    assert processor.unk_id() not in ids
    assert processor.decode(ids) == text.replace("▁", " ")


def test_dict_txt_lists_every_piece(folder: Path, processor: SentencePieceProcessor) -> None:
    lines = (folder / "dict.txt").read_text(encoding="utf-8").split("\n")
    pieces = [processor.id_to_piece(i) for i in range(len(processor))]
    assert pieces[:3] == ["<unk>", "<s>", "</s>"]
    assert lines == [f"{piece} 1" for piece in pieces[3:]] + [""]
    assert [f"<0x{byte:02X}> 1" for byte in range(256)] == lines[:256]
    assert len(Vocabulary.load(str(folder), num_codes=0, num_bins=2)) == 4 + len(lines) - 1 + 1 + 2


def test_no_piece_looks_special(processor: SentencePieceProcessor) -> None:
    learned = [processor.id_to_piece(i) for i in range(259, len(processor))]
    assert "▁mask" in learned
    assert not any(set(piece) & set("< \t\r\n\0\x85\u2028") for piece in learned)


def test_same_texts_give_the_same_files_and_nothing_else(folder: Path, tmp_path: Path) -> None:
    train_sentencepiece(TEXTS, tmp_path, vocab_size=600)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dict.txt", "sentencepiece.model"]
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (folder / path.name).read_bytes()


def test_vocab_size_is_a_limit(tmp_path: Path) -> None:
    train_sentencepiece(TEXTS, tmp_path, vocab_size=320)
    assert len(SentencePieceProcessor(model_file=str(tmp_path / "sentencepiece.model"))) == 320


@pytest.mark.parametrize(("texts", "size"), [([], 400), (["a"], 100)])
def test_impossible_requests_write_nothing(tmp_path: Path, texts: list[str], size: int) -> None:
    with pytest.raises(ValueError, match=f"no sentencepiece model of {size} pieces"):
        train_sentencepiece(texts, tmp_path, vocab_size=size)
    assert not list(tmp_path.iterdir())
