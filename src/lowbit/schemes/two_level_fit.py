"""Two-level grids by weighted least squares: the best d, c (and e, m) for 256 inputs.

    min Σ_j p_j (w_j − s · q_j − o)²,   s = d · c_g,  o = e · m_g (or −z · s, z fixed) of group g

In two steps; each accepts only changes that reduce the error of the decoded weights:

groups         s and o of each group are free: shares of its range, each with the codes that follow
               and least squares for s and o given these
super-groups   c and m are the nearest to them, d and e those of the largest; then, in turn, c and m
               among their neighbours for each group, and d and e by least squares for the codes and
               integers that are chosen, as rounded to float16

Every group is one number in a tensor [rows, supers, groups], its weights a fourth dimension.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from lowbit.formats.two_level import SUPER_GROUP, TwoLevel, TwoLevelFloats

SHARES = torch.linspace(1.05, 0.55, 11, dtype=torch.float32).tolist()
ROUNDS = 3
NEIGHBOURS = (-1, 0, 1)
TINY = float(torch.finfo(torch.float32).smallest_normal)


class Grid(NamedTuple):
    """Scale and offset of each group, [rows, supers, groups]."""

    scale: Float32[Tensor, "rows supers groups"]
    offset: Float32[Tensor, "rows supers groups"]


@dataclass(frozen=True)
class Parts:
    """Some rows of a weight in groups, and the importance of each weight."""

    w: Float32[Tensor, "rows supers groups n"]
    p: Float32[Tensor, "#rows supers groups n"]
    highest: int  # code
    zero: int  # the implied zero point, if there are no offsets
    offsets: bool

    def codes(self, grid: Grid) -> Float32[Tensor, "rows supers groups n"]:
        q = (self.w - grid.offset[..., None]) / grid.scale[..., None]
        return q.round_().clamp_(0, self.highest)

    def errors(self, grid: Grid) -> Float32[Tensor, "rows supers groups"]:
        away = self.codes(grid).mul_(grid.scale[..., None]).add_(grid.offset[..., None]) - self.w
        return (away.square_() * self.p).sum(-1)

    def around(self, scale: Tensor, offset: Tensor) -> Grid:
        """The grid with these scales; a scale of 0 becomes 1. Offsets are at most 0, or follow from
        the zero point."""
        scale = torch.where(scale.abs() < TINY, torch.ones_like(scale), scale)
        return Grid(scale, offset.clamp(max=0) if self.offsets else -self.zero * scale)


def fit(
    weight: Float[Tensor, "rows columns"],
    importance: Float[Tensor, " columns"] | None,
    size: int,
    bits: int,
    form: TwoLevel,
    offsets: bool,
) -> tuple[TwoLevelFloats, TwoLevelFloats | None]:
    """Scales and offsets, or scales alone, for codes of `bits` in groups of `size`. importance: of
    each input; None: equal."""
    w = weight.float().unflatten(1, (-1, SUPER_GROUP // size, size))
    if importance is None:
        p = torch.ones_like(w[:1])
    else:
        p = importance.float().clamp(min=0).reshape(1, *w.shape[1:])
        p = p / p.mean().clamp(min=torch.finfo(torch.float32).tiny) + 1e-6
    parts = Parts(w, p, (1 << bits) - 1, 0 if offsets else 1 << bits - 1, offsets)
    grid = _of_groups(parts)
    d, c = _quantized(grid.scale, form)
    e, m = _quantized(grid.offset, form.unsigned())
    for _ in range(ROUNDS):
        c, m = _neighbours(parts, d, c, e, m, form)
        d, e = _floats(parts, d, c, e, m)
    scale = _stored(d, c, form)
    return scale, _stored(e, m, form.unsigned()) if offsets else None


def _of_groups(parts: Parts) -> Grid:
    """The best grid of each group alone."""
    w = parts.w
    low, high = w.amin(-1).clamp(max=0), w.amax(-1).clamp(min=0)
    if parts.offsets:
        widest = [(high - low) / parts.highest]
    else:  # the larger side has the lowest code, which is further from zero, or the highest
        largest = torch.where(high > -low, high, low)
        widest = [-largest / parts.zero, largest / (parts.highest - parts.zero)]
    best = parts.around(torch.full_like(low, 1.0), low)
    least = torch.full_like(low, torch.inf)

    def try_out(grid: Grid) -> None:
        nonlocal best, least
        errors = parts.errors(grid)
        better = errors < least
        best = Grid(*(torch.where(better, new, old) for new, old in zip(grid, best, strict=True)))
        least = torch.minimum(errors, least)

    for wide in widest:
        for share in SHARES:
            grid = parts.around(wide * share, low * share)
            try_out(grid)
            try_out(_least_squares(parts, grid))
    for _ in range(ROUNDS):
        try_out(_least_squares(parts, best))
    return best


def _least_squares(parts: Parts, grid: Grid) -> Grid:
    """The grid of least error for the codes of a grid."""
    w, p, q = parts.w, parts.p, parts.codes(grid)
    centred = q if parts.offsets else q - parts.zero
    qq, qw = (p * centred * centred).sum(-1), (p * centred * w).sum(-1)
    alone = (qw / qq).nan_to_num(0.0, 0.0, 0.0)
    if not parts.offsets:
        return parts.around(alone, torch.zeros_like(alone))
    one, ones_q, ones_w = p.sum(-1), (p * q).sum(-1), (p * w).sum(-1)
    scale, offset = (x.nan_to_num(0.0, 0.0, 0.0) for x in _pair(qq, ones_q, one, qw, ones_w))
    return parts.around(torch.where(offset > 0, alone, scale), offset)


def _pair(uu: Tensor, uv: Tensor, vv: Tensor, uw: Tensor, vw: Tensor) -> tuple[Tensor, Tensor]:
    """x and y of least Σ (w − x·u − y·v)², given the sums of the products."""
    determinant = uu * vv - uv.square()
    return (vv * uw - uv * vw) / determinant, (uu * vw - uv * uw) / determinant


def _quantized(floats: Tensor, form: TwoLevel) -> tuple[Tensor, Tensor]:
    """The shared float of each super-group, as stored, and the integers [rows, supers, groups]."""
    size, at = floats.abs().max(-1)
    largest = floats.gather(-1, at[..., None])[..., 0]
    # Signed integers have one more value below zero than above.
    shared = largest / (form.lowest or form.highest)
    shared = _half(torch.where(size == 0, torch.ones_like(shared), shared))
    return shared, _integers(floats / shared[..., None], form)


def _integers(quotients: Tensor, form: TwoLevel) -> Tensor:
    return quotients.round().clamp(form.lowest, form.highest)


def _half(floats: Tensor) -> Tensor:
    """Rounded to float16, but never to 0."""
    floats = torch.where(floats.abs() < 2**-24, torch.full_like(floats, 2**-24), floats)
    return floats.to(torch.float16).float()


def _grid(parts: Parts, d: Tensor, c: Tensor, e: Tensor, m: Tensor) -> Grid:
    scale = d[..., None] * c
    return Grid(scale, e[..., None] * m if parts.offsets else -parts.zero * scale)


def _neighbours(
    parts: Parts, d: Tensor, c: Tensor, e: Tensor, m: Tensor, form: TwoLevel
) -> tuple[Tensor, Tensor]:
    """The best integers of each group, at most one from the current ones. No scale is 0."""
    best, least = (c, m), torch.full_like(c, torch.inf)
    for up in NEIGHBOURS:
        for on in NEIGHBOURS if parts.offsets else (0,):
            other = (c + up).clamp(form.lowest, form.highest)
            other = torch.where(other == 0, torch.ones_like(other), other)
            moved = (m + on).clamp(0, form.unsigned().highest)
            errors = parts.errors(_grid(parts, d, other, e, moved))
            better = errors < least
            best = torch.where(better, other, best[0]), torch.where(better, moved, best[1])
            least = torch.minimum(errors, least)
    return best


def _floats(parts: Parts, d: Tensor, c: Tensor, e: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
    """The floats of super-groups of least error, if the error decreases."""
    grid = _grid(parts, d, c, e, m)
    q, w, p = parts.codes(grid), parts.w, parts.p
    u = c[..., None] * (q if parts.offsets else q - parts.zero)
    uu, uw = (p * u * u).sum((-2, -1)), (p * u * w).sum((-2, -1))
    if parts.offsets:
        v = m[..., None].expand_as(u)
        uv, vv, vw = ((p * v * x).sum((-2, -1)) for x in (u, v, w))
        scale, offset = _pair(uu, uv, vv, uw, vw)
        usable = scale.isfinite() & offset.isfinite() & (scale > 0) & (offset <= 0)
    else:
        scale, offset = uw / uu, e
        usable = scale.isfinite() & (scale != 0)
    scale, offset = _half(torch.where(usable, scale, d)), _half(torch.where(usable, offset, e))
    before = parts.errors(grid).sum(-1)
    better = parts.errors(_grid(parts, scale, c, offset, m)).sum(-1) < before
    return torch.where(better, scale, d), torch.where(better, offset, e)


def _stored(floats: Tensor, integers: Tensor, form: TwoLevel) -> TwoLevelFloats:
    return TwoLevelFloats.of(floats.to(torch.float16), integers.flatten(1).long(), form)
