"""Optimal binary codes of one group: the arithmetic of the alternating solver.

A group of n weights is described by its sorted values and their prefix sums. The 2^b levels
±α₁ … ±α_b + o cut the sorted values into cells, and all that least squares needs of a cell is
how many weights it holds and their sum: an iteration costs 2^b binary searches, not n steps.
Everything here is float64 and runs over N groups at once.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int64, UInt8
from torch import Tensor

# Candidate steps of the best uniform grid, as shares of the step that spans the whole range.
GRID_SHARES = torch.linspace(0.25, 1.0, 16, dtype=torch.float64)
# Keeps the normal equations solvable where a cell pattern makes two planes the same.
RIDGE = 1e-9


@dataclass(frozen=True)
class SortedGroups:
    """N groups of n weights: sorted values and prefix sums (with a leading 0)."""

    values: Float64[Tensor, "N n"]
    sums: Float64[Tensor, "N n_plus_1"]

    @classmethod
    def of(cls, weights: Float[Tensor, "N n"]) -> "SortedGroups":
        # Sorted as float32, which is twice as fast and gives the same order.
        values = weights.sort(dim=1).values.double()
        zero = torch.zeros(len(values), 1, dtype=torch.float64, device=values.device)
        return cls(values, torch.cat([zero, values.cumsum(1)], 1))


@dataclass(frozen=True)
class Levels:
    """N sets of 2^b levels: α [N, b] and an offset [N, 1] (zeros where there is none)."""

    alpha: Float64[Tensor, "N b"]
    offset: Float64[Tensor, "N 1"]

    def where(self, better: Tensor, other: "Levels") -> "Levels":
        """Per group, these levels where `better`, else the others."""
        choose = better[:, None]
        return Levels(
            torch.where(choose, self.alpha, other.alpha),
            torch.where(choose, self.offset, other.offset),
        )


def sign_table(bits: int, device: torch.device) -> Float64[Tensor, "levels bits"]:
    """Row c holds the signs of code c, bit i of c being plane i."""
    codes = torch.arange(1 << bits, device=device)[:, None]
    return ((codes >> torch.arange(bits, device=device) & 1) * 2 - 1).double()


def sorted_levels(
    levels: Levels,
) -> tuple[Float64[Tensor, "N levels"], Int64[Tensor, "N levels"]]:
    """The values of all levels in ascending order, and the code of each."""
    bits = levels.alpha.shape[1]
    values = levels.alpha @ sign_table(bits, levels.alpha.device).T + levels.offset
    ordered = values.sort(dim=1, stable=True)
    return ordered.values, ordered.indices


def thresholds(values: Float64[Tensor, "N levels"]) -> Float64[Tensor, "N cuts"]:
    """Halfway between neighbouring levels."""
    return (values[:, 1:] + values[:, :-1]) / 2


def cells(
    groups: SortedGroups, values: Float64[Tensor, "N levels"]
) -> tuple[Float64[Tensor, "N levels"], Float64[Tensor, "N levels"]]:
    """(count, sum) of the weights nearest to each level."""
    cut = torch.searchsorted(groups.values, thresholds(values))
    first, last = torch.zeros_like(cut[:, :1]), torch.full_like(cut[:, :1], groups.values.shape[1])
    edges = torch.cat([first, cut, last], 1)
    return edges.diff(dim=1).double(), groups.sums.gather(1, edges).diff(dim=1)


def squared_error(
    values: Float64[Tensor, "N levels"],
    count: Float64[Tensor, "N levels"],
    total: Float64[Tensor, "N levels"],
) -> Float64[Tensor, " N"]:
    """Σ (w − level)² less Σ w², which does not depend on the levels."""
    return (values * (count * values - 2 * total)).sum(1)


def solve(
    matrix: Float64[Tensor, "N k k"], right: Float64[Tensor, "N k"]
) -> Float64[Tensor, "N k"]:
    """Gaussian elimination of N small positive definite systems at once.

    LAPACK takes them one by one, which costs 20 times as much for k ≤ 5.
    """
    k = right.shape[1]
    rows = [torch.cat([matrix[:, i], right[:, i : i + 1]], 1) for i in range(k)]
    for i in range(k):
        for j in range(i + 1, k):
            rows[j] = rows[j] - rows[i] * (rows[j][:, i : i + 1] / rows[i][:, i : i + 1])
    solution: list[Tensor] = []
    for i in reversed(range(k)):
        known = sum((rows[i][:, i + 1 + j] * x for j, x in enumerate(reversed(solution))), 0.0)
        solution.append((rows[i][:, k] - known) / rows[i][:, i])
    return torch.stack(solution[::-1], 1)


def fit(
    code: Int64[Tensor, "N levels"],
    count: Float64[Tensor, "N levels"],
    total: Float64[Tensor, "N levels"],
    bits: int,
    with_offset: bool,
) -> Levels:
    """The α (and offset) of least squared error for weights already assigned to codes."""
    design = sign_table(bits, code.device)[code]
    if with_offset:
        design = torch.cat([design, torch.ones_like(design[..., :1])], -1)
    gram = design.mT @ (design * count[..., None])
    gram.diagonal(dim1=1, dim2=2).add_(RIDGE * count.sum(1, keepdim=True))
    solution = solve(gram, (design * total[..., None]).sum(1))
    # A plane may be flipped and planes may change places: the codes are computed afterwards.
    alpha = solution[:, :bits].abs().sort(dim=1, descending=True).values
    return Levels(alpha, solution[:, bits:] if with_offset else torch.zeros_like(alpha[:, :1]))


def refit(groups: Float[Tensor, "N n"], bit: UInt8[Tensor, "p N n"], with_offset: bool) -> Levels:
    """The α (and offset) of least squared error for codes that are given weight by weight.

    Unlike `fit` it must leave signs and order as they are: the codes are already stored.
    """
    design = bit.permute(1, 2, 0).double() * 2 - 1
    if with_offset:
        design = torch.cat([design, torch.ones_like(design[..., :1])], -1)
    gram = design.mT @ design
    gram.diagonal(dim1=1, dim2=2).add_(RIDGE * groups.shape[1])
    solution = solve(gram, (design.mT @ groups.double()[..., None])[..., 0])
    planes = bit.shape[0]
    alpha = solution[:, :planes]
    offset = solution[:, planes:] if with_offset else torch.zeros_like(alpha[:, :1])
    return Levels(alpha, offset)


def error_of(groups: SortedGroups, levels: Levels) -> Float64[Tensor, " N"]:
    """`squared_error` of nearest codes at these levels."""
    values, _ = sorted_levels(levels)
    return squared_error(values, *cells(groups, values))


def uniform_levels(groups: SortedGroups, bits: int, with_offset: bool) -> Levels:
    """The best of a few uniform grids around the middle of the range (or around 0)."""
    low, high = groups.values[:, :1], groups.values[:, -1:]
    if not with_offset:
        high = torch.maximum(-low, high)
        low = -high
    middle = (low + high) / 2
    powers = 2.0 ** torch.arange(bits - 2, -2, -1, dtype=torch.float64, device=low.device)
    best: Levels | None = None
    least = torch.full_like(low[:, 0], torch.inf)
    for share in GRID_SHARES.tolist():
        grid = Levels((high - low) / ((1 << bits) - 1) * share * powers, middle)
        error = error_of(groups, grid)
        best = grid if best is None else grid.where(error < least, best)
        least = torch.minimum(least, error)
    assert best is not None
    return best


def alternate(groups: SortedGroups, start: Levels, with_offset: bool, iterations: int) -> Levels:
    """Nearest codes, then least squares, in turn; per group only a decrease is accepted."""
    bits = start.alpha.shape[1]
    best, candidate = start, start
    least = torch.full_like(start.offset[:, 0], torch.inf)
    for _ in range(iterations + 1):
        values, code = sorted_levels(candidate)
        count, total = cells(groups, values)
        error = squared_error(values, count, total)
        best = candidate.where(error < least, best)
        least = torch.minimum(least, error)
        candidate = fit(code, count, total, bits, with_offset)
    return best
