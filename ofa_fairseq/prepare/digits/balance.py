"""Random choices that keep answers balanced, so that guessing without looking gets no advantage."""

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")
Answer = TypeVar("Answer", bound=Hashable)


class Balance:
    """A random generator that remembers which answers it has chosen."""

    def __init__(self, *seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._chosen: Counter[tuple[Hashable, Hashable]] = Counter()

    def one_of(self, items: Sequence[T]) -> T:
        """Any of the items, each equally often."""
        return items[int(self._rng.integers(len(items)))]

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """The items in random order."""
        return [items[int(i)] for i in self._rng.permutation(len(items))]

    def by_weight(self, weights: Mapping[str, float]) -> str:
        """One of the keys, as often as its weight says."""
        total = sum(weights.values())
        return str(self._rng.choice(list(weights), p=[weight / total for weight in weights.values()]))

    def rarest(self, group: Hashable, answers: Sequence[Answer]) -> Answer:
        """The answer that was chosen least often for this group until now; of equals, any."""
        answer = min(self.shuffled(answers), key=lambda answer: self._chosen[group, answer])
        self._chosen[group, answer] += 1
        return answer
