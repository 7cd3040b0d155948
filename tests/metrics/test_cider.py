import gzip
import json
import math
import pickle
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocoevalcap.cider.cider_scorer import CiderScorer

from ofa_fairseq.metrics.cider import CiderD, DocumentFrequencies, ngrams

Batch = tuple[list[str], list[list[str]]]  # hypotheses, references of each

CAPTIONS = [
    ["a red ball on a table", "a ball", "one red ball lies on the table <eos>"],
    ["two dogs run", "two brown dogs run on the grass near a red ball"],
    ["a man"],
]


def grams_of_order(text: str, n: int) -> Counter:
    words = text.split()
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def brute_force(hypothesis: str, references: list[str], df: dict, num_documents: float) -> float:
    """The formula, written out."""
    total = 0.0
    for reference in references:
        gap = max(len(hypothesis.split()) - 1, 0) - max(len(reference.split()) - 1, 0)
        for n in range(1, 5):
            h, r = (
                {
                    g: count * (math.log(num_documents) - math.log(max(1, df.get(g, 0))))
                    for g, count in grams_of_order(text, n).items()
                }
                for text in (hypothesis, reference)
            )
            norms = math.sqrt(sum(w * w for w in h.values())) * math.sqrt(sum(w * w for w in r.values()))
            if norms > 0:
                dot = sum(min(w, r.get(g, 0)) * r.get(g, 0) for g, w in h.items())
                total += dot / norms * math.exp(-(gap**2) / (2 * 6**2)) / 4
    return 10 * total / len(references)


def pycocoevalcap_in_corpus_mode(hypotheses: list[str], references: list[list[str]]) -> np.ndarray:
    scorer = CiderScorer()
    for hypothesis, texts in zip(hypotheses, references):
        scorer += (hypothesis, texts)
    scorer.compute_doc_freq()
    return np.array(scorer.compute_cider())


texts = st.lists(st.sampled_from(["a", "b", "c", "red", "dog", "<eos>"]), max_size=9).map(" ".join)
images = st.lists(st.lists(texts, min_size=1, max_size=4), min_size=1, max_size=4)


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    """Hypotheses of several images, some of them with samples of their own, in any order."""
    of_image = draw(images)
    rows = draw(st.lists(st.tuples(texts, st.sampled_from(of_image)), min_size=1, max_size=8))
    return [hypothesis for hypothesis, _ in rows], [references for _, references in rows]


@given(batches())
def test_corpus_mode_equals_pycocoevalcap(batch: Batch) -> None:
    np.testing.assert_allclose(CiderD().score(*batch), pycocoevalcap_in_corpus_mode(*batch), atol=1e-9)


@given(batches(), images)
def test_given_frequencies_equal_the_formula(batch: Batch, corpus: list[list[str]]) -> None:
    frequencies = DocumentFrequencies.from_references(corpus)
    df = Counter(
        g
        for image in corpus
        for g in {g for text in image for n in (1, 2, 3, 4) for g in grams_of_order(text, n)}
    )
    expected = [brute_force(h, r, df, len(corpus)) for h, r in zip(*batch)]
    np.testing.assert_allclose(CiderD(frequencies).score(*batch), expected, atol=1e-9)


def test_long_texts_of_a_large_vocabulary_equal_pycocoevalcap() -> None:
    rng = np.random.default_rng(0)

    def text() -> str:
        return " ".join(f"w{word}" for word in (3000 ** rng.random(rng.integers(0, 40))).astype(int))

    references = [[text() for _ in range(rng.integers(1, 9))] for _ in range(200)]
    hypotheses = [text() if i % 3 else references[i][0] for i in range(200)]
    expected = pycocoevalcap_in_corpus_mode(hypotheses, references)
    np.testing.assert_allclose(CiderD().score(hypotheses, references), expected, atol=1e-6)


def test_original_self_critical_reward(reference_dir: Path) -> None:
    case = json.loads((reference_dir / "scst.json").read_text())
    strip = str.maketrans("", "", "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~")

    def marked(text: str) -> str:
        return text.translate(strip).strip() + " <eos>"

    frequencies = DocumentFrequencies.from_references(
        [[marked(text) for text in image] for image in case["train_references"]]
    )
    k = case["samples_per_picture"]
    references = [[marked(text) for text in image] for image in case["references"] for _ in range(k)]
    scores = CiderD(frequencies).score([marked(text) for text in case["hypotheses"]], references)
    np.testing.assert_allclose(scores, case["cider"], rtol=1e-6, atol=1e-12)

    of_picture = scores.reshape(-1, k)
    baseline = (of_picture.sum(axis=1, keepdims=True) - of_picture) / (k - 1)
    np.testing.assert_allclose((of_picture - baseline).ravel(), case["advantage"], rtol=1e-6)


def test_perfect_caption_scores_ten_and_a_foreign_one_nothing() -> None:
    scores = CiderD().score(
        ["two dogs run on grass", "a b c d e"], [["two dogs run on grass"], ["x y z u v"]]
    )
    np.testing.assert_allclose(scores, [10, 0], atol=1e-12)


@pytest.mark.parametrize(
    ("hypotheses", "references"),
    [
        (["", "a dog"], [["a dog"], ["a cat"]]),  # an empty hypothesis
        (["a dog", "a dog"], [[""], ["a cat", ""]]),  # empty references
        (["", ""], [[""], ["", ""]]),  # nothing at all
        (["a dog"], [["a dog"]]),  # one document: every weight is log 1
        (["dog", "cat"], [["dog"], ["cat"]]),  # no bigrams
        (["a", "a b"], [["a b"] * 7, ["a b", "c"]]),  # counts of references that differ
    ],
)
def test_degenerate_texts_give_numbers_without_warnings(
    hypotheses: list[str], references: list[list[str]]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = CiderD().score(hypotheses, references)
    np.testing.assert_allclose(scores, pycocoevalcap_in_corpus_mode(hypotheses, references), atol=1e-9)


def test_no_hypotheses_no_scores() -> None:
    assert CiderD().score([], []).shape == (0,)


def test_missing_references_are_named() -> None:
    with pytest.raises(ValueError, match=r"hypothesis 1 \('a cat'\) has no references"):
        CiderD().score(["a dog", "a cat"], [["a dog"], []])
    with pytest.raises(ValueError, match="2 hypotheses, but lists of references for 1"):
        CiderD().score(["a dog", "a cat"], [["a dog"]])


def test_ngrams_keep_repetitions() -> None:
    assert Counter(ngrams(" a  b a\tb ")) == Counter(
        {("a",): 2, ("b",): 2, ("a", "b"): 2, ("b", "a"): 1, ("a", "b", "a"): 1, ("b", "a", "b"): 1,
         ("a", "b", "a", "b"): 1}
    )  # fmt: skip


@given(images)
def test_file_round_trip(tmp_path_factory: pytest.TempPathFactory, corpus: list[list[str]]) -> None:
    folder = tmp_path_factory.mktemp("frequencies")
    frequencies = DocumentFrequencies.from_references(corpus)
    frequencies.save(folder / "df.json.gz")
    assert DocumentFrequencies.load(folder / "df.json.gz") == frequencies

    frequencies.save(folder / "again.json.gz")
    assert (folder / "df.json.gz").read_bytes() == (folder / "again.json.gz").read_bytes()
    assert sorted(path.name for path in folder.iterdir()) == ["again.json.gz", "df.json.gz"]


@pytest.mark.parametrize("container", [dict, lambda counts: defaultdict(float, counts)])
def test_released_pickles_score_alike_and_do_not_grow(
    tmp_path: Path, container: Callable[[dict], dict]
) -> None:
    frequencies = DocumentFrequencies.from_references(CAPTIONS)
    counts = container({gram: float(count) for gram, count in frequencies.counts.items()})
    path = tmp_path / "words.p"
    # Protocol 2, as Python 2 wrote them.
    path.write_bytes(pickle.dumps({"document_frequency": counts, "ref_len": len(CAPTIONS)}, protocol=2))
    loaded = DocumentFrequencies.load(path)

    hypotheses = ["a red ball on the table", "two cats run", "a man never seen"]
    expected = CiderD(frequencies).score(hypotheses, CAPTIONS)
    assert expected[0] > 0
    np.testing.assert_array_equal(CiderD(loaded).score(hypotheses, CAPTIONS), expected)
    assert loaded.counts == counts
    assert ("cats",) not in loaded.counts


def test_frequencies_travel_to_other_processes_without_their_hashes() -> None:
    frequencies = DocumentFrequencies.from_references(CAPTIONS)
    hypotheses = ["a red ball", "two dogs run on a table", "a man"]
    expected = CiderD(frequencies).score(hypotheses, CAPTIONS)
    restored = pickle.loads(pickle.dumps(frequencies))
    assert vars(restored).keys() == {"counts", "num_documents"}
    np.testing.assert_array_equal(CiderD(restored).score(hypotheses, CAPTIONS), expected)


def test_corpus_mode_counts_each_row_as_a_document() -> None:
    hypotheses = ["a red ball", "a ball on a table", "two dogs"]
    references = [CAPTIONS[0], CAPTIONS[0], CAPTIONS[1]]
    counted = DocumentFrequencies.from_references(references)
    assert counted.num_documents == 3
    assert counted.counts["a", "ball"] == 2
    scores = CiderD().score(hypotheses, references)
    np.testing.assert_array_equal(scores, CiderD(counted).score(hypotheses, references))
    np.testing.assert_allclose(scores, CiderD().score(hypotheses[::-1], references[::-1])[::-1], atol=1e-12)


@pytest.mark.parametrize(
    "content",
    [
        gzip.compress(b'{"num_documents": 3, "counts": {"a": 1}}', mtime=0)[:-9],
        gzip.compress(b'{"num_documents": 3}', mtime=0),
        gzip.compress(b'{"num_documents": 0, "counts": {}}', mtime=0),
        gzip.compress(b'{"num_documents": "3", "counts": {}}', mtime=0),
        gzip.compress(b"[1, 2]", mtime=0),
        gzip.compress(b"a ball\t3", mtime=0),
        pickle.dumps([1, 2]),
        pickle.dumps({"document_frequency": {("a",): 1.0}}),
        pickle.dumps({"document_frequency": {"a": 1.0}, "ref_len": 3}),
        pickle.dumps({"document_frequency": {("a",): 1.0}, "ref_len": 0}),
        pickle.dumps({"document_frequency": [("a",)], "ref_len": 3}),
    ],
)
def test_other_files_are_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "df.bin"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"df\.bin: "):
        DocumentFrequencies.load(path)


def test_unsafe_pickle_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "df.p"
    path.write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(pickle.UnpicklingError, match=r"df\.p: .*'os\.system'"):
        DocumentFrequencies.load(path)


def test_failed_save_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "df.json.gz"
    frequencies = DocumentFrequencies.from_references(CAPTIONS)
    frequencies.save(path)
    before = path.read_bytes()
    with pytest.raises(TypeError):
        DocumentFrequencies({("a",): object()}, 1).save(path)  # type: ignore[dict-item]
    assert (path.read_bytes(), list(tmp_path.iterdir())) == (before, [path])
