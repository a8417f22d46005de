"""Binary-code quantization (BCQ): w ≈ Σᵢ αᵢ bᵢ + o with bᵢ ∈ {−1, +1}, 1 … 4 planes.

*greedy* (Guo et al. 2017, "Network sketching"): rᵢ = w − o − Σ_{j<i} αⱼ bⱼ, bᵢ = sign(rᵢ),
αᵢ = mean |rᵢ|, o = mean(w). *alternating* (Xu et al. 2018, "Alternating multi-bit quantization
for recurrent neural networks"): from the better of greedy and the best uniform grid, nearest
codes and least squares in turn. Codes are computed from α and o as stored; sign(0) = +1.

`nested=True` also stores the best α and o of every prefix of the planes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor

from lowbit.errors import UsageError
from lowbit.formats import BinaryLayout, BinaryTensor, Granularity, group
from lowbit.formats.scales import stored_dtype
from lowbit.packing import pack
from lowbit.schemes import levels
from lowbit.schemes.levels import Levels, SortedGroups
from lowbit.schemes.weight_range import check_finite, check_weight

# Groups are solved in pieces whose temporaries stay in the cache.
WEIGHTS_AT_ONCE = 1 << 17


@dataclass(frozen=True)
class Binary:
    """Binary codes of 1 … 4 planes. Raises UsageError for options out of range."""

    name: ClassVar[str] = "binary"
    bits: int = 3
    granularity: Granularity = group(64)
    offset: bool = True
    solver: str = "alternating"
    iterations: int = 15
    nested: bool = False

    def __post_init__(self) -> None:
        BinaryLayout(self.bits, self.granularity, self.offset, self.nested)
        if self.solver not in SOLVERS:
            raise UsageError(f"solver {self.solver!r} is unknown: use {', '.join(SOLVERS)}")
        if not 0 <= self.iterations <= 1000:
            raise UsageError(f"iterations {self.iterations} is outside 0 … 1000")

    def quantize(self, weight: Float[Tensor, "out in"]) -> BinaryTensor:
        """The weight in the binary format. Raises InputError where it is not finite."""
        check_weight(weight, self.granularity)
        check_finite(weight.abs().sum(dtype=torch.float64), weight)
        out, columns = weight.shape
        width = self.granularity.width(columns)
        whole = columns - columns % width
        # A shorter last group has parameters of its own, so it is solved by itself.
        parts = [part for part in (weight[:, :whole], weight[:, whole:]) if part.shape[1]]
        groups = [part.float().reshape(-1, min(width, part.shape[1])) for part in parts]
        found = [self._levels(g) for g in groups]
        dtype = stored_dtype(torch.cat([magnitudes(f) for f in found]))
        found = [rounded(f, dtype) for f in found]
        bits = [self._codes(g, f) for g, f in zip(groups, found, strict=True)]
        alphas, offsets = [], []
        for p in BinaryLayout(self.bits, self.granularity, self.offset, self.nested).prefixes:
            own = [
                f if p == self.bits else levels.refit(g, b[:p], self.offset)
                for g, b, f in zip(groups, bits, found, strict=True)
            ]
            alpha = torch.cat([f.alpha.reshape(out, -1, p) for f in own], 1)
            offset = torch.cat([f.offset.reshape(out, -1) for f in own], 1)
            alphas.append(alpha.permute(1, 2, 0).to(dtype).contiguous())
            offsets.append(offset.t().to(dtype).contiguous())
        return BinaryTensor(
            planes=pack(torch.cat([b.reshape(self.bits, out, -1) for b in bits], 2), 1),
            alphas=tuple(alphas),
            offsets=tuple(offsets) if self.offset else None,
            granularity=self.granularity,
            in_features=columns,
        )

    def _levels(self, groups: Float32[Tensor, "N n"]) -> Levels:
        found = [SOLVERS[self.solver].levels(g, self) for g in pieces(groups, groups.shape[1])]
        return Levels(torch.cat([f.alpha for f in found]), torch.cat([f.offset for f in found]))

    def _codes(self, groups: Float32[Tensor, "N n"], found: Levels) -> UInt8[Tensor, "bits N n"]:
        n = groups.shape[1]
        each = zip(pieces(groups, n), pieces(found.alpha, n), pieces(found.offset, n), strict=True)
        codes = [SOLVERS[self.solver].codes(g, Levels(alpha, o)) for g, alpha, o in each]
        return torch.cat(codes, 1)


def pieces(rows: Tensor, weights_per_row: int) -> tuple[Tensor, ...]:
    """Consecutive rows, so many at once that they hold WEIGHTS_AT_ONCE weights."""
    return rows.split(max(1, WEIGHTS_AT_ONCE // weights_per_row))


def magnitudes(found: Levels) -> Tensor:
    """What decides the stored dtype: the leading α, and offsets only where they are large."""
    return torch.cat([found.alpha[:, 0], found.offset[:, 0].abs().clamp(min=1.0)])


def rounded(found: Levels, dtype: torch.dtype) -> Levels:
    """The levels as they will be read back."""
    return Levels(found.alpha.to(dtype).double(), found.offset.to(dtype).double())


def greedy_levels(groups: Float32[Tensor, "N n"], options: Binary) -> Levels:
    """αᵢ = mean |residual|, plane by plane."""
    residual = groups.double()
    offset = residual.mean(1, keepdim=True) if options.offset else torch.zeros_like(residual[:, :1])
    residual = residual - offset
    alpha = []
    for _ in range(options.bits):
        alpha.append(residual.abs().mean(1, keepdim=True))
        residual = torch.where(residual >= 0, residual - alpha[-1], residual + alpha[-1])
    return Levels(torch.cat(alpha, 1), offset)


def greedy_codes(groups: Float32[Tensor, "N n"], found: Levels) -> UInt8[Tensor, "bits N n"]:
    """bᵢ = sign(residual), plane by plane."""
    residual = groups.double() - found.offset
    planes = []
    for alpha in found.alpha.split(1, dim=1):
        planes.append(residual >= 0)
        residual = torch.where(planes[-1], residual - alpha, residual + alpha)
    return torch.stack(planes).to(torch.uint8)


def alternating_levels(groups: Float32[Tensor, "N n"], options: Binary) -> Levels:
    """From the better of greedy and the best uniform grid, alternate."""
    cells = SortedGroups.of(groups)
    greedy = greedy_levels(groups, options)
    uniform = levels.uniform_levels(cells, options.bits, options.offset)
    better = levels.error_of(cells, uniform) < levels.error_of(cells, greedy)
    start = uniform.where(better, greedy)
    return levels.alternate(cells, start, options.offset, options.iterations)


def nearest_codes(groups: Float32[Tensor, "N n"], found: Levels) -> UInt8[Tensor, "bits N n"]:
    """The code of the nearest level; halfway goes up."""
    values, code = levels.sorted_levels(found)
    cell = torch.searchsorted(levels.thresholds(values), groups.double(), right=True)
    chosen = code.gather(1, cell)
    return torch.stack([chosen >> i & 1 for i in range(found.alpha.shape[1])]).to(torch.uint8)


class Solver(NamedTuple):
    """How α and o are found, and how codes follow from them."""

    levels: Callable[[Tensor, Binary], Levels]
    codes: Callable[[Tensor, Levels], Tensor]


SOLVERS = {
    "greedy": Solver(greedy_levels, greedy_codes),
    "alternating": Solver(alternating_levels, nearest_codes),
}
