"""How long an epoch is: a notice board between the task, which knows, and the learning-rate schedule.

fairseq builds the schedule before there are data and never tells it their number, so whoever builds the
training batches announces the count here, once for the process, and the schedule looks when it needs it. A
training that is resumed announces anew: nothing of this is stored.
"""

from collections.abc import Sequence

_batches_per_epoch: tuple[int, ...] | None = None


def announce(batches_per_epoch: Sequence[int]) -> None:
    """Say how many batches a device gets in an epoch, one number per training file (epoch e, from 1, reads
    entry (e - 1) mod n). A later call replaces it. Raises ValueError for an empty list or an empty epoch.
    """
    if not batches_per_epoch or min(batches_per_epoch) < 1:
        raise ValueError(
            f"batches per epoch {list(batches_per_epoch)}: expected at least one training file, each with "
            "at least one batch"
        )
    global _batches_per_epoch
    _batches_per_epoch = tuple(batches_per_epoch)


def announced() -> tuple[int, ...] | None:
    """What was announced last; None before that."""
    return _batches_per_epoch


def total_updates(batches_per_epoch: Sequence[int], update_freq: Sequence[int], max_epoch: int) -> int:
    """Updates in epochs 1 to `max_epoch`: the sum of ceil(batches / update_freq).

    Epoch e reads entry (e - 1) mod n of the batches, and entry e - 1 of `update_freq` or its last one, as
    fairseq does.
    """
    return sum(
        -(-batches_per_epoch[i % len(batches_per_epoch)] // update_freq[min(i, len(update_freq) - 1)])
        for i in range(max_epoch)
    )
