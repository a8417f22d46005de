"""The uniform grid of a group: which scale and zero point fit weights of unequal importance best.

    min over s, z   Σ_j d_j (w_j − s · (q_j − z))²,   q_j = clamp(round(w_j / s) + z)

Candidates are shares of the whole range, with the zero point that centres them and its neighbours;
then codes and least squares for s in turn. Only decreases are accepted.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float64, UInt8
from torch import Tensor

from lowbit.errors import UsageError
from lowbit.formats import AffineTensor, Granularity
from lowbit.formats.affine import AffineLayout
from lowbit.formats.packing import pack
from lowbit.schemes import Scheme

SHARES = torch.linspace(1.0, 0.4, 13, dtype=torch.float32).tolist()
NEIGHBOURS = (0, -1, 1)
ITERATIONS = 3


@dataclass(frozen=True)
class AffineCodes:
    """Which codes there are: lowest … highest of q − half, the zero point among 0 … 2^bits − 1."""

    bits: int
    zero_point: bool
    granularity: Granularity
    scale_dtype: torch.dtype

    @classmethod
    def of(cls, scheme: Scheme, weight: Tensor) -> "AffineCodes":
        """Raises UsageError for a scheme whose codes are not affine, and as the scheme does."""
        if not isinstance(scheme.layout(len(weight)), AffineLayout):
            raise UsageError(f"this solver finds affine codes, and scheme {scheme.name} has others")
        layout = scheme.quantize(weight).layout  # what its scales take, float16 or float32
        assert isinstance(layout, AffineLayout)
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
        q: Float64[Tensor, "in out"],
        scale: Float64[Tensor, "units groups"],
        zero: Float64[Tensor, "units groups"],
    ) -> AffineTensor:
        """The stored form of codes counted from the lowest, 0 … levels."""
        codes = q.t().to(torch.int16)
        layout = AffineLayout(self.bits, self.granularity, self.zero_point, self.scale_dtype)
        stored: UInt8[Tensor, "out packed"]
        if layout.signed:
            stored = (codes - self.middle).to(torch.int8)
        else:
            # Symmetric codes leave out the lowest that the bits could say.
            stored = pack((codes + (0 if self.zero_point else 1)).to(torch.uint8), self.bits)
        z = zero.to(torch.uint8) if self.zero_point else None
        scale = scale.to(self.scale_dtype)
        return AffineTensor(stored, scale, z, self.bits, self.granularity, q.shape[0])


@dataclass
class Grid:
    """ŵ = scale · (q − zero), one of each per row of the weight; q in 0 … levels.

    Weights and codes are transposed, [inputs, out]: what is worked on at once lies together.
    """

    scale: Float64[Tensor, " out"]
    zero: Float64[Tensor, " out"]
    levels: int

    def codes(self, w: Float64[Tensor, "*n out"]) -> Float64[Tensor, "*n out"]:
        return (w / self.scale).round_().add_(self.zero).clamp_(0, self.levels)

    def values(self, q: Float64[Tensor, "*n out"]) -> Float64[Tensor, "*n out"]:
        return (q - self.zero).mul_(self.scale)


def fit_grid(
    w: Float64[Tensor, "n out"], importance: Float64[Tensor, " n"], codes: AffineCodes
) -> Grid:
    """The best grid found for each row of the weight, with scales as stored."""
    low, high = w.amin(0).clamp(max=0), w.amax(0).clamp(min=0)
    if not codes.zero_point:
        high = torch.maximum(-low, high)
        low = -high
    widest, centre = (high - low) / codes.levels, (high + low) / 2
    best = Grid(codes.stored(widest), torch.zeros_like(low), codes.levels)
    least = torch.full_like(low, torch.inf)

    def try_out(scale: Tensor, zero: Tensor) -> None:
        nonlocal best, least
        grid = Grid(scale, zero, codes.levels)
        error = importance @ grid.values(grid.codes(w)).sub_(w).square_()
        better = error < least
        scale, zero = torch.where(better, scale, best.scale), torch.where(better, zero, best.zero)
        best, least = Grid(scale, zero, codes.levels), torch.minimum(error, least)

    for share in SHARES:
        scale = codes.stored(share * widest)
        if codes.zero_point:
            zero = (codes.levels / 2 - centre / scale).round_()
            for step in NEIGHBOURS:
                try_out(scale, (zero + step).clamp_(0, codes.levels))
        else:
            try_out(scale, torch.full_like(scale, codes.middle))
    for _ in range(ITERATIONS):
        centred = best.codes(w) - best.zero
        scale = (importance @ (centred * w)) / (importance @ centred.square())
        try_out(codes.stored(scale.nan_to_num(0.0)), best.zero)
    return best
