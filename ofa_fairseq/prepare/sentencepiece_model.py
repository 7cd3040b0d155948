"""Trains a text vocabulary: a folder for `--bpe sentencepiece --bpe-dir`."""

import io
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

from ..files import atomic_write

# Encoded through bytes instead of being learned: "<" could make a piece look like a special symbol, and the
# others break the line format of dict.txt. Spaces are learned as U+2581.
_NOT_LEARNED = re.compile(r"[<\s\0\u2581]+")

# As with GPT-2, a word and the same word after a space are different pieces; no text is altered or unknown.
_LOSSLESS: dict[str, Any] = {
    "normalization_rule_name": "identity",
    "add_dummy_prefix": False,
    "remove_extra_whitespaces": False,
    "byte_fallback": True,
    "character_coverage": 1.0,
}


def train_sentencepiece(texts: Iterable[str], out_dir: Path, vocab_size: int) -> None:
    """Write `sentencepiece.model` and `dict.txt` (a line `piece 1` for each piece) into `out_dir`.

    Byte-pair merges (Sennrich et al., 2016): with room enough, every word of the texts becomes one piece,
    together with the space before it. The same texts give the same files.

    Args:
        texts: learned from as they will be encoded, that is with a space before each word.
        vocab_size: the most pieces to make, with the 256 bytes and three specials; fewer come out when all
            words are whole before.

    Raises:
        ValueError: there is no text, or `vocab_size` has no room for all bytes and characters.
    """
    sentences = (" " + _NOT_LEARNED.sub(" ", text).strip() for text in texts)
    model = io.BytesIO()
    try:
        SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            hard_vocab_limit=False,
            max_sentence_length=1 << 20,  # bytes; longer texts are left out, by default above 4,192
            minloglevel=2,
            **_LOSSLESS,
        )
    except RuntimeError as error:
        raise ValueError(
            f"no sentencepiece model of {vocab_size} pieces can be trained on these texts: {error}"
        ) from error
    processor = SentencePieceProcessor(model_proto=model.getvalue())
    with atomic_write(out_dir / "sentencepiece.model", "wb") as file:
        file.write(model.getvalue())
    with atomic_write(out_dir / "dict.txt") as file:
        for piece in range(len(processor)):
            if not (processor.is_control(piece) or processor.is_unknown(piece)):
                file.write(f"{processor.id_to_piece(piece)} 1\n")
