import multiprocessing
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fairseq.data import data_utils
from fairseq.data.iterators import EpochBatchIterator
from hypothesis import given
from hypothesis import strategies as st
from task_builders import caption_run, write_captions, write_tsv
from torch import Tensor
from torch.utils.data import DataLoader

from ofa_fairseq.data.bad_rows import BadRows
from ofa_fairseq.data.example import DEFAULT_BATCH_SIZE, Example, ExampleDataset, collate
from ofa_fairseq.data.tsv import TsvFile
from ofa_fairseq.generation.answer_space import TokenRange

PAD = 1


def example(source: list[int], target: list[int], **more: Any) -> Example:
    return Example(
        id=more.pop("id", "x"),
        source=torch.tensor([0, *source, 2]),
        target=torch.tensor([*target, 2]),
        prev_output=torch.tensor([0, *target]),
        **more,
    )


# Collating


def test_text_is_padded_on_the_right() -> None:
    batch = collate([example([5, 6, 7], [8], id="a"), example([5], [8, 9, 10], id="b")], PAD)
    assert batch["id"].tolist() == ["a", "b"]
    assert batch["net_input"]["src_tokens"].tolist() == [[0, 5, 6, 7, 2], [0, 5, 2, 1, 1]]
    assert batch["net_input"]["src_lengths"].tolist() == [5, 3]
    assert batch["target"].tolist() == [[8, 2, 1, 1], [8, 9, 10, 2]]
    assert batch["net_input"]["prev_output_tokens"].tolist() == [[0, 8, 1, 1], [0, 8, 9, 10]]
    assert (batch["nsentences"], batch["ntokens"]) == (2, 6)


def test_keys_that_no_row_needs_are_absent() -> None:
    batch = collate([example([5], [6])], PAD)
    assert set(batch) == {"id", "nsentences", "ntokens", "net_input", "target", "references"}
    assert set(batch["net_input"]) == {"src_tokens", "src_lengths", "prev_output_tokens"}
    assert batch["references"] == [[]]


def test_rows_with_and_without_a_picture_mix() -> None:
    image = torch.randn(3, 4, 4)
    batch = collate([example([5], [6]), example([5], [6], image=image)], PAD)
    assert batch["net_input"]["patch_masks"].tolist() == [False, True]
    assert torch.equal(batch["net_input"]["patch_images"], torch.stack([torch.zeros(3, 4, 4), image]))


def test_codes_weights_and_prompts_of_some_rows() -> None:
    rows = [
        example([5], [6], code_target=True),
        example([5], [6], weight=0.3, prompt=torch.tensor([7, 8])),
        example([5], [6], prompt=torch.tensor([7])),
    ]
    batch = collate(rows, PAD)
    assert batch["net_input"]["code_masks"].tolist() == [True, False, False]
    assert batch["conf"].tolist() == pytest.approx([1.0, 0.3, 1.0])
    assert batch["prefix_tokens"].dtype == torch.long
    assert batch["prefix_tokens"].tolist() == [[1, 1], [7, 8], [7, 1]]


def test_what_is_not_learnt_is_no_target_token() -> None:
    row = Example(
        id="x",
        source=torch.tensor([0, 2]),
        target=torch.tensor([1, 1, 6, 2]),
        prev_output=torch.tensor([0, 7, 8, 6]),
    )
    assert collate([row], PAD)["ntokens"] == 2


def test_references_and_answers_pass_through() -> None:
    answers = TokenRange(5, 9, 20)
    rows = [example([5], [6], references=("a", "b"), answers=answers), example([5], [6], answers=answers)]
    batch = collate(rows, PAD)
    assert batch["references"] == [["a", "b"], []]
    assert batch["answer_space"] is answers


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=6))
def test_no_row_is_changed_by_its_neighbours(lengths: list[tuple[int, int]]) -> None:
    rows = [example([5] * s, [6] * t, id=str(i)) for i, (s, t) in enumerate(lengths)]
    batch = collate(rows, PAD)
    for i, row in enumerate(rows):
        assert batch["net_input"]["src_tokens"][i, : len(row.source)].equal(row.source)
        assert batch["target"][i, : len(row.target)].equal(row.target)
        assert batch["target"][i, len(row.target) :].eq(PAD).all()
    assert batch["ntokens"] == sum(len(row.target) for row in rows)


# The dataset


def number_of(row: list[str]) -> Example:
    """An example whose source and id are the row's number; rows that are no number can't be used."""
    return example([10 + int(row[0])], [6], id=row[0])


def dataset_of(tmp_path: Path, rows: list[str], shuffle: bool = True) -> ExampleDataset:
    file = TsvFile(write_tsv(tmp_path / "rows.tsv", [[row] for row in rows]))
    return ExampleDataset(file, number_of, PAD, shuffle, BadRows(tmp_path / "bad_rows.tsv"))


def numbers(count: int) -> list[str]:
    return [str(i) for i in range(count)]


def batches_of(
    dataset: ExampleDataset,
    size: int,
    epoch: int,
    seed: int = 1,
    shards: int = 1,
    shard: int = 0,
    **more: Any,
) -> EpochBatchIterator:
    """fairseq's iterator, made as its task makes it."""
    with data_utils.numpy_seed(seed + epoch):
        indices = dataset.ordered_indices().tolist()
    return EpochBatchIterator(
        dataset,
        dataset.collater,
        dataset.batch_by_size(indices, max_sentences=size),
        seed=seed,
        num_shards=shards,
        shard_id=shard,
        epoch=epoch,
        **more,
    )


def ids(batches: Any) -> list[list[str]]:
    """The rows of each batch; [] for what fairseq fills short shards up with."""
    return [batch["id"].tolist() if batch else [] for batch in batches]


def test_every_epoch_has_its_own_order_which_seed_and_epoch_fix(tmp_path: Path) -> None:
    dataset = dataset_of(tmp_path, numbers(50))
    orders = {key: ids(batches_of(dataset, 8, *key).next_epoch_itr()) for key in ((1, 1), (2, 1), (1, 7))}
    flat = {key: [i for batch in order for i in batch] for key, order in orders.items()}
    assert all(sorted(order, key=int) == numbers(50) for order in flat.values())
    assert len({tuple(order) for order in flat.values()}) == 3
    assert ids(batches_of(dataset, 8, 2, 1).next_epoch_itr()) == orders[2, 1]
    # Rows change company, it is not only whole batches that move.
    together = [{frozenset(batch) for batch in order} for order in orders.values()]
    assert not together[0] & together[1]


def test_without_shuffling_rows_keep_their_order(tmp_path: Path) -> None:
    dataset = dataset_of(tmp_path, numbers(10), shuffle=False)
    assert ids(batches_of(dataset, 4, 3).next_epoch_itr(shuffle=False)) == [
        numbers(10)[i : i + 4] for i in (0, 4, 8)
    ]


@pytest.mark.parametrize(("rows", "size"), [(10, 1), (10, 3), (12, 4), (3, 8)])
def test_batches_are_exactly_as_large_as_asked(rows: int, size: int, tmp_path: Path) -> None:
    dataset = dataset_of(tmp_path, numbers(rows))
    sizes = [len(batch) for batch in dataset.batch_by_size(range(rows), max_sentences=size)]
    assert sizes == [size] * (rows // size) + [rows % size] * (rows % size > 0)
    # --max-tokens means nothing for pictures, and a multiple would make batches smaller.
    same = dataset.batch_by_size(
        range(rows), max_tokens=5, max_sentences=size, required_batch_size_multiple=8
    )
    assert [len(batch) for batch in same] == sizes
    assert len(dataset.batch_by_size(range(100))[0]) == DEFAULT_BATCH_SIZE


def test_nothing_is_filtered_by_length(tmp_path: Path) -> None:
    indices, ignored = dataset_of(tmp_path, numbers(3)).filter_indices_by_size(np.arange(3), (1, 1))
    assert indices.tolist() == [0, 1, 2]
    assert ignored == []


@pytest.mark.parametrize(("rows", "size"), [(50, 8), (48, 4), (7, 8), (9, 1)])
def test_shards_share_the_rows_without_overlap(rows: int, size: int, tmp_path: Path) -> None:
    dataset = dataset_of(tmp_path, numbers(rows))
    shards = [ids(batches_of(dataset, size, 2, shards=3, shard=i).next_epoch_itr()) for i in range(3)]
    assert len({len(shard) for shard in shards}) == 1
    assert Counter(i for shard in shards for batch in shard for i in batch) == Counter(numbers(rows))


def test_an_iterator_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    dataset = dataset_of(tmp_path, numbers(50))
    whole = ids(batches_of(dataset, 8, 2).next_epoch_itr())
    first = batches_of(dataset, 8, 2)
    stopped = first.next_epoch_itr()
    begin = [next(stopped)["id"].tolist() for _ in range(3)]
    second = batches_of(dataset, 8, 2)
    second.load_state_dict(first.state_dict())
    assert begin + ids(second.next_epoch_itr()) == whole


def test_an_empty_batch_is_empty(tmp_path: Path) -> None:
    assert dataset_of(tmp_path, numbers(2)).collater([]) == {}


# Rows that can't be used


def test_bad_rows_are_left_out_and_counted(tmp_path: Path) -> None:
    dataset = dataset_of(tmp_path, ["0", "x", "2", "y"])
    batch = dataset.collater([dataset[i] for i in range(4)])
    assert batch["id"].tolist() == ["0", "2"]
    assert (batch["nsentences"], batch["skipped_rows"]) == (2, 2)
    assert dataset.collater([dataset[0]])["skipped_rows"] == 0


def test_a_batch_of_bad_rows_has_the_right_form_and_nothing_to_learn(tmp_path: Path) -> None:
    dataset = dataset_of(tmp_path, ["x", "y", "2"])
    batch, usual = dataset.collater([dataset[0], dataset[1]]), dataset.collater([dataset[2]])
    assert set(batch) == set(usual)
    assert set(batch["net_input"]) == set(usual["net_input"])
    assert batch["target"].eq(PAD).all()
    assert (batch["nsentences"], batch["ntokens"], batch["skipped_rows"]) == (0, 0, 2)
    assert batch["id"].tolist() == []


def test_a_file_of_bad_rows_is_an_error_that_names_some(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError,
        match=r"of its 3 rows none of the first 3 can be used .*selected-cols.* 3 are listed in .*bad_rows.tsv",
    ):
        dataset_of(tmp_path, ["x", "y", "z"])


def test_a_large_file_of_bad_rows_is_not_read_to_its_end(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="of its 1003 rows none of the first 1000"):
        dataset_of(tmp_path, ["x"] * 1003)


def test_other_errors_are_not_taken_for_bad_rows(tmp_path: Path) -> None:
    dataset = dataset_of(tmp_path, numbers(3))
    dataset.build = lambda row: {"0": example([5], [6])}[row[0]]
    with pytest.raises(KeyError):
        dataset[1]


# Worker processes


def same_batches(a: Any, b: Any) -> bool:
    def same(x: Any, y: Any) -> bool:
        if isinstance(x, dict):
            return x.keys() == y.keys() and all(same(x[k], y[k]) for k in x)
        if isinstance(x, Tensor):
            return torch.equal(x, y)
        return bool(np.array_equal(x, y)) if isinstance(x, np.ndarray) else bool(x == y)

    return all(same(x, y) for x, y in zip(a, b, strict=True))


def test_workers_give_the_same_batches(tmp_path: Path) -> None:
    dataset = dataset_of(tmp_path, [*numbers(20), "x", "y"])
    alone = list(batches_of(dataset, 4, 2).next_epoch_itr())
    assert sum(batch["skipped_rows"] for batch in alone) == 2
    assert same_batches(alone, batches_of(dataset, 4, 2, num_workers=2).next_epoch_itr())
    assert sorted((tmp_path / "bad_rows.tsv").read_text().split("\t")[1::2]) == ["21", "22"]


@pytest.fixture
def captions(tmp_path: Path, sentencepiece_dir: Path) -> ExampleDataset:
    """Five rows of the real task, one of them bad."""
    file = write_captions(tmp_path / "rows.tsv", ["a dog", "a cat", "", "what is it", "a region"])
    task = caption_run(
        f"{file},{file}", sentencepiece_dir, "--bad-rows", str(tmp_path / "bad_rows.tsv"), "--eval-cider"
    ).task
    assert task.vocabulary
    task.load_dataset("valid")
    return task.dataset("valid")


def loader(dataset: ExampleDataset, workers: int, start: str | None = None) -> DataLoader:
    context = None if start is None else multiprocessing.get_context(start)
    return DataLoader(
        dataset, 2, collate_fn=dataset.collater, num_workers=workers, multiprocessing_context=context
    )


def test_the_task_works_in_forked_workers(captions: ExampleDataset) -> None:
    assert same_batches(loader(captions, 0), loader(captions, 2, "fork"))


def test_the_task_works_in_spawned_workers(captions: ExampleDataset) -> None:
    assert same_batches(loader(captions, 0), loader(captions, 1, "spawn"))


def test_a_run_that_is_under_way_can_spawn_workers(captions: ExampleDataset) -> None:
    task = captions.build.task  # type: ignore[attr-defined]
    batches = task.get_batch_iterator(captions, max_sentences=2, num_workers=1)
    next(batches.next_epoch_itr(shuffle=False))
    copy = pickle.loads(pickle.dumps(captions))
    assert same_batches(loader(captions, 0), loader(copy, 0))


def test_rows_of_one_picture_share_it() -> None:
    shared, other = torch.ones(3, 4, 4), torch.full((3, 4, 4), 2.0)
    batch = collate([example([5], [6], image=image) for image in (shared, other, shared, None)], PAD)
    net_input = batch["net_input"]
    assert net_input["patch_rows"].tolist() == [0, 1, 0, 2]
    restored = net_input["patch_images"][net_input["patch_rows"]]
    assert torch.equal(restored, torch.stack([shared, other, shared, torch.zeros(3, 4, 4)]))
    assert net_input["patch_masks"].tolist() == [True, True, True, False]


@pytest.mark.parametrize("rows", [12, 13])
def test_blocks_of_rows_stay_together(rows: int, tmp_path: Path) -> None:
    dataset = dataset_of(tmp_path, numbers(rows), shuffle=True)
    dataset.block = 4
    with data_utils.numpy_seed(3):
        order = dataset.ordered_indices().tolist()
    assert sorted(order) == list(range(rows))
    for first in range(0, rows, 4):
        block = list(range(first, min(first + 4, rows)))
        place = order.index(first)
        assert order[place : place + len(block)] == block
    assert order != list(range(rows))
