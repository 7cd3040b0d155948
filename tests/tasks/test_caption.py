import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fairseq import metrics
from fairseq.criterions.cross_entropy import CrossEntropyCriterion
from pycocoevalcap.cider.cider_scorer import CiderScorer
from task_builders import caption_run, picture, write_captions, write_tsv

from ofa_fairseq.metrics.cider import DocumentFrequencies
from ofa_fairseq.tasks.caption import CaptionTask

REFERENCES = [
    ["a red ball on a table", "A ball, red!", "one red ball lies on the table"],
    ["two dogs run", "two brown dogs run on the grass near a red ball"],
    ["a man on a horse"],
]
HYPOTHESES = ["a red ball", "two dogs run on the grass", "a dog."]


def reference_rows() -> list[dict[str, Any]]:
    path = Path(__file__).parents[1] / "reference" / "rows.json"
    return [case for case in json.loads(path.read_text()) if case["task"] == "caption"]


def loaded(task: CaptionTask, split: str) -> Any:
    """The dataset of a split; the vocabulary is read first, as building the model does."""
    assert task.vocabulary
    task.load_dataset(split)
    return task.dataset(split)


def captions_of(
    tmp_path: Path, bpe_dir: Path, texts: Sequence[str], *flags: str, split: str = "train"
) -> Any:
    """The dataset of a file with these captions, one a row."""
    file = write_captions(tmp_path / "captions.tsv", texts)
    flags = ("--bad-rows", str(tmp_path / "bad_rows.tsv"), *flags)
    return loaded(caption_run(f"{file},{file}", bpe_dir, *flags).task, split)


def text_of(dataset: Any, index: int = 0) -> str:
    """The target of a row, decoded."""
    return dataset.build.task.decode(dataset[index].target).strip()


@pytest.mark.parametrize("case", reference_rows(), ids=lambda case: f"{case['split']}-{case['id']}")
def test_rows_agree_with_the_original(case: dict[str, Any], gpt2_bpe_dir: Path, tmp_path: Path) -> None:
    file = write_tsv(tmp_path / "row.tsv", [case["row"]])
    flags = [
        part
        for name, value in case["options"].items()
        for part in (f"--{name}".replace("_", "-"), str(value))
    ]
    released = ("--code-dict-size", "8192", "--num-bins", "1000")
    task = caption_run(f"{file},{file}", gpt2_bpe_dir, *released, *flags).task
    dataset = loaded(task, case["split"])
    batch = dataset.collater([dataset[0]])
    net_input = batch["net_input"]

    assert batch["id"].tolist() == [case["id"]]
    assert net_input["src_tokens"].tolist() == [case["source"]]
    assert batch["target"].tolist() == [case["target"]]
    assert net_input["prev_output_tokens"].tolist() == [case["prev_output_tokens"]]
    assert net_input["patch_masks"].tolist() == case["patch_mask"]

    expected = case["patch_image"]
    image = net_input["patch_images"][0].numpy()
    assert list(image.shape) == expected["shape"]
    # 2/255 of the pixel range, which is 2 wide after normalisation.
    grid = image[:, expected["rows"]][:, :, expected["cols"]]
    np.testing.assert_allclose(grid, expected["values"], atol=2 * 2 / 255)
    assert image.mean() == pytest.approx(expected["mean"], abs=0.002)
    assert image.std() == pytest.approx(expected["std"], abs=0.005)


# Targets and references


def test_training_targets_lose_punctuation_and_are_cut_by_words(
    tmp_path: Path, sentencepiece_dir: Path
) -> None:
    dataset = captions_of(
        tmp_path,
        sentencepiece_dir,
        ["A well-known  dog,\u00a0it (really) runs far!"],
        "--max-tgt-length",
        "4",
    )
    assert text_of(dataset) == "A wellknown dog it"
    assert (
        text_of(captions_of(tmp_path, sentencepiece_dir, ["only two"], "--max-tgt-length", "4")) == "only two"
    )


def test_references_are_kept_one_by_one_and_never_cut(tmp_path: Path, sentencepiece_dir: Path) -> None:
    row = "A dog,  it runs.&& &&...&&one brown dog runs over a lawn"
    dataset = captions_of(tmp_path, sentencepiece_dir, [row], "--max-tgt-length", "2", split="valid")
    assert dataset[0].references == ["A dog it runs", "one brown dog runs over a lawn"]
    assert text_of(dataset) == "A dog it runs&&one brown dog runs over a lawn"
    assert dataset.collater([dataset[0]])["references"] == [dataset[0].references]


def test_punctuation_is_kept_on_request(tmp_path: Path, sentencepiece_dir: Path) -> None:
    text = "A well-known dog, it runs!"
    for split in ("train", "valid"):
        assert (
            text_of(captions_of(tmp_path, sentencepiece_dir, [text], "--keep-punctuation", split=split))
            == text
        )


@pytest.mark.parametrize("caption", ["", " ", "...", "&&", " !&& ?"])
@pytest.mark.parametrize("split", ["train", "valid"])
def test_a_row_without_words_is_a_bad_row(
    caption: str, split: str, tmp_path: Path, sentencepiece_dir: Path
) -> None:
    dataset = captions_of(tmp_path, sentencepiece_dir, ["a dog", caption], split=split)
    assert dataset[0] is not None
    assert dataset[1] is None
    assert (
        tmp_path / "bad_rows.tsv"
    ).read_text() == f"{tmp_path / 'captions.tsv'}\t2\tthe caption is empty\n"


def test_pictures_to_be_captioned_need_no_reference(tmp_path: Path, sentencepiece_dir: Path) -> None:
    dataset = captions_of(tmp_path, sentencepiece_dir, ["", "a dog"], split="test")
    batch = dataset.collater([dataset[0], dataset[1]])
    assert batch["references"] == [[], ["a dog"]]


def test_joined_captions_are_not_trained_on_as_one(tmp_path: Path, sentencepiece_dir: Path) -> None:
    dataset = captions_of(tmp_path, sentencepiece_dir, ["a dog", "a dog&&a cat"])
    assert dataset[1] is None
    assert "joined by &&" in (tmp_path / "bad_rows.tsv").read_text()


def test_a_picture_may_be_a_path_beside_the_tsv(tmp_path: Path, sentencepiece_dir: Path) -> None:
    from ofa_fairseq.data.images import decode_image

    decode_image(picture(), tmp_path).save(tmp_path / "picture.png")
    for name, image in (("path", "picture.png"), ("base64", None)):
        write_captions(tmp_path / f"{name}.tsv", ["a dog"], image)
    datasets = [
        loaded(caption_run(f"{file},{file}", sentencepiece_dir).task, "train")
        for file in (tmp_path / "path.tsv", tmp_path / "base64.tsv")
    ]
    assert torch.equal(datasets[0][0].image, datasets[1][0].image)


# Wrong settings


def test_a_wrong_number_of_columns_is_explained(tmp_path: Path, sentencepiece_dir: Path) -> None:
    file = write_tsv(tmp_path / "five.tsv", [["0", "1", "a dog", "dog", picture()]])
    for columns in ("0,4", "0,4,2,3"):
        task = caption_run(str(file), sentencepiece_dir, "--selected-cols", columns).task
        with pytest.raises(
            ValueError,
            match=rf"five.tsv has 5 columns.*--selected-cols {columns}.*needs 3 \(id, picture, caption\)",
        ):
            task.load_dataset("valid")
    with pytest.raises(
        ValueError, match=r"has 5 columns between tabs, 5 of them selected.* needs 3 \(id, picture, caption\)"
    ):
        caption_run(str(file), sentencepiece_dir).task.load_dataset("valid")
    with pytest.raises(ValueError, match=r"five.tsv: selected column 9 does not exist.*has 5 columns"):
        caption_run(str(file), sentencepiece_dir, "--selected-cols", "0,9,2").task.load_dataset("valid")
    with pytest.raises(ValueError, match=r"--selected-cols: expected column numbers such as 0,4,2"):
        caption_run(str(file), sentencepiece_dir, "--selected-cols", "0;4;2").task.load_dataset("valid")


def test_columns_in_a_wrong_order_are_an_immediate_error(tmp_path: Path, sentencepiece_dir: Path) -> None:
    file = write_tsv(tmp_path / "five.tsv", [[str(i), "1", "a dog", "dog", picture()] for i in range(3)])
    flags = ("--selected-cols", "0,2,4", "--bad-rows", str(tmp_path / "bad_rows.tsv"))
    with pytest.raises(ValueError, match=r"five.tsv: of its 3 rows none.*--selected-cols.*bad_rows.tsv"):
        loaded(caption_run(str(file), sentencepiece_dir, *flags).task, "valid")


def test_eval_bleu_is_refused_with_what_to_use_instead(tmp_path: Path, sentencepiece_dir: Path) -> None:
    with pytest.raises(ValueError, match=r"--eval-bleu.*fairseq-generate --scoring caption_bleu"):
        caption_run("a.tsv,b.tsv", sentencepiece_dir, "--eval-bleu")


# Validation


def validation_of(
    tmp_path: Path, bpe_dir: Path, monkeypatch: pytest.MonkeyPatch, *flags: str
) -> tuple[CaptionTask, list[dict[str, float]]]:
    """Logging outputs of validation batches of one and two rows, where a model said `HYPOTHESES`."""
    file = write_captions(tmp_path / "valid.tsv", ["&&".join(texts) for texts in REFERENCES])
    task = caption_run(str(file), bpe_dir, "--eval-cider", *flags).task
    dataset = loaded(task, "valid")
    logs = []
    for rows in ([0], [1, 2]):
        monkeypatch.setattr(task, "generate_texts", lambda *_, rows=rows: [" " + HYPOTHESES[i] for i in rows])
        logs.append(task.validate(dataset.collater([dataset[i] for i in rows]), torch.nn.Identity()))
    return task, logs


class ScorerOfCorpus(CiderScorer):
    """pycocoevalcap's scorer with the frequencies of another corpus; it sets the corpus size anew by itself."""

    num_documents = 0
    ref_len = property(lambda self: np.log(float(self.num_documents)), lambda self, _: None)


def pycocoevalcap(frequencies: DocumentFrequencies | None = None) -> float:
    """Mean CIDEr-D of the texts without punctuation."""
    scorer = CiderScorer() if frequencies is None else ScorerOfCorpus()
    for hypothesis, texts in zip(HYPOTHESES, REFERENCES):
        scorer += (hypothesis.rstrip("."), [text.replace(",", "").rstrip("!") for text in texts])
    if frequencies is None:
        scorer.compute_doc_freq()
    else:
        scorer.document_frequency.update(frequencies.counts)
        scorer.num_documents = frequencies.num_documents
    return float(np.mean(scorer.compute_cider()))


def reduced(task: CaptionTask, logs: list[dict[str, float]]) -> dict[str, float]:
    """What fairseq logs of these outputs, in one call or over several."""
    sums = {"loss": 1.0, "ntokens": 4, "nsentences": 2, "sample_size": 4}
    with metrics.aggregate(new_root=True) as aggregate:
        task.reduce_metrics([{**sums, **log} for log in logs], CrossEntropyCriterion(task, False))
    return aggregate.get_smoothed_values()


def test_validation_cider_equals_pycocoevalcap(
    tmp_path: Path, sentencepiece_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, logs = validation_of(tmp_path, sentencepiece_dir, monkeypatch)
    assert sum(log["_score_sum"] for log in logs) / 3 == pytest.approx(pycocoevalcap(), abs=1e-6)
    assert pycocoevalcap() > 0.5
    assert reduced(task, logs)["cider"] == pytest.approx(pycocoevalcap(), abs=5e-4)


def test_document_frequencies_may_come_from_a_file(
    tmp_path: Path, sentencepiece_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = [["a red ball", "a table"], ["two dogs"], ["the grass"], ["a red horse"]]
    frequencies = DocumentFrequencies.from_references(corpus)
    frequencies.save(tmp_path / "frequencies.gz")
    flags = ("--eval-cider-cached-tokens", str(tmp_path / "frequencies.gz"))
    _, logs = validation_of(tmp_path, sentencepiece_dir, monkeypatch, *flags)
    expected = pycocoevalcap(frequencies)
    assert expected != pytest.approx(pycocoevalcap(), abs=0.01)
    assert sum(log["_score_sum"] for log in logs) / 3 == pytest.approx(expected, abs=1e-6)


def test_cider_is_the_mean_over_pictures_not_over_batches_or_ranks(
    tmp_path: Path, sentencepiece_dir: Path
) -> None:
    task = caption_run("a.tsv,b.tsv", sentencepiece_dir).task
    logs = [{"_score_sum": 3.0, "_score_cnt": 1}, {"_score_sum": 1.0, "_score_cnt": 3}]
    assert reduced(task, logs)["cider"] == 1.0
    assert "cider" not in reduced(task, [{}, {}])
    # Batches that hold nothing usable count for nothing.
    assert reduced(task, [*logs, {"_score_sum": 0.0, "_score_cnt": 0}])["cider"] == 1.0


def test_validation_without_eval_cider_generates_nothing(
    tmp_path: Path, sentencepiece_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = caption_run("a.tsv,b.tsv", sentencepiece_dir).task
    monkeypatch.setattr(task, "generate_texts", lambda *_: pytest.fail("generated"))
    assert task.validate({}, torch.nn.Identity()) == {}


def test_bad_rows_of_the_validation_file_do_not_stop_its_preparation(
    tmp_path: Path, sentencepiece_dir: Path
) -> None:
    good = [["0", picture(), "a dog&&the dog"], ["1", picture(), "a cat"]]
    bad: list[list[str | bytes]] = [["2", picture(), "a", "b"], ["3", picture(), b"caf\xe9"]]
    file = write_tsv(tmp_path / "valid.tsv", [*good, *bad])
    flags = ("--eval-cider", "--bad-rows", str(tmp_path / "bad_rows.tsv"))
    dataset = loaded(caption_run(str(file), sentencepiece_dir, *flags).task, "valid")
    assert dataset.collater([dataset[i] for i in range(4)])["skipped_rows"] == 2
