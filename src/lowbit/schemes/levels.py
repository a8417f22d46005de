"""Optimal binary codes of one group: the arithmetic of the alternating solver.

A group of n weights is described by its sorted values and their prefix sums. The 2^b levels
±α₁ … ±α_b + o split the sorted values into cells. Least squares needs only the number of weights in
a cell and their sum, so an iteration costs 2^b binary searches instead of n steps.

N groups are solved at once. Tensors per level or plane are [levels, N] or [planes, N] in float64,
so that each step is vector arithmetic on long rows.
"""

from dataclasses import dataclass
from functools import cache
from itertools import combinations

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int64, UInt8
from torch import Tensor
from torch.nn.functional import pad

# Candidate steps of the best uniform grid, as shares of the step that spans the whole range.
GRID_SHARES = torch.linspace(0.3, 1.0, 10, dtype=torch.float32).tolist()
# Keeps the normal equations solvable if the signs of two planes are equal in all cells.
RIDGE = 1e-9
# With α₁ ≥ α₂ ≥ … ≥ 0 the levels ascend in the order of their signs, plane 0 first, but for
# these pairs of positions, to be compared and exchanged one after the other.
EXCHANGES: dict[int, tuple[tuple[int, int], ...]] = {
    1: (),
    2: (),
    3: ((3, 4),),
    4: ((3, 4), (11, 12), (4, 8), (7, 11), (6, 8), (7, 9), (5, 6), (7, 8), (9, 10)),
}


@dataclass(frozen=True)
class SortedGroups:
    """N groups of n weights: sorted values and prefix sums (with a leading 0)."""

    values: Float32[Tensor, "N n"]
    sums: Float64[Tensor, "N n_plus_1"]

    @classmethod
    def of(cls, weights: Float32[Tensor, "N n"]) -> "SortedGroups":
        values = ascending(weights)
        return cls(values, pad(values.cumsum(1, dtype=torch.float64), (1, 0)))

    def take(self, at: Int64[Tensor, " M"]) -> "SortedGroups":
        return SortedGroups(self.values.index_select(0, at), self.sums.index_select(0, at))


@dataclass(frozen=True)
class Levels:
    """N sets of 2^b levels: α [b, N] and an offset [N] (zeros where there is none)."""

    alpha: Float64[Tensor, "b N"]
    offset: Float64[Tensor, " N"]

    def take(self, at: Int64[Tensor, " M"]) -> "Levels":
        return Levels(self.alpha.index_select(1, at), self.offset.index_select(0, at))

    def split(self, size: int) -> "list[Levels]":
        """Consecutive sets, `size` of them at once."""
        each = zip(self.alpha.split(size, 1), self.offset.split(size), strict=True)
        return [Levels(alpha, offset) for alpha, offset in each]

    def to(self, dtype: torch.dtype) -> "Levels":
        """The levels after rounding to `dtype`."""
        return Levels(self.alpha.to(dtype).double(), self.offset.to(dtype).double())

    def where(self, better: Tensor, other: "Levels") -> "Levels":
        """Per group, these levels where `better`, else the others."""
        return Levels(
            torch.where(better, self.alpha, other.alpha),
            torch.where(better, self.offset, other.offset),
        )

    def descending(self) -> "Levels":
        """The same levels by α₁ ≥ α₂ ≥ … ≥ 0: planes flipped and exchanged."""
        rows = list(self.alpha.abs())
        for i, j in combinations(range(len(rows)), 2):
            rows[i], rows[j] = torch.maximum(rows[i], rows[j]), torch.minimum(rows[i], rows[j])
        return Levels(torch.stack(rows), self.offset)


def ascending(rows: Float32[Tensor, "N n"]) -> Float32[Tensor, "N n"]:
    """Each row sorted. NumPy does it with vector instructions, 20 times as fast as PyTorch."""
    if rows.device.type != "cpu":
        return rows.sort(dim=1).values
    return torch.from_numpy(np.sort(rows.numpy(), axis=1))


@cache
def design(bits: int, with_offset: bool, device: torch.device) -> Float64[Tensor, "levels k"]:
    """Row c holds the signs of code c, bit i of c being plane i, and a 1 for the offset."""
    codes = torch.arange(1 << bits, device=device)[:, None]
    signs = ((codes >> torch.arange(bits, device=device) & 1) * 2 - 1).double()
    return pad(signs, (0, 1), value=1.0) if with_offset else signs


@cache
def lexicographic(bits: int, device: torch.device) -> Int64[Tensor, " levels"]:
    """All codes in the order of their signs, plane 0 first."""
    codes = sorted(range(1 << bits), key=lambda code: [code >> i & 1 for i in range(bits)])
    return torch.tensor(codes, device=device)


def sorted_levels(
    levels: Levels,
) -> tuple[Float64[Tensor, "levels N"], Int64[Tensor, "levels N"]]:
    """The values of all levels, ascending, and the code of each. Takes descending α."""
    bits, groups = levels.alpha.shape
    order = lexicographic(bits, levels.alpha.device)
    signs = design(bits, False, levels.alpha.device)[order]
    values = torch.addmm(levels.offset, signs, levels.alpha)
    code = order[:, None].repeat(1, groups)
    for i, j in EXCHANGES[bits]:
        pair = slice(i, j + 1, j - i)
        wrong = values[i] > values[j]
        values[pair] = torch.where(wrong, values[pair].flip(0), values[pair])
        code[pair] = torch.where(wrong, code[pair].flip(0), code[pair])
    # Levels that differ only by rounding may be out of order in the last digit.
    return values.cummax(0).values, code


def decoded(levels: Levels) -> Float32[Tensor, "N levels"]:
    """The value of each code, summed in the order of the binary format."""
    bits = len(levels.alpha)
    value = levels.offset.float()[:, None].repeat(1, 1 << bits)
    signs = design(bits, False, value.device).t().float()
    for sign, alpha in zip(signs, levels.alpha.float(), strict=True):
        value += sign * alpha[:, None]
    return value


def thresholds(values: Float64[Tensor, "levels N"]) -> Float64[Tensor, "cuts N"]:
    """Halfway between neighbouring levels."""
    return (values[1:] + values[:-1]) / 2


def cells(
    groups: SortedGroups, values: Float64[Tensor, "levels N"]
) -> tuple[Float64[Tensor, "levels N"], Float64[Tensor, "levels N"]]:
    """(count, sum) of the weights nearest to each level."""
    cuts = thresholds(values).to(groups.values.dtype).t().contiguous()
    edges = pad(torch.searchsorted(groups.values, cuts), (1, 1))
    edges[:, -1] = groups.values.shape[1]
    below = groups.sums.gather(1, edges)
    return edges.t().diff(dim=0).double(), below.t().diff(dim=0)


def squared_error(
    values: Float64[Tensor, "levels N"],
    count: Float64[Tensor, "levels N"],
    total: Float64[Tensor, "levels N"],
) -> Float64[Tensor, " N"]:
    """Σ (w − level)² less Σ w², which does not depend on the levels."""
    return (values * (count * values - 2 * total)).sum(0)


def error_of(groups: SortedGroups, levels: Levels) -> Float64[Tensor, " N"]:
    """`squared_error` of nearest codes at these levels."""
    values, _ = sorted_levels(levels)
    return squared_error(values, *cells(groups, values))


def least_squares(
    count: Float64[Tensor, "levels N"], total: Float64[Tensor, "levels N"], with_offset: bool
) -> Levels:
    """The α (and offset) of least squared error, if `count` weights with sum `total` have code c.

    Signs and order of α are those of the codes.
    """
    bits = len(count).bit_length() - 1
    signs = design(bits, with_offset, count.device)
    products = (signs[:, :, None] * signs[:, None, :]).flatten(1)
    gram = (products.t() @ count).unflatten(0, (signs.shape[1], -1))
    gram.diagonal().add_(RIDGE * count.sum(0)[:, None])
    solution = solve(gram, signs.t() @ total)
    return Levels(solution[:bits], solution[bits] if with_offset else torch.zeros_like(solution[0]))


def coded_cells(
    weights: Float32[Tensor, "N n"], code: UInt8[Tensor, "N n"], bits: int
) -> tuple[Float64[Tensor, "levels N"], Float64[Tensor, "levels N"]]:
    """(count, sum) of the weights of each code."""
    at, w = code.long(), weights.double()
    none = w.new_zeros(len(w), 1 << bits)
    count = none.scatter_add(1, at, torch.ones_like(w))
    return count.t(), none.scatter_add(1, at, w).t()


def refit(
    count: Float64[Tensor, "levels N"],
    total: Float64[Tensor, "levels N"],
    planes: int,
    with_offset: bool,
) -> Levels:
    """`least_squares` for the first `planes` planes of the codes: their low bits."""
    count, total = (x.unflatten(0, (-1, 1 << planes)).sum(0) for x in (count, total))
    return least_squares(count, total, with_offset)


def solve(
    matrix: Float64[Tensor, "k k N"], right: Float64[Tensor, "k N"]
) -> Float64[Tensor, "k N"]:
    """Gauss–Jordan elimination of N small positive definite systems at once.

    LAPACK takes them one by one, which costs 20 times as much for k ≤ 5.
    """
    system = torch.cat([matrix, right[:, None]], 1)
    for i in range(len(right)):
        pivot = system[i, 1:] / system[i, 0]
        # The eliminated column is a unit vector; drop it.
        system = torch.addcmul(system[:, 1:], system[:, :1], pivot, value=-1)
        system[i] = pivot
    return system[:, 0]


def uniform_levels(groups: SortedGroups, bits: int, with_offset: bool) -> Levels:
    """The best of a few uniform grids around the middle of the range (or around 0)."""
    low, high = groups.values[:, 0].double(), groups.values[:, -1].double()
    if not with_offset:
        high = torch.maximum(-low, high)
        low = -high
    middle, steps = (low + high) / 2, (1 << bits) - 1
    widest = (high - low) / steps
    unit = torch.where(widest > 0, widest, 1.0)
    position = ((groups.values - middle[:, None]) / unit[:, None]).float()
    centre = position.new_tensor(steps / 2)
    least = torch.full_like(position[:, 0], torch.inf)
    best = torch.zeros_like(least)
    for share in GRID_SHARES:
        at = torch.add(centre, position, alpha=1 / share)
        error = at.sub_(at.round().clamp_(0, steps)).square_().sum(1) * share**2
        best = torch.where(error < least, share, best)
        least = torch.minimum(least, error)
    powers = 2.0 ** torch.arange(bits - 2, -2, -1, dtype=torch.float64, device=low.device)
    return Levels(powers[:, None] * (widest * best), middle)


def alternate(groups: SortedGroups, start: Levels, with_offset: bool, iterations: int) -> Levels:
    """Nearest codes, then least squares, in turn, until a group no longer improves.

    Neither step raises the error, so a group that does not improve has converged.
    """
    best = Levels(start.alpha.clone(), start.offset.clone())
    left = torch.arange(len(start.offset), device=start.offset.device)
    candidate, least = start, torch.full_like(start.offset, torch.inf)
    for _ in range(iterations + 1):
        values, code = sorted_levels(candidate)
        count, total = cells(groups, values)
        error = squared_error(values, count, total)
        better = (error < least).nonzero().flatten()
        left, least, groups = left[better], error[better], groups.take(better)
        found = candidate.take(better)
        best.alpha[:, left], best.offset[left] = found.alpha, found.offset
        if not len(left):
            break
        count, total = (
            torch.zeros_like(x).scatter_(0, code, x).index_select(1, better) for x in (count, total)
        )
        candidate = least_squares(count, total, with_offset).descending()
    return best
