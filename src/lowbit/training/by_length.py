"""The order of examples: batches of like lengths, so that little is padded, in random order.

Among so many batches of examples, drawn at random, the longest make one batch, the next longest
another one, and so on. Trainer's own sampler gives the batches in that order, too: what a model
learns from grows shorter for fifty steps, is long again, and a translator of short sentences
learned nothing so (docs/LOG.md).
"""

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

BATCHES = 50


class ByLength(Sampler[int]):
    """The order depends on the seed and the epoch alone: a training that is resumed inside an epoch
    goes on in the order in which that one began."""

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self.lengths, self.batch_size = np.array(lengths), batch_size
        self.seed, self.epoch = seed, 0

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        random = np.random.default_rng([self.seed, self.epoch])
        drawn = random.permutation(len(self.lengths))
        batches: list[np.ndarray] = []
        for some in _pieces(drawn, BATCHES * self.batch_size):
            longest_first = some[(-self.lengths[some]).argsort(kind="stable")]
            batches += _pieces(longest_first, self.batch_size)
        # Only the last one can be smaller: in front of others it would shift them all.
        *full, last = batches
        order = random.permutation(len(full))
        return iter(np.concatenate([*(full[i] for i in order), last]).tolist())


def _pieces(rows: np.ndarray, size: int) -> list[np.ndarray]:
    return [rows[at : at + size] for at in range(0, len(rows), size)]
