"""The uniform grid of a group: which scale and zero point fit weights of unequal importance best.

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
from lowbit.formats import AffineTensor, Granularity
from lowbit.formats.affine import AffineLayout, take_rows
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
    offset: bool = False  # in place of a zero point, which is any number then
    given: AffineTensor | None = None  # two-level grids, and the nearest codes

    @classmethod
    def of(cls, scheme: Scheme, weight: Tensor, importance: Tensor | None = None) -> "AffineCodes":
        """Those of a scheme. importance: of each input, for grids that the scheme finds itself.

        Raises UsageError for a scheme whose codes are not affine, and as the scheme does."""
        if not isinstance(scheme.layout(len(weight)), AffineLayout):
            raise UsageError(f"this solver finds affine codes, and scheme {scheme.name} has others")
        q = scheme.fit(weight, importance)  # what its scales take, float16 or float32
        assert isinstance(q, AffineTensor)
        layout = q.layout
        return cls(
            layout.bits,
            layout.zero_point,
            layout.granularity,
            layout.scale_dtype,
            layout.offset,
            None if layout.two_level is None else q,
        )

    @property
    def asymmetric(self) -> bool:
        """Whether groups have zeros of their own."""
        return self.zero_point or self.offset

    @property
    def left_out(self) -> int:
        """Codes that the bits could say: plain symmetric ones do without the lowest."""
        return 0 if self.asymmetric or self.given is not None else 1

    @property
    def levels(self) -> int:
        """The number of steps between the lowest and the highest code."""
        return (1 << self.bits) - 1 - self.left_out

    @property
    def middle(self) -> int:
        """The zero point of symmetric codes, counted from the lowest."""
        return (1 << self.bits - 1) - self.left_out

    def stored_zero(self, zero: Tensor, scale: Tensor) -> Tensor:
        """The zero point as it is read back: a code, or −o / s of an offset as stored."""
        if not self.offset:
            return zero.round().clamp(0, self.levels)
        return (zero * scale).to(self.scale_dtype).to(zero.dtype) / scale

    def grids(self) -> "list[Grid] | None":
        """One for each group, if they are given."""
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
        """The scale as it is read back; 1 where there is none."""
        least = torch.finfo(self.scale_dtype).smallest_normal
        most = torch.finfo(self.scale_dtype).max
        scale = torch.where(scale > 0, scale.clamp(least, most), torch.ones_like(scale))
        return scale.to(self.scale_dtype).double()

    def ends(
        self, w: Float64[Tensor, "n out"]
    ) -> tuple[Float64[Tensor, " out"], Float64[Tensor, " out"]]:
        """The smallest and the largest weight of each row; without offsets 0 is a code."""
        low, high = w.amin(0), w.amax(0)
        return (low, high) if self.offset else (low.clamp(max=0), high.clamp(min=0))

    def assemble(
        self,
        q: Float64[Tensor, "in out"],
        scale: Float64[Tensor, "units groups"],
        zero: Float64[Tensor, "units groups"],
    ) -> AffineTensor:
        """The stored form of codes counted from the lowest, 0 … levels; scales and zeros that are
        given stay."""
        codes = q.t().to(torch.int16)
        layout = AffineLayout(
            self.bits, self.granularity, self.zero_point, self.scale_dtype, self.offset
        )
        stored: UInt8[Tensor, "out packed"]
        if self.given is not None:
            return replace(self.given, codes=pack(codes.to(torch.uint8), self.bits))
        if layout.signed:
            stored = (codes - self.middle).to(torch.int8)
        else:
            # Symmetric codes leave out the lowest that the bits could say.
            stored = pack((codes + self.left_out).to(torch.uint8), self.bits)
        z = zero.to(torch.uint8) if self.zero_point else None
        offset = (-zero * scale).to(self.scale_dtype) if self.offset else None
        scale = scale.to(self.scale_dtype)
        return AffineTensor(stored, scale, z, self.bits, self.granularity, q.shape[0], offset)


@dataclass
class Grid:
    """ŵ = scale · (q − zero), one of each per row of the weight; q in 0 … levels.

    Weights and codes are transposed, [inputs, out]: what is worked on at once lies together.
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
            zero = zero if codes.offset else zero.round_()
            for step in NEIGHBOURS[: 1 if codes.offset else None]:
                try_out(scale, codes.stored_zero(zero + step, scale))
        else:
            try_out(scale, torch.full_like(scale, codes.middle))
    for _ in range(ITERATIONS):
        q, zero, middle = best.codes(w), best.zero, torch.zeros_like(best.zero)
        if codes.offset:
            zero, middle = (importance @ x / importance.sum() for x in (q, w))
        centred = q - zero
        scale = (importance @ (centred * (w - middle))) / (importance @ centred.square())
        scale = codes.stored(scale.nan_to_num(0.0))
        try_out(scale, codes.stored_zero(zero - middle / scale, scale) if codes.offset else zero)
    return best
