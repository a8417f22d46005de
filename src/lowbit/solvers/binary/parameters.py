"""α and o of all groups of a row together, for given binary codes.

    min over p    (w − Φ p) H (w − Φ p)ᵀ

p holds the α and o of every group of one row, a column of Φ the signs of one plane in one group (or
ones there, for the offset). A row's normal equations Φᵀ H Φ p = Φᵀ H w have groups · (planes + 1)
unknowns; they are made for some rows at a time.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from lowbit.schemes.levels import RIDGE, Levels
from lowbit.solvers.binary.group import basis

# Rows are solved together as long as their equations hold no more numbers than this.
EQUATIONS_AT_ONCE = 1 << 23


def best_levels(
    weight: Float64[Tensor, "in out"],
    matrix: Float64[Tensor, "in in"],
    codes: Int64[Tensor, "in out"],
    groups: Sequence[slice],
    planes: int,
    with_offset: bool,
) -> list[Levels]:
    """The levels of each group for the first `planes` planes of the codes."""
    unknowns = len(groups) * (planes + with_offset)
    at_once = max(1, EQUATIONS_AT_ONCE // unknowns**2)
    pushed = (matrix @ weight).split(at_once, 1)
    solved = [
        _solve(right, matrix, basis(part, planes, with_offset), groups)
        for right, part in zip(pushed, codes.split(at_once, 1), strict=True)
    ]
    found = torch.cat(solved, 2)
    none = torch.zeros_like(found[:, 0])
    offset = found[:, planes] if with_offset else none
    return [Levels(f[:planes], o) for f, o in zip(found, offset, strict=True)]


def _solve(
    pushed: Float64[Tensor, "n rows"],
    matrix: Float64[Tensor, "n n"],
    signs: Float64[Tensor, "k n rows"],
    groups: Sequence[slice],
) -> Float64[Tensor, "groups k rows"]:
    """pushed: H w of each row."""
    sizes = torch.tensor([at.stop - at.start for at in groups], device=signs.device)
    owner = torch.arange(len(groups), device=signs.device).repeat_interleave(sizes)

    def by_group(products: Float64[Tensor, "*k in rows"]) -> Float64[Tensor, "rows groups *k"]:
        """Sums over the inputs of each group."""
        shape = *products.shape[:-2], len(groups), products.shape[-1]
        sums = products.new_zeros(shape).index_add_(-2, owner, products)
        return sums.movedim((-1, -2), (0, 1))

    columns = [by_group(signs[:, None] * (matrix[:, at] @ signs[:, at])) for at in groups]
    gram = torch.stack(columns, 3).flatten(3).flatten(1, 2)
    gram.diagonal(dim1=1, dim2=2).add_(RIDGE * gram.diagonal(dim1=1, dim2=2).mean(1)[:, None])
    solution = torch.linalg.solve(gram, by_group(signs * pushed).flatten(1))
    return solution.unflatten(1, (len(groups), -1)).permute(1, 2, 0)
