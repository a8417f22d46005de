"""Which padding a program accepts.

Hidden tokens have no row in a program, and their results are zeros. No result of a visible token
may depend on these. To check, the steps after the program run with other numbers in their place. A
classifier that reads the first token, for example, accepts only padding on the right.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lowbit.runtime.lower import Lowered

LENGTH, SEED = 6, 0
Padding = Callable[[Tensor], bool]  # the argument: which tokens exist


def on_the_right(exists: Tensor) -> bool:
    """Whether all padding is on the right. exists: bool [batch, length]."""
    return bool((exists[:, :-1] >= exists[:, 1:]).all())


def around(exists: Tensor) -> bool:
    """Whether the tokens of each sequence are contiguous."""
    begins = exists[:, 1:] & ~exists[:, :-1]
    return bool((begins.sum(1) + exists[:, 0] == 1).all())


def anywhere(exists: Tensor) -> bool:
    return True


# From the most general kind to the strictest, with an example of each.
KINDS: dict[Padding, list[list[int]]] = {
    anywhere: [[1, 0, 1, 1, 0, 1], [0, 1, 0, 0, 1, 0]],
    around: [[0, 0, 1, 1, 1, 0], [1, 1, 0, 0, 0, 0]],
    on_the_right: [[1, 1, 1, 1, 0, 0], [1, 0, 0, 0, 0, 0]],
}


def tolerated(lowered: Lowered, examples: Sequence[Tensor], mask: int | None) -> Padding | None:
    """The most general of KINDS that a program accepts, or None if the steps after the program read
    every kind of padding. examples: tensors of a call. mask: the name of the attention mask."""
    if mask is None:
        return anywhere
    kinds = list(KINDS)[1 if lowered.program.counts_places else 0 :]
    return next((kind for kind in kinds if _blind(lowered, examples, mask, kind)), None)


def _blind(lowered: Lowered, examples: Sequence[Tensor], mask: int, kind: Padding) -> bool:
    exists = torch.tensor(KINDS[kind], dtype=torch.bool)
    batch = len(exists)
    tensors = [
        t.new_zeros(batch, LENGTH, *t.shape[2:])
        if not t.is_floating_point()
        else t.new_zeros(batch, *t.shape[1:])
        for t in examples
    ]
    tensors[mask] = exists.to(examples[mask].dtype)
    generator = torch.Generator().manual_seed(SEED)
    columns = [lowered.program.columns[m] for m in lowered.program.results]
    rows = [torch.randn(batch, LENGTH, n, generator=generator) for n in columns]
    # Softmax and layer norm do not see a number that is added to all columns.
    others = [torch.randn(t.shape, generator=generator) for t in rows]
    seen = []
    for hidden in ([torch.zeros_like(t) for t in rows], others):
        filled = [t.where(exists[..., None], h) for t, h in zip(rows, hidden, strict=True)]
        after = lowered.after(*tensors, *(filled[number] for number in lowered.ends))
        seen.append([_that_exist(t, exists) for t in after if isinstance(t, Tensor)])
    return all(torch.equal(a, b) for a, b in zip(*seen, strict=True))


def _that_exist(t: Tensor, exists: Tensor) -> Tensor:
    return t[exists] if t.shape[:2] == exists.shape else t
