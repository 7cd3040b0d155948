import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fairseq import options, scoring
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from pycocoevalcap.bleu.bleu_scorer import BleuScorer
from rouge_score.rouge_scorer import RougeScorer

from ofa_fairseq.metrics.caption_scorers import bleu4, rouge_l, rouge_l_per_row
from ofa_fairseq.metrics.cider import CiderD, DocumentFrequencies

HYPOTHESES = [
    "a man is riding a brown horse on a beach",
    "two dogs run in the grass",
    "",
    "a red bus on a street",
]
REFERENCES = [
    [
        "a man riding a brown horse on the beach",
        "a man is riding a horse along a beach",
        "a person on a horse",
    ],
    ["two dogs run in tall grass"],
    ["a plate of food", "food on a plate", "some food"],
    ["a red bus on a wet street", "a bus on a street"],
]


def build(*flags: str) -> Any:
    """The scorer as fairseq-generate builds it from its command line."""
    args = options.parse_args_and_arch(options.get_generation_parser(), ["data", "--path", "x.pt", *flags])
    return scoring.build_scorer(convert_namespace_to_omegaconf(args).scoring, None)


def fill(scorer: Any) -> Any:
    for hypothesis, references in zip(HYPOTHESES, REFERENCES):
        # As the generation command hands it over; the punctuation has to go.
        scorer.add_string("&&".join(f" {text}." for text in references), f"{hypothesis}, ")
    return scorer


def longest_common_subsequence(a: list[str], b: list[str]) -> int:
    if not a or not b:
        return 0
    if a[0] == b[0]:
        return 1 + longest_common_subsequence(a[1:], b[1:])
    return max(longest_common_subsequence(a[1:], b), longest_common_subsequence(a, b[1:]))


def test_bleu_with_different_numbers_of_references_equals_pycocoevalcap() -> None:
    scorer = BleuScorer()
    for hypothesis, references in zip(HYPOTHESES, REFERENCES):
        scorer += (hypothesis, references)
    corpus_bleu, _ = scorer.compute_score()
    assert bleu4(HYPOTHESES, REFERENCES) == pytest.approx(100 * corpus_bleu[3], rel=1e-6)


def test_rouge_l_is_the_best_f_measure_of_the_longest_common_subsequence() -> None:
    def f_measure(a: list[str], b: list[str]) -> float:
        return 200 * longest_common_subsequence(a, b) / (len(a) + len(b))

    hypotheses, references = (
        ["a b c d", "x y", "a c"],
        [["b d a", "a x b d"], ["u v w"], ["c a", "a b c b a c"]],
    )
    expected = [max(f_measure(h.split(), r.split()) for r in rs) for h, rs in zip(hypotheses, references)]
    np.testing.assert_allclose(rouge_l_per_row(hypotheses, references), expected)
    assert rouge_l(hypotheses, references) == pytest.approx(np.mean(expected))


def test_rouge_l_equals_the_default_of_rouge_score_on_plain_english() -> None:
    scorer = RougeScorer(["rougeL"])
    expected = [100 * scorer.score_multi(r, h)["rougeL"].fmeasure for h, r in zip(HYPOTHESES, REFERENCES)]
    np.testing.assert_allclose(rouge_l_per_row(HYPOTHESES, REFERENCES), expected)


def test_letters_outside_ascii_count() -> None:
    assert rouge_l(["один красный шар"], [["один красный шар"]]) == pytest.approx(100)
    assert bleu4(["один очень красный шар"], [["один очень красный шар"]]) == pytest.approx(100)


def test_nothing_said_scores_nothing() -> None:
    for metric in (bleu4, rouge_l):
        assert metric([], []) == 0
        assert metric(["", ""], [["a dog"], ["a", ""]]) == 0
        with pytest.raises(ValueError, match="hypothesis 0 .* has no references"):
            metric(["a dog"], [[]])


def test_cider_scorer_from_the_command_line() -> None:
    scorer = fill(build("--scoring", "cider"))
    expected = CiderD().score(HYPOTHESES, REFERENCES).mean()
    assert scorer.score() == pytest.approx(expected)
    printed = re.fullmatch(r"CIDEr = (\S+) \(BLEU-4 = (\S+), ROUGE-L = (\S+)\)", scorer.result_string())
    assert printed is not None
    columns = [expected, bleu4(HYPOTHESES, REFERENCES), rouge_l(HYPOTHESES, REFERENCES)]
    np.testing.assert_allclose([float(column) for column in printed.groups()], columns, atol=5e-3)


def test_cider_scorer_with_document_frequencies(tmp_path: Path) -> None:
    frequencies = DocumentFrequencies.from_references([*REFERENCES, ["a bus", "two horses"], ["a beach"]])
    frequencies.save(tmp_path / "df.json.gz")
    scorer = fill(build("--scoring", "cider", "--cider-document-frequencies", str(tmp_path / "df.json.gz")))
    assert scorer.score() == pytest.approx(CiderD(frequencies).score(HYPOTHESES, REFERENCES).mean())
    assert scorer.score() != pytest.approx(CiderD().score(HYPOTHESES, REFERENCES).mean())


def test_bleu_and_rouge_scorers_from_the_command_line() -> None:
    bleu, rouge = fill(build("--scoring", "caption_bleu")), fill(build("--scoring", "rouge_l"))
    assert bleu.score() == pytest.approx(bleu4(HYPOTHESES, REFERENCES))
    assert rouge.score() == pytest.approx(rouge_l(HYPOTHESES, REFERENCES))
    assert bleu.result_string() == f"BLEU-4 = {bleu.score():.2f}"
    assert rouge.result_string() == f"ROUGE-L = {rouge.score():.2f}"


@pytest.mark.parametrize("name", ["cider", "caption_bleu", "rouge_l"])
def test_empty_rows_and_no_rows_do_not_crash(name: str) -> None:
    scorer = build("--scoring", name)
    assert scorer.score() == 0
    scorer.add_string("", "")
    assert scorer.result_string() == "no row has a reference, nothing was scored"
    scorer.add_string("a dog.&&", "...")
    assert scorer.score() == 0
    assert " = 0.00" in scorer.result_string()


@pytest.mark.parametrize("name", ["cider", "caption_bleu", "rouge_l"])
def test_pictures_without_references_are_left_out(name: str) -> None:
    with_more, alone = build("--scoring", name), build("--scoring", name)
    for scorer in (with_more, alone):
        scorer.add_string("a red dog runs there&&a dog", "a dog runs there now")
        scorer.add_string("two cats sleep on a sofa", "cats sleep on a sofa")
    with_more.add_string("", "a bird in the sky")
    assert with_more.score() == alone.score() > 0
