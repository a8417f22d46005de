"""Binary-code quantization (BCQ): w ≈ Σᵢ αᵢ bᵢ + o with bᵢ ∈ {−1, +1}, 1 … 4 planes.

*greedy* (Guo et al. 2017, "Network sketching"): rᵢ = w − o − Σ_{j<i} αⱼ bⱼ, bᵢ = sign(rᵢ),
αᵢ = mean |rᵢ|, o = mean(w). *alternating* (Xu et al. 2018, "Alternating multi-bit quantization
for recurrent neural networks"): from the best of greedy and uniform grids, nearest codes and least
squares in turn. Codes are computed from α and o as stored; sign(0) = +1.

`nested=True` also stores the best α and o of every prefix of the planes.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float32, Shaped, UInt8
from torch import Tensor

from lowbit.errors import UsageError, check_choice
from lowbit.formats import BinaryLayout, BinaryTensor, Granularity, group
from lowbit.formats.granularity import row_blocks
from lowbit.formats.packing import pack, packed_width
from lowbit.formats.scales import named_dtype, stored_dtype
from lowbit.schemes import levels
from lowbit.schemes.levels import Levels, SortedGroups
from lowbit.schemes.scheme import Scheme
from lowbit.schemes.weight_range import check_finite, check_size, check_weight

# Weights solved in one call: enough that arithmetic dominates the overhead of calls, few enough
# that temporaries stay in the cache.
WEIGHTS_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class Binary(Scheme):
    """Binary codes of 1 … 4 planes: w ≈ Σ α_p · b_p + o, with b_p in −1, +1.

    Attributes:
        bits: The number of planes, 1 … 4.
        granularity: Which weights share α and o: a channel or a group.
        offset: Whether there is an offset o.
        solver: "greedy" (Guo et al. 2017) or "alternating" (Xu et al. 2018).
        iterations: Rounds of "alternating", 0 … 1000.
        nested: Whether to store α and o for every prefix of the planes, so that the model can
            compute with the first planes only (`lowbit.use_planes`).
        scale_dtype: The dtype of α and o, "float16" or "float32".

    Raises:
        UsageError: if an option is out of range.
    """

    name: ClassVar[str] = "binary"
    bits: int = 3
    granularity: Granularity = group(64)
    offset: bool = True
    solver: str = "alternating"
    iterations: int = 15
    nested: bool = False
    scale_dtype: str = "float16"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("solver", self.solver, SOLVERS)
        if not 0 <= self.iterations <= 1000:
            raise UsageError(f"iterations {self.iterations} is outside 0 … 1000")

    def layout(self, rows: int) -> BinaryLayout:
        """The binary layout."""
        dtype = named_dtype(self.scale_dtype)
        return BinaryLayout(self.bits, self.granularity, self.offset, self.nested, dtype)

    def quantize(self, weight: Tensor) -> BinaryTensor:
        """Quantize a weight in the binary format.

        Args:
            weight: Floats [out, in] of any dtype.

        Raises:
            InputError: if the weight is not finite or too large.
            UsageError: if the weight is not a matrix, or a row is shorter than a group.
        """
        weight = self._checked(weight)
        check_size(weight.abs().max().item() if weight.numel() else 0.0)
        parts = whole_and_last(weight, self.granularity)
        found = [self._levels(part.flatten(0, 1)) for part in parts]
        magnitudes = torch.cat([self._magnitudes(weight, f) for f in found])
        dtype = stored_dtype(magnitudes, self.scale_dtype)
        coded = [self._coded(part, f, dtype) for part, f in zip(parts, found, strict=True)]
        codes, part_alphas, part_offsets = zip(*coded, strict=True)
        offsets = tuple(torch.cat(o) for o in zip(*part_offsets, strict=True))
        return BinaryTensor(
            planes=packed_planes(torch.cat(codes, 1), self.bits),
            alphas=tuple(torch.cat(alpha) for alpha in zip(*part_alphas, strict=True)),
            offsets=offsets if self.offset else None,
            granularity=self.granularity,
            in_features=weight.shape[1],
        )

    def recode(self, weight: Tensor, q: BinaryTensor) -> BinaryTensor:
        """Quantize a weight [out, in] with the α and o of q. Raises the errors of `quantize`."""
        codes = self._recoded(weight, q, lambda code, _: code)
        return replace(q, planes=packed_planes(codes, self.bits))

    def recoded(self, weight: Tensor, q: BinaryTensor) -> Float32[Tensor, "out in"]:
        """`recode` and decode, bit for bit, in half the time: codes are not packed in between."""
        return self._recoded(
            weight, q, lambda code, found: levels.decoded(found).gather(1, code.long())
        )

    def _recoded(
        self, weight: Tensor, q: BinaryTensor, of: Callable[[Tensor, Levels], Tensor]
    ) -> Shaped[Tensor, "out in"]:
        """Apply `of` to the codes and levels of each group, and join the results."""
        weight = self._checked(weight)
        solver, result, first = SOLVERS[self.solver], [], 0
        for part in whole_and_last(weight, self.granularity):
            groups, found = pieces(part.flatten(0, 1)), stored_levels(q, first, part.shape[1])
            each = zip(groups, found.split(len(groups[0])), strict=True)
            made = torch.cat([of(solver.codes(g, own), own) for g, own in each])
            result.append(made.reshape(part.shape).flatten(1))
            first += part.shape[1]
        return torch.cat(result, 1)

    def _checked(self, weight: Tensor) -> Float32[Tensor, "out in"]:
        """The weight in float32. Raises InputError if it is not finite, UsageError if it is not a
        matrix or a row is shorter than a group."""
        check_weight(weight, self.granularity)
        weight = weight.detach().float()
        check_finite(weight.sum(dtype=torch.float64), weight)
        return weight

    def _levels(self, groups: Float32[Tensor, "N n"]) -> Levels:
        found = [SOLVERS[self.solver].levels(piece, self) for piece in pieces(groups)]
        return Levels(torch.cat([f.alpha for f in found], 1), torch.cat([f.offset for f in found]))

    def _magnitudes(self, weight: Float32[Tensor, "out in"], found: Levels) -> Tensor:
        """The magnitudes that decide the stored dtype: the largest α of each group, and bounds of
        the other parameters."""
        large = [found.offset.abs()]
        if self.nested and weight.numel():
            # By Cramer's rule no α of a prefix exceeds twice the largest weight.
            large.append(2 * weight.abs().amax()[None])
        return torch.cat([found.alpha.amax(0), torch.cat(large).clamp(min=1.0)])

    def _coded(
        self, part: Float32[Tensor, "out groups n"], found: Levels, dtype: torch.dtype
    ) -> tuple[UInt8[Tensor, "out columns"], list[Tensor], list[Tensor]]:
        """The codes of a part, and by prefix its α [groups, p, out] and o [groups, out]."""
        groups, found = pieces(part.flatten(0, 1)), found.to(dtype)
        each = zip(groups, found.split(len(groups[0])), strict=True)
        codes = [SOLVERS[self.solver].codes(g, f) for g, f in each]
        own = [found]
        if self.nested:
            held = [levels.coded_cells(g, c, self.bits) for g, c in zip(groups, codes, strict=True)]
            count, total = (torch.cat(cells, 1) for cells in zip(*held, strict=True))
            shorter = range(1, self.bits)
            own = [levels.refit(count, total, p, self.offset) for p in shorter] + own
        alphas = [f.alpha.unflatten(1, part.shape[:2]).permute(2, 0, 1).to(dtype) for f in own]
        offsets = [f.offset.unflatten(0, part.shape[:2]).t().to(dtype) for f in own]
        return torch.cat(codes).reshape(part.shape).flatten(1), alphas, offsets


def whole_and_last(
    weight: Float32[Tensor, "out in"], granularity: Granularity
) -> list[Float32[Tensor, "out groups n"]]:
    """The whole groups, and a shorter last group apart, because it has its own parameters."""
    columns = weight.shape[1]
    width = granularity.width(columns)
    whole = columns - columns % width
    parts = [weight[:, :whole].unflatten(1, (-1, width))]
    return parts if whole == columns else [*parts, weight[:, None, whole:]]


def pieces(groups: Float32[Tensor, "N n"]) -> tuple[Float32[Tensor, "_N n"], ...]:
    """Consecutive groups, in pieces of about WEIGHTS_AT_ONCE weights."""
    return groups.contiguous().split(max(1, WEIGHTS_AT_ONCE // groups.shape[1]))


def stored_levels(q: BinaryTensor, first: int, groups: int) -> Levels:
    """The levels of groups `first` … `first + groups − 1` of every row, row by row."""
    taken = slice(first, first + groups)
    alpha = q.alpha[taken].permute(1, 2, 0).flatten(1).double()
    offset = torch.zeros_like(alpha[0])
    if q.offset is not None:
        offset = q.offset[taken].t().flatten().double()
    return Levels(alpha, offset)


def packed_planes(code: UInt8[Tensor, "out in"], bits: int) -> UInt8[Tensor, "bits out packed"]:
    """Bit i of all codes as plane i."""
    shape = bits, len(code), packed_width(code.shape[1], 1)
    planes = torch.empty(shape, dtype=torch.uint8, device=code.device)
    for rows in row_blocks(*code.shape):
        planes[:, rows] = pack(torch.stack([code[rows] >> i & 1 for i in range(bits)]), 1)
    return planes


def greedy_levels(groups: Float32[Tensor, "N n"], options: Binary) -> Levels:
    """αᵢ = mean |residual|, plane by plane."""
    residual = groups.double()
    offset = residual.mean(1) if options.offset else torch.zeros_like(residual[:, 0])
    # Only |r| matters here: |r − α·sign(r)| = ||r| − α|.
    residual.sub_(offset[:, None]).abs_()
    alpha = []
    for _ in range(options.bits):
        alpha.append(residual.mean(1))
        residual.sub_(alpha[-1][:, None]).abs_()
    return Levels(torch.stack(alpha), offset)


def greedy_codes(groups: Float32[Tensor, "N n"], found: Levels) -> UInt8[Tensor, "N n"]:
    """bᵢ = sign(residual), plane by plane."""
    residual = groups.double() - found.offset[:, None]
    code = torch.zeros_like(groups, dtype=torch.uint8)
    for i, alpha in enumerate(found.alpha[..., None]):
        positive = residual >= 0
        residual = torch.where(positive, residual - alpha, residual + alpha)
        code += positive.to(torch.uint8) << i
    return code


def alternating_levels(groups: Float32[Tensor, "N n"], options: Binary) -> Levels:
    """From the best of greedy and the best uniform grid, alternate.

    With an offset, also start from both without an offset: if a few weights are far larger than
    the rest, the middle of the range is a bad start.
    """
    cells = SortedGroups.of(groups)
    starts = [
        start
        for offset in dict.fromkeys((options.offset, False))
        for start in (
            greedy_levels(groups, replace(options, offset=offset)).descending(),
            levels.uniform_levels(cells, options.bits, offset),
        )
    ]
    best, least = starts[0], levels.error_of(cells, starts[0])
    for other in starts[1:]:
        error = levels.error_of(cells, other)
        best, least = other.where(error < least, best), torch.minimum(error, least)
    return levels.alternate(cells, best, options.offset, options.iterations)


def nearest_codes(groups: Float32[Tensor, "N n"], found: Levels) -> UInt8[Tensor, "N n"]:
    """The code of the nearest level; halfway goes up."""
    values, code = levels.sorted_levels(found)
    exact = levels.thresholds(values)
    # A float32 number reaches a cut where it reaches the next float32 number from there.
    cuts = exact.float()
    cuts = torch.where(cuts < exact, cuts.nextafter(torch.full_like(cuts, torch.inf)), cuts)
    steps = code.diff(dim=0).float()
    nearest = code[0, :, None].float().repeat(1, groups.shape[1])
    reached = torch.empty_like(groups)
    for cut, step in zip(cuts[..., None], steps[..., None], strict=True):
        # Comparisons into float32 are vectorized, those into bool are not.
        torch.ge(groups, cut, out=reached)
        nearest.addcmul_(reached, step)
    return nearest.to(torch.int8).view(torch.uint8)


class CodeSearch(NamedTuple):
    """How α and o are found, and how codes follow from them."""

    levels: Callable[[Tensor, Binary], Levels]
    codes: Callable[[Tensor, Levels], Tensor]


SOLVERS = {
    "greedy": CodeSearch(greedy_levels, greedy_codes),
    "alternating": CodeSearch(alternating_levels, nearest_codes),
}
