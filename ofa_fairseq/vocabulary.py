"""The id layout of OFA: text, image codes and boxes in one fairseq dictionary (section 3.1 of the paper).

| ids | symbols |
|---|---|
| 0, 1, 2, 3 | `<s>`, `<pad>`, `</s>`, `<unk>` |
| next | the text pieces, in the order of `dict.txt` |
| next | `<mask>` |
| next | `<code_0>`, `<code_1>`, ...: entries of the image tokenizer's codebook |
| last | `<bin_0>`, `<bin_1>`, ...: quantised coordinates |

The released GPT-2 files, 8,192 codes and 1,000 bins make the 59,457 entries of the released checkpoints.
"""

import hashlib
import logging
import os
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from typing import Protocol
from urllib.request import urlopen

from fairseq.data import Dictionary
from fairseq.data.encoders.gpt2_bpe_utils import get_encoder
from sentencepiece import SentencePieceProcessor

from .files import atomic_write

logger = logging.getLogger(__name__)

GPT2_BPE_URL = "https://dl.fbaipublicfiles.com/fairseq/gpt2_bpe"
GPT2_BPE_SHA256 = {
    "dict.txt": "2c31c5b236661067fe8626775eb995ef5fe808ac87d2ad4a6ddbef68550f5cc6",
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
}
FOLDER_LAYOUT = (
    "--bpe-dir should name a folder with dict.txt, encoder.json and vocab.bpe (--bpe gpt2) "
    "or with dict.txt and sentencepiece.model (--bpe sentencepiece)"
)


class TextPieces(Protocol):
    """A subword model. Its piece numbers are its own; `symbols` gives their names in `dict.txt`."""

    symbols: dict[int, str]

    def encode(self, text: str) -> list[int]: ...

    def decode(self, pieces: list[int]) -> str: ...


class GPT2Pieces:
    """GPT-2's byte-level BPE; `dict.txt` names its pieces by their decimal numbers."""

    def __init__(self, encoder_json: str, vocab_bpe: str) -> None:
        self._files = encoder_json, vocab_bpe
        encoder = get_encoder(encoder_json, vocab_bpe)
        self.encode, self.decode = encoder.encode, encoder.decode
        self.symbols = {piece: str(piece) for piece in encoder.decoder}

    def __reduce__(self) -> tuple:
        # fairseq's encoder holds a module, which can't be pickled: spawned data workers read the files again.
        return type(self), self._files


class SentencePieces:
    """A sentencepiece model; `dict.txt` names its pieces by their text."""

    def __init__(self, model: str) -> None:
        self._processor = SentencePieceProcessor(model_file=model)
        self.symbols = {i: self._processor.id_to_piece(i) for i in range(len(self._processor))}

    def encode(self, text: str) -> list[int]:
        return self._processor.encode(text)

    def decode(self, pieces: list[int]) -> str:
        return self._processor.decode(pieces)


class Vocabulary:
    """Text, image codes and boxes to token ids and back.

    Args:
        dictionary: holds the specials and the pieces of `dict.txt`; the others are appended to it in place.
        text: the subword model whose pieces `dict.txt` names.
        num_codes, num_bins: how many `<code_i>` and `<bin_i>` follow.

    Raises:
        ValueError: `dict.txt` holds a symbol that is reserved for later ids, or a count is too small.
    """

    def __init__(
        self, dictionary: Dictionary, text: TextPieces, num_codes: int = 8192, num_bins: int = 1000
    ) -> None:
        if num_codes < 0 or num_bins < 2:
            raise ValueError(f"expected 0 or more codes and 2 or more bins, got {num_codes} and {num_bins}")
        self.dictionary, self.num_codes, self.num_bins = dictionary, num_codes, num_bins
        self._text = text
        self._piece = {
            s: piece for piece, s in text.symbols.items() if dictionary.index(s) >= dictionary.nspecial
        }
        self._id = {piece: dictionary.index(s) for s, piece in self._piece.items()}
        self.bos, self.pad = dictionary.bos(), dictionary.pad()
        self.eos, self.unk = dictionary.eos(), dictionary.unk()
        self.mask = self._append(["<mask>"])[0]
        self.code_range = self._append([f"<code_{i}>" for i in range(num_codes)])
        self.bin_range = self._append([f"<bin_{i}>" for i in range(num_bins)])

    def _append(self, symbols: list[str]) -> tuple[int, int]:
        """Append the symbols to the dictionary; their ids are start ... end - 1 of the returned range."""
        start = len(self.dictionary)
        for symbol in symbols:
            if symbol in self.dictionary:
                raise ValueError(f"{symbol} stands in dict.txt, but its id is fixed after the text pieces")
            self.dictionary.add_symbol(symbol)
        return start, len(self.dictionary)

    @classmethod
    def load(
        cls,
        bpe_dir: str | None,
        bpe: str | None = None,
        num_codes: int = 8192,
        num_bins: int = 1000,
        dictionary: Dictionary | None = None,
        sentencepiece_model: str | None = None,
    ) -> "Vocabulary":
        """Read a `--bpe-dir`.

        Args:
            bpe_dir: the folder; None takes the public GPT-2 files (downloaded once), or the folder of
                `sentencepiece_model`.
            bpe: "gpt2" or "sentencepiece"; None decides by what the folder holds.
            dictionary: an empty fairseq dictionary to fill in place; None makes one.
            sentencepiece_model: used instead of the folder's `sentencepiece.model`.

        Raises:
            FileNotFoundError: the folder lacks a file that it should hold.
            OSError: the public files can't be downloaded.
            ValueError: unsupported `bpe`, a dictionary that is not empty, or a `dict.txt` that can't be read.
        """
        if bpe not in (None, "gpt2", "sentencepiece"):
            raise ValueError(
                f"--bpe {bpe} is not supported: use gpt2, or sentencepiece (the Chinese releases need bert)"
            )
        if bpe is None and sentencepiece_model is not None:
            bpe = "sentencepiece"
        if bpe_dir is not None:
            folder = Path(bpe_dir)
        elif sentencepiece_model is not None:
            folder = Path(sentencepiece_model).parent
        elif bpe == "sentencepiece":
            raise ValueError(f"--bpe sentencepiece needs --bpe-dir: {FOLDER_LAYOUT}")
        else:
            folder = gpt2_bpe_files()
        text = _read_pieces(folder, bpe, sentencepiece_model)
        return cls(_read_dictionary(_existing(folder / "dict.txt"), dictionary), text, num_codes, num_bins)

    def __len__(self) -> int:
        return len(self.dictionary)

    def encode(self, text: str) -> list[int]:
        """Ids of text pieces, without `<s>` and `</s>`; "<bin_3>" or "</s>" in the text are plain characters.

        Lone surrogates can't be encoded (UnicodeEncodeError).
        """
        return [self._id.get(piece, self.unk) for piece in self._text.encode(text)]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the ids; `<s>`, `</s>` and `<pad>` are skipped, what is not a text piece shows its symbol.

        `decode(encode(text)) == text` for every text with GPT-2, and with the models of
        `prepare.sentencepiece_model` for every text without U+2581, which sentencepiece takes for a space.
        Other sentencepiece models may normalise white space and characters, or lack some (`<unk>`).
        """
        skipped = {self.bos, self.pad, self.eos}
        return self._render(self.dictionary[i] for i in map(int, ids) if i not in skipped)

    def _render(self, symbols: Iterable[str]) -> str:
        """Runs of text pieces are decoded together, since one character may be spread over several."""
        return "".join(
            self._text.decode([self._piece[s] for s in run]) if is_text else "".join(run)
            for is_text, run in groupby(symbols, self._piece.__contains__)
        )

    def code_ids(self, codes: Iterable[int]) -> list[int]:
        """Token ids of image codes 0 ... num_codes - 1."""
        return _shift(codes, (0, self.num_codes), self.code_range[0], "image code")

    def codes(self, ids: Iterable[int]) -> list[int]:
        """Image codes of token ids in `code_range`."""
        return _shift(ids, self.code_range, -self.code_range[0], "token id of an image code")

    def bin_ids(self, bins: Iterable[int]) -> list[int]:
        """Token ids of bins 0 ... num_bins - 1."""
        return _shift(bins, (0, self.num_bins), self.bin_range[0], "bin")

    def bins(self, ids: Iterable[int]) -> list[int]:
        """Bins of token ids in `bin_range`."""
        return _shift(ids, self.bin_range, -self.bin_range[0], "token id of a bin")

    @property
    def bpe(self) -> "SymbolBPE":
        """What `task.build_bpe` returns to fairseq."""
        return SymbolBPE(self)


class SymbolBPE:
    """fairseq's bpe interface: text <-> dictionary symbols joined by spaces.

    fairseq's own GPT-2 class can't decode `<bin_i>` and `<code_i>`; here what is not text passes as it is.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary

    def encode(self, text: str) -> str:
        return " ".join(self._vocabulary.dictionary[i] for i in self._vocabulary.encode(text))

    def decode(self, symbols: str) -> str:
        return self._vocabulary._render(symbol for symbol in symbols.split(" ") if symbol)


def parse_codes(text: str) -> list[int]:
    """Image codes of a column, between spaces.

    Raises:
        ValueError: if they are no whole numbers.
    """
    try:
        return [int(code) for code in text.split()]
    except ValueError:
        raise ValueError(f"expected image codes between spaces, got {text[:40]!r}") from None


def _shift(numbers: Iterable[int], valid: tuple[int, int], offset: int, what: str) -> list[int]:
    """Add the offset to each number.

    Raises:
        ValueError: a number lies outside the valid range (start, end).
    """
    numbers = list(map(int, numbers))
    for number in numbers:
        if not valid[0] <= number < valid[1]:
            raise ValueError(f"{number} is no {what}: expected {valid[0]} to {valid[1] - 1}")
    return [number + offset for number in numbers]


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: {FOLDER_LAYOUT}")
    return path


def _read_pieces(folder: Path, bpe: str | None, sentencepiece_model: str | None) -> TextPieces:
    encoder_json = folder / "encoder.json"
    model = Path(sentencepiece_model) if sentencepiece_model else folder / "sentencepiece.model"
    if bpe == "sentencepiece" or (bpe is None and model.is_file() and not encoder_json.is_file()):
        return SentencePieces(str(_existing(model)))
    return GPT2Pieces(str(_existing(encoder_json)), str(_existing(folder / "vocab.bpe")))


def _read_dictionary(path: Path, dictionary: Dictionary | None) -> Dictionary:
    dictionary = Dictionary() if dictionary is None else dictionary
    if len(dictionary) != dictionary.nspecial:
        raise ValueError(f"expected an empty dictionary to fill, got one with {len(dictionary)} symbols")
    try:
        dictionary.add_from_file(str(path))
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"{path}: {error}") from error
    return dictionary


def gpt2_bpe_files() -> Path:
    """The folder of the public GPT-2 files in the user's cache; missing or damaged ones are downloaded.

    Raises:
        OSError: a file can't be downloaded, or what came is not the public file.
    """
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ofa_fairseq" / "gpt2_bpe"
    for name, sha256 in GPT2_BPE_SHA256.items():
        path = folder / name
        if not (path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == sha256):
            _download(f"{GPT2_BPE_URL}/{name}", path, sha256)
    return folder


def _download(url: str, path: Path, sha256: str) -> None:
    logger.info("downloading %s to %s", url, path)
    try:
        with urlopen(url, timeout=60) as response:
            content = response.read()
    except OSError as error:
        raise OSError(f"{url} can't be downloaded ({error}): pass --bpe-dir with a local copy") from error
    if hashlib.sha256(content).hexdigest() != sha256:
        raise OSError(f"{url} gave something else than the public file: pass --bpe-dir with a local copy")
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path, "wb") as file:
        file.write(content)
