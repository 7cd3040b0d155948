from typing import Any

import pytest
from fairseq import options, scoring
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from hypothesis import given
from hypothesis import strategies as st

import ofa_fairseq  # noqa: F401  (registers the tasks)
from ofa_fairseq.data.text_normalize import split_references
from ofa_fairseq.metrics import row_scorers as row_scorers

# For each scorer, rows as the generation command hands them over (reference, output), and the mean in per cent.
ROWS = {
    "accuracy": ([("cat&&dog", " dog "), ("cat", "Cat"), ("a red one", "a red one")], 200 / 3),
    "vqa": ([("0.6|!+cat&&0.3|!+kitten", "kitten"), ("dog", "dog"), ("1.0|!+no", "yes")], 130 / 3),
    "box_accuracy": (
        [
            ("0.0,0.0,999.0,999.0", "<bin_0><bin_0><bin_999><bin_600>"),
            ("0.0,0.0,999.0,999.0", "<bin_0><bin_0><bin_999><bin_400>"),
            ("100.4,199.6,300.1,400.0", "<bin_100><bin_200><bin_300><bin_400>"),
        ],
        200 / 3,
    ),
}
LABELS = {"accuracy": "Accuracy", "vqa": "VQA accuracy", "box_accuracy": "Acc@0.5"}


def build(name: str, *flags: str) -> Any:
    """The scorer as fairseq-generate builds it from its command line."""
    command = ["data.tsv", "--path", "x.pt", "--task", "caption", "--scoring", name, *flags]
    args = options.parse_args_and_arch(options.get_generation_parser(), command)
    return scoring.build_scorer(convert_namespace_to_omegaconf(args).scoring, None)


@pytest.mark.parametrize("name", ROWS)
def test_scorers_from_the_command_line(name: str) -> None:
    scorer = build(name)
    rows, expected = ROWS[name]
    for reference, output in rows:
        scorer.add_string(reference, output)
    assert scorer.score() == pytest.approx(expected)
    assert scorer.result_string() == f"{LABELS[name]} = {expected:.2f} over 3 rows"


@pytest.mark.parametrize("name", ROWS)
def test_rows_without_references_are_left_out(name: str) -> None:
    scorer = build(name)
    assert scorer.result_string() == "no row has a reference, nothing was scored"
    scorer.add_string("", "cat")
    scorer.add_string(" && ", "cat")
    assert scorer.score() == 0
    reference, output = ROWS[name][0][-1]
    scorer.add_string(f"&&{reference}&&", output)
    assert scorer.result_string().endswith(" over 1 rows")


@given(st.lists(st.text().filter(lambda text: "&" not in text and text.strip()), min_size=1, max_size=4))
def test_joined_answers_come_back_as_they_were(answers: list[str]) -> None:
    assert split_references("&&".join(answers)) == answers
    scorer = row_scorers.AccuracyScorer(None)
    for answer in answers:
        scorer.add_string("&&".join(answers), answer)
    assert scorer.score() == 100


def test_a_bad_reference_is_named() -> None:
    for name, reference in [("vqa", "much|!+cat"), ("box_accuracy", "the left one")]:
        scorer = build(name)
        scorer.add_string(reference, "cat")
        with pytest.raises(ValueError, match="row 0: "):
            scorer.score()


@pytest.mark.parametrize("name", ["accuracy", "cider", "rouge_l", "caption_bleu"])
def test_confidences_are_no_part_of_a_reference(name: str) -> None:
    plain, weighted = build(name), build(name)
    rows = [("a red dog on a lawn&&a hound", "a red dog on a lawn"), ("two blue cats sleep", "two blue cats")]
    for reference, output in rows:
        plain.add_string(reference, output)
        weighted.add_string("&&".join(f"0.5|!+{text}" for text in reference.split("&&")), output)
    assert plain.score() == weighted.score() > 0


def test_answers_may_be_compared_as_the_official_evaluation_does() -> None:
    strict, lenient = build("vqa"), build("vqa", "--vqa-normalize")
    for scorer in (strict, lenient):
        scorer.add_string("0.9|!+two dogs&&0.3|!+The Dog", "Dog.")
        scorer.add_string("1.0|!+2", "two")
        scorer.add_string("1.0|!+a", "a")
    assert strict.score() == pytest.approx(100 / 3)
    assert lenient.score() == pytest.approx(100 * (0.3 + 1.0 + 1.0) / 3)
