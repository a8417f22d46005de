"""The uniform grid of a group: the scale and zero point of least weighted error.

    min over s, z   Σ_j d_j (w_j − s · (q_j − z))²,   q_j = clamp(round(w_j / s) + z)

Candidates are shares of the whole range, with the zero point that centres them and its neighbours;
then codes and least squares for s in turn, with an offset o = −s · z for both. Only decreases are
accepted. Two-level grids are found by their scheme, for all groups beforehand.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float64, UInt8
from torch import Tensor

from lowbit.errors import UsageError
from lowbit.formats import AffineLayout, AffineTensor, QTensor
from lowbit.formats.affine import take_rows
from lowbit.formats.packing import pack
from lowbit.schemes import Scheme

SHARES = torch.linspace(1.0, 0.4, 13, dtype=torch.float32).tolist()
NEIGHBOURS = (0, -1, 1)
ITERATIONS = 3


@dataclass(frozen=True)
class AffineCodes:
    """The range of codes: lowest … highest of q − half. The zero point is in 0 … 2^bits − 1, or any
    number if an offset replaces it. given: two-level grids of a scheme, with their nearest
    codes."""

    layout: AffineLayout
    given: AffineTensor | None

    @classmethod
    def of(cls, scheme: Scheme, weight: Tensor, importance: Tensor | None = None) -> "AffineCodes":
        """The codes of a scheme. importance: of each input, for grids that the scheme finds itself.

        Raises UsageError if the codes of the scheme are not affine, and the errors of the
        scheme."""
        if not isinstance(scheme.layout(len(weight)), AffineLayout):
            raise UsageError(f"this solver finds affine codes, and scheme {scheme.name} has others")
        q = scheme.fit(weight, importance)  # what its scales take, float16 or float32
        assert isinstance(q, AffineTensor)
        return cls(q.layout, None if q.layout.two_level is None else q)

    def nearest(self, scheme: Scheme, weight: Tensor) -> QTensor:
        """The nearest codes of the scheme that these are of."""
        return self.given or scheme.quantize(weight)

    @property
    def asymmetric(self) -> bool:
        """Whether each group has its own zero point."""
        return self.layout.zero_point or self.layout.offset

    @property
    def left_out(self) -> int:
        """The number of unused codes: symmetric codes do not use the lowest."""
        return 0 if self.asymmetric or self.given is not None else 1

    @property
    def levels(self) -> int:
        """The number of steps between the lowest and the highest code."""
        return (1 << self.layout.bits) - 1 - self.left_out

    @property
    def middle(self) -> int:
        """The zero point of symmetric codes, counted from the lowest."""
        return (1 << self.layout.bits - 1) - self.left_out

    def stored_zero(self, zero: Tensor, scale: Tensor) -> Tensor:
        """The zero point as decoding uses it: a code, or −o / s with the stored offset."""
        if not self.layout.offset:
            return zero.round().clamp(0, self.levels)
        return (zero * scale).to(self.layout.scale_dtype).to(zero.dtype) / scale

    def grids(self) -> "list[Grid] | None":
        """The given grid of each group, if there are any."""
        if self.given is None:
            return None
        scale = self.given.scale.float().double()
        zero = torch.full_like(scale, self.middle)
        if self.given.offset is not None:
            zero = -self.given.offset.float().double() / scale
        each = zip(scale.unbind(1), zero.unbind(1), strict=True)
        return [Grid(s, z, self.levels) for s, z in each]

    def rows(self, rows: slice) -> "AffineCodes":
        """The same for some rows of the weight."""
        return self if self.given is None else replace(self, given=take_rows(self.given, rows))

    def stored(self, scale: Float64[Tensor, "*n"]) -> Float64[Tensor, "*n"]:
        """The scale as decoding uses it; 1 if it is not positive."""
        dtype = self.layout.scale_dtype
        least, most = torch.finfo(dtype).smallest_normal, torch.finfo(dtype).max
        scale = torch.where(scale > 0, scale.clamp(least, most), torch.ones_like(scale))
        return scale.to(dtype).double()

    def ends(
        self, w: Float64[Tensor, "n out"]
    ) -> tuple[Float64[Tensor, " out"], Float64[Tensor, " out"]]:
        """The smallest and the largest weight of each row; without offsets 0 is a code."""
        low, high = w.amin(0), w.amax(0)
        return (low, high) if self.layout.offset else (low.clamp(max=0), high.clamp(min=0))

    def assemble(
        self,
        q: Float64[Tensor, "in out"],
        scale: Float64[Tensor, "units groups"],
        zero: Float64[Tensor, "units groups"],
    ) -> AffineTensor:
        """The quantized tensor of codes 0 … levels, counted from the lowest. Given scales and zeros
        do not change."""
        layout, codes = self.layout, q.t().to(torch.int16)
        if self.given is not None:
            return replace(self.given, codes=pack(codes.to(torch.uint8), layout.bits))
        stored: UInt8[Tensor, "out packed"]
        if layout.signed:
            stored = (codes - self.middle).to(torch.int8)
        else:
            # Symmetric codes do not use the lowest code.
            stored = pack((codes + self.left_out).to(torch.uint8), layout.bits)
        z = zero.to(torch.uint8) if layout.zero_point else None
        offset = (-zero * scale).to(layout.scale_dtype) if layout.offset else None
        scale = scale.to(layout.scale_dtype)
        return AffineTensor(stored, scale, z, layout.bits, layout.granularity, q.shape[0], offset)


@dataclass
class Grid:
    """ŵ = scale · (q − zero), one of each per row of the weight; q in 0 … levels.

    Weights and codes are transposed to [inputs, out], so that each step reads contiguous memory.
    """

    scale: Float64[Tensor, " out"]
    zero: Float64[Tensor, " out"]
    levels: int

    def codes(self, w: Float64[Tensor, "*n out"]) -> Float64[Tensor, "*n out"]:
        whole = self.zero.round()
        return (w / self.scale).add_(self.zero - whole).round_().add_(whole).clamp_(0, self.levels)

    def values(self, q: Float64[Tensor, "*n out"]) -> Float64[Tensor, "*n out"]:
        return (q - self.zero).mul_(self.scale)


def fit_grid(
    w: Float64[Tensor, "n out"], importance: Float64[Tensor, " n"], codes: AffineCodes
) -> Grid:
    """The best grid found for each row of the weight, with scales as stored."""
    low, high = codes.ends(w)
    if not codes.asymmetric:
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
        if codes.asymmetric:
            zero = codes.levels / 2 - centre / scale
            zero = zero if codes.layout.offset else zero.round_()
            for step in NEIGHBOURS[: 1 if codes.layout.offset else None]:
                try_out(scale, codes.stored_zero(zero + step, scale))
        else:
            try_out(scale, torch.full_like(scale, codes.middle))
    for _ in range(ITERATIONS):
        q, zero, middle = best.codes(w), best.zero, torch.zeros_like(best.zero)
        if codes.layout.offset:
            zero, middle = (importance @ x / importance.sum() for x in (q, w))
        centred = q - zero
        scale = (importance @ (centred * (w - middle))) / (importance @ centred.square())
        scale = codes.stored(scale.nan_to_num(0.0))
        if codes.layout.offset:
            zero = codes.stored_zero(zero - middle / scale, scale)
        try_out(scale, zero)
    return best
