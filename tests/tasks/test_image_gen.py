"""Drawing: rows as the original has them, exactly as many codes, dropped captions, order and files of samples."""

import logging
import pickle
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from image_tokenizers import save_small_tokenizer
from PIL import Image
from task_builders import (
    bad_rows,
    batch_of,
    dataset_of,
    each_reference_row,
    picture,
    rows_run,
    save_checkpoint,
    source_of,
    task_run,
    write_tsv,
)

from ofa_fairseq.drawing.drawn_pictures import read_drawn_pictures
from ofa_fairseq.generation.generator import OFASequenceGenerator
from ofa_fairseq.models.image_tokenizer import ImageTokenizer

# Pictures of 2 x 2 codes.
SMALL = ("--code-image-size", "16")
CODES = "0 5 15 3"
FIRST_CODE = 500 + 1  # in the vocabulary of the fixture: its pieces and specials, then <mask>


@pytest.fixture(scope="module")
def tokenizer_flags(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """A tokenizer with random weights for the 16 codes of the tasks."""
    return save_small_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def brightness(pictures: Any, texts: Any) -> list[float]:
    """A ranking of one's own."""
    return [float(np.asarray(image).mean()) for image in pictures]


SCST = ("--scst", "--criterion", "scst_reward_criterion", "--scst-reward", f"{__name__}:brightness")
BRIGHTEST = ("--rank-by", f"{__name__}:brightness")


# -- rows ------------------------------------------------------------------------------------------------


@each_reference_row("image_gen")
def test_rows_agree_with_the_original(case: dict[str, Any], gpt2_bpe_dir: Path, tmp_path: Path) -> None:
    flags = [
        word
        for name, value in {**case["options"], "num_bins": 1000}.items()
        for word in (f"--{name.replace('_', '-')}", str(value))
    ]
    dataset = dataset_of("image_gen", tmp_path, [case["row"]], gpt2_bpe_dir, *flags, split=case["split"])
    batch = batch_of(dataset)
    assert batch["id"].tolist() == [case["id"]]
    assert batch["net_input"]["src_tokens"].tolist() == [case["source"]]
    assert batch["net_input"]["prev_output_tokens"].tolist() == [case["prev_output_tokens"]]
    assert batch["net_input"]["code_masks"].tolist() == case["code_mask"]
    assert batch["target"].tolist() == [case["target"]]
    assert "patch_images" not in batch["net_input"]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (("1", " ", CODES), "the caption is empty"),
        (("1", "a cat", ""), "there are no image codes"),
        (("1", "a cat", "0 5 x 3"), "expected image codes between spaces, got '0 5 x 3'"),
        (("1", "a cat", "0 5 16 3"), "16 is no image code: expected 0 to 15"),
        (("1", "a cat", "0 -5 1 3"), "-5 is no image code: expected 0 to 15"),
        (("1", "a cat", f"{CODES} 1"), "5 image codes: a picture of 2 x 2 has 4"),
        (("1", "a cat", "1 2 3"), "3 image codes: a picture of 2 x 2 has 4"),
    ],
    ids=["no caption", "no codes", "no number", "too large", "negative", "too many", "too few"],
)
def test_bad_rows_are_named(
    row: tuple[str, ...], reason: str, tmp_path: Path, sentencepiece_dir: Path
) -> None:
    rows = [("0", "a dog", CODES), row]
    run = rows_run("image_gen", tmp_path, rows, sentencepiece_dir, *SMALL, "--num-code", "4")
    assert run.task.dataset("train")[1] is None
    assert bad_rows(tmp_path) == [reason]


def test_too_few_codes_are_told_once(
    tmp_path: Path, sentencepiece_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [("0", "a dog", "1 2 3"), ("1", "a cat", "1 2")]
    with caplog.at_level(logging.WARNING):
        dataset = dataset_of("image_gen", tmp_path, rows, sentencepiece_dir, *SMALL)
        assert [len(dataset[i].target) for i in range(2)] == [4, 3]
    assert [r.getMessage() for r in caplog.records if "image codes" in r.getMessage()] == [
        "a row with 3 of the 4 image codes of a picture: this and others are learnt as they are (--num-code 4 refuses"
        " them)"
    ]


def test_training_needs_codes(tmp_path: Path, sentencepiece_dir: Path) -> None:
    run = rows_run("image_gen", tmp_path, [("0", "a dog")], sentencepiece_dir, *SMALL)
    with pytest.raises(ValueError, match=r"rows\.tsv: training needs a column of image codes"):
        run.task.get_batch_iterator(run.task.dataset("train"), max_sentences=1)
    run.task.load_dataset("valid")
    assert run.task.get_batch_iterator(run.task.dataset("valid"), max_sentences=1)


@pytest.mark.parametrize("columns", [2, 3, 4])
def test_files_may_have_two_to_four_columns(columns: int, tmp_path: Path, sentencepiece_dir: Path) -> None:
    row = {2: ("7", "a cat"), 3: ("7", "a cat", CODES), 4: ("7", picture(), "a cat", CODES)}[columns]
    dataset = dataset_of(
        "image_gen", tmp_path, [row], sentencepiece_dir, *SMALL, "--eval-clip-method", "ii_sim", split="valid"
    )
    batch = batch_of(dataset)
    assert source_of(dataset) == " what is the complete image? caption: a cat"
    assert batch["references"] == [["a cat"]]
    codes = [int(code) for code in CODES.split()] if columns > 2 else [0] * 4
    task = dataset.build.task
    assert batch["target"].tolist() == [[*task.vocabulary.code_ids(codes), task.vocabulary.eos]]
    if columns == 4:
        assert batch["shown"][0].size == (40, 30)


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        (("--code-image-size", "20"), "--code-image-size 20: expected a multiple of 8"),
        ((*SMALL, "--num-code", "5"), "--num-code 5: a picture of --code-image-size 16 has 4 codes"),
        (("--drop-caption", "1"), "--drop-caption 1.0: expected a share"),
        (("--sampling-times", "0"), "--sampling-times 0: expected 1 or more"),
        (("--vqgan-model-path", "x"), "expected both or none"),
        (("--clip-model-path", "nowhere.pt"), r"--clip-model-path .*nowhere.pt: no such file"),
    ],
)
def test_options_that_make_no_sense(
    flags: tuple[str, ...], error: str, tmp_path: Path, sentencepiece_dir: Path
) -> None:
    with pytest.raises(ValueError, match=error):
        task_run("image_gen", "a,b", sentencepiece_dir, *flags)


def test_model_and_task_draw_one_size(sentencepiece_dir: Path) -> None:
    assert task_run("image_gen", "a,b", sentencepiece_dir, *SMALL).model().cfg.code_image_size == 16
    assert task_run("image_gen", "a,b", sentencepiece_dir).model().cfg.code_image_size == 64  # nano's
    tiny = task_run("image_gen", "a,b", sentencepiece_dir, "--arch", "ofa_tiny")
    assert tiny.model().cfg.code_image_size == tiny.task.cfg.code_image_size == 256
    other = task_run("image_gen", "a,b", sentencepiece_dir, *SMALL)
    with pytest.raises(ValueError, match="the model draws 256 pixels a side, the task expects 16"):
        other.task.build_model(tiny.cfg.model)


def test_a_new_model_may_know_which_codes_look_similar(
    sentencepiece_dir: Path, tokenizer_flags: tuple[str, ...]
) -> None:
    run = task_run("image_gen", "a,b", sentencepiece_dir, *SMALL, *tokenizer_flags, "--similar-codes")
    torch.manual_seed(0)
    similar = run.model().decoder.embed_tokens.weight.detach()
    torch.manual_seed(0)
    random = (
        task_run("image_gen", "a,b", sentencepiece_dir, *SMALL).model().decoder.embed_tokens.weight.detach()
    )
    start, end = run.task.vocabulary.code_range
    changed = (similar != random).any(dim=1).nonzero().flatten().tolist()
    assert changed == list(range(start, end))
    codes = similar[start:end]
    assert codes.std().item() == pytest.approx(random[start:end].std().item(), rel=0.1)
    # Codes a + 4 b of two channels with four levels: neighbours are more similar than the ends.
    cosine = torch.nn.functional.cosine_similarity
    grid = codes.view(4, 4, -1)
    for rows in (grid, grid.transpose(0, 1)):
        near, far = cosine(rows[:, :-1], rows[:, 1:], dim=-1), cosine(rows[:, 0], rows[:, 3], dim=-1)
        assert near.mean() > far.mean() + 0.2


def test_similar_codes_need_a_tokenizer(sentencepiece_dir: Path) -> None:
    with pytest.raises(ValueError, match="--similar-codes: --vqgan-model-path is missing"):
        task_run("image_gen", "a,b", sentencepiece_dir, *SMALL, "--similar-codes")


# -- training --------------------------------------------------------------------------------------------


def test_a_dropped_caption_is_an_empty_one(tmp_path: Path, sentencepiece_dir: Path) -> None:
    rows = [("0", "a dog and a cat", CODES), ("1", "cat", CODES)]
    dataset = dataset_of("image_gen", tmp_path, rows, sentencepiece_dir, *SMALL)
    task, batch = dataset.build.task, batch_of(dataset)
    kept = task.without_captions(batch, torch.tensor([False, False]))["net_input"]
    assert kept["src_tokens"].tolist() == batch["net_input"]["src_tokens"].tolist()
    dropped = task.without_captions(batch, torch.tensor([True, False]))["net_input"]
    assert task.decode(dropped["src_tokens"][0]) == " what is the complete image? caption: "
    assert dropped["src_tokens"][1].tolist() == batch["net_input"]["src_tokens"][1].tolist()
    assert dropped["src_lengths"][0] == len(task.null_source)
    assert dropped["src_lengths"][1] == batch["net_input"]["src_lengths"][1]


class Criterion(torch.nn.Module):
    """Keeps the sources that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.sources: list[torch.Tensor] = []

    def forward(self, model: Any, sample: Any) -> Any:
        self.sources.append(sample["net_input"]["src_tokens"])
        return torch.zeros((), requires_grad=True), 1, {}


class Optimizer:
    def backward(self, loss: torch.Tensor) -> None:
        loss.backward()


def test_the_share_of_dropped_captions(tmp_path: Path, sentencepiece_dir: Path) -> None:
    rows = [(str(i), "a cat", CODES) for i in range(50)]
    dataset = dataset_of("image_gen", tmp_path, rows, sentencepiece_dir, *SMALL, "--drop-caption", "0.2")
    task, batch, criterion = dataset.build.task, batch_of(dataset), Criterion()
    model = torch.nn.Linear(1, 1)
    model.set_num_updates = lambda _: None  # type: ignore[assignment]
    for _ in range(2):
        torch.manual_seed(3)
        for _ in range(20):
            task.train_step(batch, model, criterion, Optimizer(), 0)
    null = task.null_source
    dropped = [int((source[:, : len(null)] == null).all(dim=1).sum()) for source in criterion.sources]
    assert dropped[:20] == dropped[20:]  # as fairseq's seed says
    assert np.mean(dropped[:20]) / 50 == pytest.approx(0.2, abs=0.05)
    assert len(set(dropped)) > 1


# -- drawing ---------------------------------------------------------------------------------------------


def drawing(
    folder: Path, bpe_dir: Path, *flags: str, captions: tuple[str, ...] = ("a cat", "a big dog")
) -> tuple[Any, Any, Any]:
    """Task, model with random weights and batch of these captions."""
    rows = [(str(i), caption) for i, caption in enumerate(captions)]
    run = rows_run("image_gen", folder, rows, bpe_dir, *SMALL, *flags, split="valid")
    torch.manual_seed(0)
    model = run.model()
    return run.task, model, batch_of(run.task.dataset("valid"))


@pytest.fixture(scope="module")
def drawers(tmp_path_factory: pytest.TempPathFactory, sentencepiece_dir: Path) -> dict[str, Any]:
    """Task, model and batch by guidance."""
    folder = tmp_path_factory.mktemp("drawers")
    return {weight: drawing(folder, sentencepiece_dir, "--guidance", weight) for weight in ("1", "0.5", "3")}


@given(
    guidance=st.sampled_from(["1", "0.5", "3"]),
    beam=st.integers(1, 9),
    options=st.fixed_dictionaries(
        {},
        optional={
            "temperature": st.floats(0.1, 20),
            "min_len": st.integers(1, 9),  # the picture's number of codes is what counts
            "max_len_b": st.integers(1, 9),
        },
    ),
    cut=st.one_of(
        st.just({}),
        st.builds(dict, sampling_topk=st.integers(1, 40)),
        st.builds(dict, sampling_topp=st.floats(0.01, 1)),
    ),
)
@settings(max_examples=40, deadline=None)
def test_outputs_are_codes_and_as_many_as_a_picture_has(
    drawers: dict[str, Any], guidance: str, beam: int, options: dict[str, Any], cut: dict[str, Any]
) -> None:
    task, model, batch = drawers[guidance]
    generator = task.search(model, {"beam": beam, **options, **cut})
    for row in task.inference_step(generator, [model], batch):
        assert len(row) == beam
        for hypothesis in row:
            *codes, eos = hypothesis["tokens"].tolist()
            assert len(codes) == 4
            assert eos == task.vocabulary.eos
            assert all(0 <= code < 16 for code in task.vocabulary.codes(codes))


def test_samples_differ(drawers: dict[str, Any]) -> None:
    for task, model, batch in drawers.values():
        rows = task.inference_step(task.search(model, {"beam": 20, "temperature": 5.0}), [model], batch)
        assert len({tuple(h["tokens"].tolist()) for row in rows for h in row}) > 10


def test_guidance_of_1_is_none(drawers: dict[str, Any]) -> None:
    task, model, batch = drawers["1"]
    given = task.build_generator(
        [model],
        Namespace(beam=5),
        OFASequenceGenerator,
        {"guidance": 1.0, "null_source": task.null_source},
    )
    found = []
    for generator in (given, task.search(model, {"beam": 5})):
        torch.manual_seed(2)
        rows = task.inference_step(generator, [model], batch)
        found.append([(h["tokens"].tolist(), h["score"].item()) for row in rows for h in row])
    assert found[0] == found[1]


def test_a_narrower_range_is_kept_to(tmp_path: Path, sentencepiece_dir: Path) -> None:
    plain, _, _ = drawing(tmp_path, sentencepiece_dir)
    start = plain.vocabulary.code_range[0]
    task, model, batch = drawing(
        tmp_path, sentencepiece_dir, "--constraint-range", f"{start + 2},{start + 5}"
    )
    for row in task.inference_step(task.search(model, {"beam": 5}), [model], batch):
        for hypothesis in row:
            assert set(task.vocabulary.codes(hypothesis["tokens"][:-1].tolist())) <= {2, 3, 4}


def test_a_range_beyond_the_codes_is_refused(tmp_path: Path, sentencepiece_dir: Path) -> None:
    with pytest.raises(ValueError, match="--constraint-range 50265,58457: this vocabulary has [0-9]+ tokens"):
        drawing(tmp_path, sentencepiece_dir, "--constraint-range", "50265,58457")
    with pytest.raises(
        ValueError, match="--constraint-range 10,20: the image codes are tokens [0-9]+ to [0-9]+"
    ):
        drawing(tmp_path, sentencepiece_dir, "--constraint-range", "10,20")


def distribution(task: Any, model: Any, batch: Any, guidance: float) -> torch.Tensor:
    """By hand: of the first row, log-probabilities of all 16^2 beginnings of two codes."""
    codes = torch.tensor(task.vocabulary.code_ids(range(16)))
    previous = torch.stack([torch.full_like(codes, task.vocabulary.bos), codes], dim=1)
    total = torch.zeros(16, 16)
    masks = {"code_masks": torch.ones(1, dtype=torch.bool)}

    def logits(source: torch.Tensor) -> torch.Tensor:
        out = model.encoder(source[None], torch.tensor([len(source)]), **masks)
        return model.decoder(previous, encoder_out=out)[0][..., codes].log_softmax(-1)

    source = batch["net_input"]["src_tokens"][0]
    own, null = logits(source[source.ne(task.vocabulary.pad)]), logits(task.null_source)
    guided = (null + guidance * (own - null)).log_softmax(-1)
    total = guided[:1, 0].T + guided[:, 1]
    return total.flatten()


@torch.no_grad()
@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_scores_are_those_of_the_guided_distribution(
    guidance: float, tmp_path: Path, sentencepiece_dir: Path
) -> None:
    task, model, batch = drawing(tmp_path, sentencepiece_dir, "--guidance", str(guidance))
    expected = distribution(task, model, batch, guidance)
    assert expected.exp().sum().item() == pytest.approx(1, abs=1e-5)
    for hypothesis in task.inference_step(task.search(model, {"beam": 20}), [model], batch)[0]:
        first, second = task.vocabulary.codes(hypothesis["tokens"][:2].tolist())
        score = hypothesis["positional_scores"][:2].sum().item()
        assert score == pytest.approx(expected[16 * first + second].item(), abs=1e-4)


def test_self_critical_training_is_not_guided(tmp_path: Path, sentencepiece_dir: Path) -> None:
    task, model, _ = drawing(tmp_path, sentencepiece_dir, "--guidance", "3", *SCST)
    assert not task.sampler(model, {"beam": 2}).model.guided


# -- pictures --------------------------------------------------------------------------------------------


def generating(
    folder: Path, bpe_dir: Path, *flags: str, captions: tuple[str, ...] = ("a cat", "a big dog")
) -> tuple[Any, Any, Any]:
    """As `drawing`, in fairseq-generate."""
    task, model, batch = drawing(folder, bpe_dir, *flags, captions=captions)
    task.root.common_eval.path = "model.pt"
    return task, model, batch


def test_samples_are_ranked_and_written(
    tmp_path: Path, sentencepiece_dir: Path, tokenizer_flags: tuple[str, ...]
) -> None:
    out = tmp_path / "drawings"
    flags = (*tokenizer_flags, *BRIGHTEST, "--gen-images-path", str(out), "--sampling-times", "2")
    captions = ("a cat", "black/white", "a cat")
    task, model, batch = generating(tmp_path, sentencepiece_dir, *flags, captions=captions)
    rows = task.inference_step(task.search(model, {"beam": 3, "temperature": 5.0}), [model], batch)
    assert [len(row) for row in rows] == [6, 6, 6]
    drawn = read_drawn_pictures(out / "pictures.tsv")
    assert [(d.id, d.caption, d.rank) for d in drawn] == [
        (str(i), caption, rank) for i, caption in enumerate(captions) for rank in range(6)
    ]
    names = sorted(path.name for path in (out / "top1").iterdir())
    assert names == ["a cat (2)_0.png", "a cat_0.png", "blackwhite_0.png"]
    assert len(list((out / "all_results").iterdir())) == 18
    for i, row in enumerate(rows):
        mine = [d for d in drawn if d.id == str(i)]
        scores = [d.score for d in mine]
        assert scores == sorted(scores, reverse=True)
        assert len(set(scores)) > 1
        for hypothesis, d in zip(row, mine, strict=True):
            (shown,) = task.drawer.pictures([hypothesis["tokens"]])
            written = np.asarray(Image.open(d.path)).astype(int)
            # Batches of other sizes round differently.
            assert np.abs(np.asarray(shown).astype(int) - written).max() <= 1
            assert d.score == pytest.approx(brightness([shown], [""])[0], abs=0.2)


def test_codes_are_decoded_row_by_row(
    tmp_path: Path, sentencepiece_dir: Path, tokenizer_flags: tuple[str, ...]
) -> None:
    task, _, _ = drawing(tmp_path, sentencepiece_dir, *tokenizer_flags)
    tokens = torch.tensor([*task.vocabulary.code_ids([1, 2, 3, 4]), task.vocabulary.eos])
    (shown,) = task.outputs([tokens])
    tokenizer = ImageTokenizer.load(tokenizer_flags[1], tokenizer_flags[3])
    pixels = tokenizer.decode(torch.tensor([[[1, 2], [3, 4]]]))[0]
    expected = ((pixels + 1) * 127.5).round().permute(1, 2, 0).numpy()
    assert np.array_equal(np.asarray(shown), expected.astype(np.uint8))
    assert shown.size == (16, 16)


def test_validation_scores_the_best_sample_of_each_row(
    tmp_path: Path, sentencepiece_dir: Path, tokenizer_flags: tuple[str, ...]
) -> None:
    flags = (*tokenizer_flags, *BRIGHTEST, "--eval-args", '{"beam": 4}')
    task, model, batch = drawing(tmp_path, sentencepiece_dir, *flags)
    torch.manual_seed(5)
    logged = task.validate(batch, model)
    torch.manual_seed(5)
    rows = task.inference_step(task.search(model, {"beam": 4}), [model], batch)
    best = [max(brightness(task.outputs([h["tokens"] for h in row]), "")) for row in rows]
    assert logged == {"_score_sum": pytest.approx(sum(best)), "_score_cnt": 2}


def test_validation_without_a_ranking_draws_for_the_log_only(
    tmp_path: Path,
    sentencepiece_dir: Path,
    tokenizer_flags: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    task, model, batch = drawing(tmp_path, sentencepiece_dir, *tokenizer_flags)
    shown: list[tuple[int, list[str]]] = []
    monkeypatch.setattr(task._pictures, "add", lambda pictures, texts: shown.append((len(pictures), texts)))
    assert task.validate(batch, model) == {}
    assert shown == []  # there is no --tensorboard-logdir
    monkeypatch.setattr(type(task._pictures), "wanted", 12)
    assert task.validate(batch, model) == {}
    assert shown == [(2, ["a cat", "a big dog"])]


def test_data_workers_get_no_tokenizer(
    tmp_path: Path, sentencepiece_dir: Path, tokenizer_flags: tuple[str, ...]
) -> None:
    task, _, _ = drawing(tmp_path, sentencepiece_dir, *tokenizer_flags)
    before = len(pickle.dumps(task))
    assert task.drawer.side == 2
    assert len(pickle.dumps(task)) == pytest.approx(before, rel=0.01)


def test_a_tokenizer_of_other_codes_is_refused(
    tmp_path: Path, sentencepiece_dir: Path, tokenizer_flags: tuple[str, ...]
) -> None:
    task, _, _ = drawing(tmp_path, sentencepiece_dir, *tokenizer_flags, "--code-dict-size", "32")
    with pytest.raises(ValueError, match="the image tokenizer has 16 codes, the vocabulary 32"):
        _ = task.drawer


def test_a_checkpoint_brings_tokenizer_and_size(
    tmp_path: Path, sentencepiece_dir: Path, tokenizer_flags: tuple[str, ...]
) -> None:
    data = write_tsv(tmp_path / "rows.tsv", [("0", "a cat")])
    trained = task_run("image_gen", f"{data},{data}", sentencepiece_dir, *SMALL, *tokenizer_flags)
    save_checkpoint(tmp_path / "model.pt", trained)
    other = task_run("image_gen", str(data), sentencepiece_dir)
    other.task.cfg.code_image_size = 256  # fairseq-generate knows no --arch, whose size this would be
    other.task.build_model(trained.cfg.model, from_checkpoint=True)
    assert other.task.num_codes == 4
    assert other.task.drawer.side == 2


# -- what a second reader found --------------------------------------------------------------------------


def training_flags(tokenizer_flags: tuple[str, ...], *flags: str) -> tuple[str, ...]:
    return (*SMALL, *tokenizer_flags, *BRIGHTEST, *flags)


@pytest.mark.parametrize("split", ["test", "valid"])
def test_a_batch_of_bad_rows_alone_is_passed_over(
    split: str, tmp_path: Path, sentencepiece_dir: Path, tokenizer_flags: tuple[str, ...]
) -> None:
    rows = [("0", "a cat"), ("1", " ")]
    flags = training_flags(tokenizer_flags, "--gen-images-path", str(tmp_path / "drawings"))
    run = rows_run("image_gen", tmp_path, rows, sentencepiece_dir, *flags, split=split)
    task, model, dataset = run.task, run.model(), run.task.dataset(split)
    batch = dataset.collater([dataset[1]])
    assert batch["nsentences"] == 0
    if split == "valid":
        assert task.validate(batch, model) == {"_score_sum": 0.0, "_score_cnt": 0}
    task.root.common_eval.path = "model.pt"
    task.inference_step(task.search(model, {"beam": 2}), [model], batch)
    assert not (tmp_path / "drawings" / "all_results").exists()


@pytest.mark.parametrize("row", [("0", "a cat"), ("0", "a cat", "")])
def test_self_critical_training_needs_no_codes(
    row: tuple[str, ...], tmp_path: Path, sentencepiece_dir: Path, tokenizer_flags: tuple[str, ...]
) -> None:
    flags = training_flags(tokenizer_flags, "--scst", "--criterion", "clip_scst_reward_criterion")
    task = rows_run("image_gen", tmp_path, [row], sentencepiece_dir, *flags).task
    assert task.get_batch_iterator(task.dataset("train"), max_sentences=1)
    assert task.dataset("train")[0].references == ["a cat"]


def test_zero_shot_drawings_are_of_codes_too(tmp_path: Path, sentencepiece_dir: Path) -> None:
    task, model, batch = drawing(tmp_path, sentencepiece_dir, "--zero-shot")
    generator = task.search(model, {"beam": 9, "temperature": 5.0})
    for row in task.inference_step(generator, [model], batch):
        for hypothesis in row:
            assert len(task.vocabulary.codes(hypothesis["tokens"][:-1].tolist())) == 4


def test_comparing_pictures_needs_pictures(
    tmp_path: Path, sentencepiece_dir: Path, tokenizer_flags: tuple[str, ...]
) -> None:
    flags = training_flags(tokenizer_flags, "--eval-clip-method", "ii_sim")
    with pytest.raises(
        ValueError, match=r"ii_sim compares drawings with pictures: select four columns, id, pict"
    ):
        rows_run("image_gen", tmp_path, [("0", "a cat")], sentencepiece_dir, *flags, split="valid")
    rows = [("7", picture(), "a cat", CODES)]
    run = rows_run("image_gen", tmp_path, rows, sentencepiece_dir, *flags)
    assert run.task.dataset("train")[0].shown is None  # nothing is compared in training


def test_what_a_ranking_lacks_is_told_when_the_model_is_built(
    tmp_path: Path, sentencepiece_dir: Path, tokenizer_flags: tuple[str, ...]
) -> None:
    weights = tmp_path / "clip.pt"
    weights.write_text("no weights")
    flags = (*SMALL, *tokenizer_flags, "--clip-model-path", str(weights))
    with pytest.raises(ValueError, match=r"clip"):
        task_run("image_gen", "a,b", sentencepiece_dir, *flags).model()
    with pytest.raises(ValueError, match="--best-checkpoint-metric score needs a ranking of drawings"):
        task_run("image_gen", "a,b", sentencepiece_dir, *SMALL, "--best-checkpoint-metric", "score")


def test_codes_can_be_drawn_without_the_tokenizer_that_a_checkpoint_names(
    tmp_path: Path, sentencepiece_dir: Path
) -> None:
    flags = save_small_tokenizer(tmp_path)
    trained = task_run("image_gen", "a,b", sentencepiece_dir, *SMALL, *flags, "--similar-codes")
    save_checkpoint(tmp_path / "model.pt", trained)
    for name in ("last.ckpt", "model.yaml"):
        (tmp_path / name).unlink()
    other = task_run("image_gen", "a,b", sentencepiece_dir)
    other.task.cfg.code_image_size = 256  # fairseq-generate knows no --arch, whose size this would be
    other.task.build_model(trained.cfg.model, from_checkpoint=True)
    assert other.task.num_codes == 4
