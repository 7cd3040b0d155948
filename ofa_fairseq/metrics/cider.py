"""CIDEr-D (Vedantam et al., CVPR 2015): tf-idf weighted agreement of n-grams with references.

For n-grams g of n = 1..4 words, of which df(g) out of D reference documents (images) contain g:

    w(g)  = count(g) * (log D - log max(1, df(g)))
    sim_n = sum_{g in h} min(w_h(g), w_r(g)) * w_r(g) / (|w_h| * |w_r|) * exp(-(l_h - l_r)^2 / (2 * 6^2))
    score = 10 * mean over n and over references of sim_n

where l is the number of bigrams, as in the authors' code. Texts are split at white space and nothing else:
normalising them is the caller's business.

Inside, an n-gram is a 64-bit fingerprint, so that a whole batch is a handful of array operations. With a million
n-grams in the table and a thousand in the batch, one is mistaken for another in about one batch of 10^10.
"""

import gzip
import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from itertools import chain
from pathlib import Path
from sys import intern
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..data import safe_pickle
from ..files import atomic_write

MAX_ORDER = 4
LENGTH_SIGMA = 6.0

Ngram = tuple[str, ...]
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Fingerprints = NDArray[np.uint64]

_GZIP_MAGIC = b"\x1f\x8b"
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C17)  # odd, so that no bit of a word is lost on the way


def ngrams(text: str) -> list[Ngram]:
    """All n-grams of 1 to 4 words, repetitions included."""
    words = list(map(intern, text.split()))  # one object for each word, however many n-grams are kept
    shifted = [words[i:] for i in range(MAX_ORDER)]
    return list(chain.from_iterable(zip(*shifted[:n]) for n in range(1, MAX_ORDER + 1)))


def _word_fingerprints(words: Iterable[str]) -> Fingerprints:
    return np.fromiter(map(hash, words), np.int64).view(np.uint64)


def _append_word(gram: Fingerprints, word: Fingerprints) -> Fingerprints:
    """Fingerprints of (n+1)-grams from those of their first n words and of their last."""
    return gram * _MULTIPLIER + word


@dataclass(frozen=True)
class DocumentFrequencies:
    """In how many documents (images, each with all its references) an n-gram occurs.

    Attributes:
        counts: n-gram (tuple of words) -> number of documents; an absent n-gram occurs in none.
        num_documents: number of documents counted, at least 1.
    """

    counts: Mapping[Ngram, float]
    num_documents: int

    def __post_init__(self) -> None:
        if self.num_documents < 1:
            raise ValueError(f"document frequencies need at least one document, got {self.num_documents}")

    def __getstate__(self) -> dict[str, Any]:
        # Fingerprints come from hash(), which differs from process to process.
        return {"counts": self.counts, "num_documents": self.num_documents}

    @classmethod
    def from_references(cls, references: Sequence[Sequence[str]]) -> "DocumentFrequencies":
        """Count over the references of each image. A list given several times counts as often."""
        counts: Counter[Ngram] = Counter()
        for texts, copies in Counter(map(tuple, references)).items():
            for gram in set(chain.from_iterable(map(ngrams, texts))):
                counts[gram] += copies
        return cls(counts, len(references))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "DocumentFrequencies":
        """Read a file written by `save`, or a released pickle `{"document_frequency": ..., "ref_len": ...}`.

        Raises:
            ValueError: the content is something else.
            pickle.UnpicklingError: a broken pickle, or one that is not plain data.
            OSError: the file can't be opened.
        """
        with open(path, "rb") as file:
            is_gzip = file.read(len(_GZIP_MAGIC)) == _GZIP_MAGIC
        return cls._from_json(path) if is_gzip else cls._from_pickle(path)

    @classmethod
    def _from_json(cls, path: str | os.PathLike[str]) -> "DocumentFrequencies":
        try:
            with gzip.open(path, "rt", encoding="utf-8") as file:
                content = json.load(file)
            counts = {tuple(map(intern, gram.split(" "))): value for gram, value in content["counts"].items()}
            return cls(counts, content["num_documents"])
        except (EOFError, gzip.BadGzipFile, ValueError, LookupError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}: not a complete file of document frequencies ({error!r})") from error

    @classmethod
    def _from_pickle(cls, path: str | os.PathLike[str]) -> "DocumentFrequencies":
        content: Any = safe_pickle.load(path)
        try:
            counts, num_documents = content["document_frequency"], int(content["ref_len"])
            if not all(isinstance(gram, tuple) for gram in counts):
                raise TypeError("an n-gram is not a tuple of words")
            return cls(dict(counts), num_documents)  # a plain dict: a defaultdict would grow when read
        except (ValueError, LookupError, TypeError) as error:
            raise ValueError(
                f"{path}: expected a dict with 'document_frequency' (tuple of words -> count) "
                f"and 'ref_len' (number of images): {error!r}"
            ) from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write as gzipped JSON, atomically; words of an n-gram are joined by spaces."""
        counts = {" ".join(gram): value for gram, value in self.counts.items()}
        text = json.dumps({"num_documents": self.num_documents, "counts": counts})
        with atomic_write(Path(path), "wb") as file:
            file.write(gzip.compress(text.encode(), compresslevel=6, mtime=0))  # same frequencies, same bytes

    def idf(self, grams: Fingerprints) -> Floats:
        """log D - log max(1, df) of each n-gram."""
        known, log_df = self._sorted_log_df
        position = np.searchsorted(known[:-1], grams)
        return np.log(self.num_documents) - np.where(known[position] == grams, log_df[position], 0.0)

    @cached_property
    def _sorted_log_df(self) -> tuple[Fingerprints, Floats]:
        # An n-gram of one document weighs as much as one of none, and most are such: they are left out.
        # The zero keeps the arrays from being empty.
        grams, frequencies = [np.zeros(1, np.uint64)], [np.ones(1)]
        for n in range(1, MAX_ORDER + 1):
            of_order = {gram: value for gram, value in self.counts.items() if len(gram) == n and value > 1}
            words = _word_fingerprints(chain.from_iterable(of_order)).reshape(-1, n)
            grams.append(reduce(_append_word, words.T))
            frequencies.append(np.fromiter(of_order.values(), np.float64))
        order = np.argsort(np.concatenate(grams))
        return np.concatenate(grams)[order], np.log(np.concatenate(frequencies))[order]


class CiderD:
    """CIDEr-D with given document frequencies, or ("corpus mode", None) with those of the scored references.

    In corpus mode every hypothesis counts as one document, also where several share their references.
    """

    def __init__(self, frequencies: DocumentFrequencies | None = None) -> None:
        self.frequencies = frequencies

    def score(self, hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> Floats:
        """Score each hypothesis against its own references; 10 is the highest, an empty text scores 0.

        Equal lists of references (several samples for one image) are processed once.

        Args:
            hypotheses: H texts.
            references: for each hypothesis one or more texts, not necessarily equally many.

        Returns:
            H scores; the corpus score is their mean.

        Raises:
            ValueError: the lengths differ, or a hypothesis has no reference at all.
        """
        check_paired(hypotheses, references)
        if not hypotheses:
            return np.zeros(0)
        frequencies = self.frequencies or DocumentFrequencies.from_references(references)

        images: dict[tuple[str, ...], int] = {}
        image_of_hypothesis = [images.setdefault(tuple(texts), len(images)) for texts in references]
        image_of_reference = [image for texts, image in images.items() for _ in texts]

        texts = [*hypotheses, *chain.from_iterable(images)]
        terms = _weigh(texts, np.array(image_of_hypothesis + image_of_reference), frequencies)
        hyp, ref = _pairs(terms.group, terms.text < len(hypotheses))

        similarity = np.minimum(terms.weight[hyp], terms.weight[ref]) * terms.weight[ref]
        similarity /= terms.norm[hyp] * terms.norm[ref]
        length_difference = terms.length[terms.text[hyp]] - terms.length[terms.text[ref]]
        similarity *= np.exp(-(length_difference**2) / (2 * LENGTH_SIGMA**2))
        total = np.bincount(terms.text[hyp], similarity, minlength=len(hypotheses))
        return 10.0 / MAX_ORDER * total / [len(texts) for texts in references]


class _Terms(NamedTuple):
    """tf-idf vectors of several texts, flat: an entry for each text and distinct n-gram in it.

    Entries of one image and n-gram form a group and stand together, in the order of their texts.
    """

    group: Ints  # ascending from 0
    text: Ints  # index of the text
    weight: Floats
    norm: Floats  # of the weights of this text and order n; 1 where all of them are 0
    length: Ints  # of each text (not entry), in bigrams


def check_paired(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    """Raise ValueError unless each hypothesis has references of its own, at least one."""
    if len(hypotheses) != len(references):
        raise ValueError(f"{len(hypotheses)} hypotheses, but lists of references for {len(references)}")
    for i, texts in enumerate(references):
        if not texts:
            raise ValueError(f"hypothesis {i} ({hypotheses[i]!r}) has no references")


def _occurrences(texts: Sequence[str]) -> tuple[Ints, Ints, Fingerprints]:
    """Every occurrence of an n-gram: its text, n - 1, its fingerprint."""
    words = [text.split() for text in texts]
    text = np.repeat(np.arange(len(texts)), [len(of_text) for of_text in words])
    word = _word_fingerprints(chain.from_iterable(words))
    begin, gram, parts = text, word, []
    for n in range(1, MAX_ORDER + 1):
        if n > 1:
            begin, gram = begin[:-1], _append_word(gram[:-1], word[n - 1 :])
        inside = begin == text[n - 1 :]  # the texts stand in one row: n-grams across a border are none
        parts.append((begin[inside], gram[inside]))
    sizes = [len(begin) for begin, _ in parts]
    begins, grams = map(np.concatenate, zip(*parts))
    return begins, np.repeat(np.arange(MAX_ORDER), sizes), grams


def _weigh(texts: Sequence[str], image: Ints, frequencies: DocumentFrequencies) -> _Terms:
    """tf-idf vectors of `texts`, each of which belongs to an `image` (a number)."""
    text, order, fingerprint = _occurrences(texts)
    length = np.bincount(text[order == 1], minlength=len(texts))
    distinct, gram = np.unique(fingerprint, return_inverse=True)
    order_of_gram = np.empty_like(gram, shape=distinct.shape)
    order_of_gram[gram] = order

    # Sorting by image, n-gram, text at once counts repetitions and brings together what will be compared.
    keys = (image[text] * len(distinct) + gram) * len(texts) + text
    keys, term_frequency = np.unique(keys, return_counts=True)
    image_gram, text = np.divmod(keys, len(texts))
    group = np.cumsum(np.diff(image_gram, prepend=image_gram[:1]) != 0)
    gram = image_gram % max(len(distinct), 1)

    weight = term_frequency * frequencies.idf(distinct)[gram]
    vector = text * MAX_ORDER + order_of_gram[gram]
    norm = np.sqrt(np.bincount(vector, weight**2))[vector]
    norm[norm == 0] = 1.0
    return _Terms(group, text, weight, norm, length)


def _pairs(group: Ints, is_left: NDArray[np.bool_]) -> tuple[Ints, Ints]:
    """All pairs (i, j) of entries in one group, i left and j not. Groups ascend from 0, left entries first in each."""
    left = np.flatnonzero(is_left)
    num_right = np.bincount(group) - np.bincount(group[left], minlength=group.max(initial=-1) + 1)
    begin_right = np.cumsum(np.bincount(group)) - num_right

    matches = num_right[group[left]]
    nth_match = np.arange(matches.sum()) - np.repeat(np.cumsum(matches) - matches, matches)
    return np.repeat(left, matches), np.repeat(begin_right[group[left]], matches) + nth_match
