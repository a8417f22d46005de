"""The uniform grid of a group: which scale and zero point fit weights of unequal importance best.

    min over s, z   Σ_j d_j (w_j − s · (q_j − z))²,   q_j = clamp(round(w_j / s) + z)

Candidates are shares of the whole range, with the zero point that centres them and its neighbours;
then codes and least squares for s in turn. Only decreases are accepted.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float64, Int64, UInt8
from torch import Tensor

from lowbit.errors import UsageError
from lowbit.formats import AffineTensor, Granularity
from lowbit.formats.affine import AffineLayout
from lowbit.packing import pack
from lowbit.schemes import Absmax, Scheme, ZeroPoint
from lowbit.schemes.weight_range import weight_range

SHARES = torch.linspace(1.0, 0.35, 24).tolist()
NEIGHBOURS = (0, -1, 1)
ITERATIONS = 4


@dataclass(frozen=True)
class Codes:
    """Which codes there are: lowest … highest of q − half, the zero point among 0 … 2^bits − 1."""

    bits: int
    zero_point: bool
    granularity: Granularity
    scale_dtype: torch.dtype

    @classmethod
    def of(cls, scheme: Scheme, weight: Tensor) -> "Codes":
        """Raises UsageError for a scheme whose codes are not affine, and as the scheme does."""
        if not isinstance(scheme, Absmax | ZeroPoint):
            raise UsageError(f"this solver finds affine codes, and scheme {scheme.name} has others")
        weight_range(weight, scheme.granularity)
        layout = scheme.quantize(weight).layout
        return cls(layout.bits, layout.zero_point, layout.granularity, layout.scale_dtype)

    @property
    def levels(self) -> int:
        """The number of steps between the lowest and the highest code."""
        return (1 << self.bits) - (1 if self.zero_point else 2)

    @property
    def middle(self) -> int:
        """The zero point of symmetric codes, counted from the lowest."""
        return (1 << self.bits - 1) - 1

    def stored(self, scale: Float64[Tensor, "*n"]) -> Float64[Tensor, "*n"]:
        """The scale as it is read back; 1 where there is none."""
        least = torch.finfo(self.scale_dtype).smallest_normal
        most = torch.finfo(self.scale_dtype).max
        scale = torch.where(scale > 0, scale.clamp(least, most), torch.ones_like(scale))
        return scale.to(self.scale_dtype).double()

    def assemble(
        self,
        q: Int64[Tensor, "out in"],
        scale: Float64[Tensor, "units groups"],
        zero: Float64[Tensor, "units groups"],
    ) -> AffineTensor:
        """The stored form of codes counted from the lowest, 0 … levels."""
        layout = AffineLayout(self.bits, self.granularity, self.zero_point, self.scale_dtype)
        stored: UInt8[Tensor, "out packed"]
        if layout.signed:
            stored = (q - self.middle).to(torch.int8)
        else:
            # Symmetric codes leave out the lowest that the bits could say.
            stored = pack((q + (0 if self.zero_point else 1)).to(torch.uint8), self.bits)
        z = zero.to(torch.uint8) if self.zero_point else None
        scale = scale.to(self.scale_dtype)
        return AffineTensor(stored, scale, z, self.bits, self.granularity, q.shape[1])


@dataclass
class Grid:
    """ŵ = scale · (q − zero), one of each per row; q in 0 … levels."""

    scale: Float64[Tensor, " out"]
    zero: Float64[Tensor, " out"]
    levels: int

    def codes(self, w: Float64[Tensor, "out n"]) -> Float64[Tensor, "out n"]:
        q = (w / self.scale[:, None]).round_().add_(self.zero[:, None])
        return q.clamp_(0, self.levels)

    def values(self, q: Float64[Tensor, "out n"]) -> Float64[Tensor, "out n"]:
        return (q - self.zero[:, None]) * self.scale[:, None]


def fit_grid(
    w: Float64[Tensor, "out n"], importance: Float64[Tensor, " n"], codes: Codes
) -> Grid:
    """The best grid found for each row, with scales as stored."""
    low, high = w.amin(1).clamp(max=0), w.amax(1).clamp(min=0)
    if not codes.zero_point:
        high = torch.maximum(-low, high)
        low = -high
    widest, centre = (high - low) / codes.levels, (high + low) / 2
    best: Grid | None = None
    least = torch.full_like(low, torch.inf)

    def try_out(scale: Tensor, zero: Tensor) -> None:
        nonlocal best, least
        grid = Grid(codes.stored(scale), zero, codes.levels)
        error = (grid.values(grid.codes(w)) - w).square_() @ importance
        better = error < least
        if best is not None:
            grid.scale = torch.where(better, grid.scale, best.scale)
            grid.zero = torch.where(better, grid.zero, best.zero)
        best, least = grid, torch.minimum(error, least)

    for share in SHARES:
        scale = codes.stored(share * widest)
        for step in NEIGHBOURS if codes.zero_point else (0,):
            if codes.zero_point:
                zero = (codes.levels / 2 - centre / scale).round_() + step
                zero.clamp_(0, codes.levels)
            else:
                zero = torch.full_like(scale, codes.middle)
            try_out(scale, zero)
    assert best is not None
    for _ in range(ITERATIONS):
        centred = best.codes(w) - best.zero[:, None]
        scale = (centred * w) @ importance / (centred.square() @ importance)
        try_out(scale.nan_to_num(0.0), best.zero)
    return best
