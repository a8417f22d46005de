"""Quantized tensors <-> numbers of blocks: the same weights, exactly, or a refusal.

Each type has one layout that says the same, number by number (LAYOUTS). Other layouts have a type
that holds them too, which follows from the layout alone, so that an export is refused before any
work: a symmetric grid of b bits goes into every type w = d · q of at least b bits, a scale being
repeated for each block of 32 that shares it; w = s · (q − z) reaches −(2^b − 1) … 2^b − 1, which
takes a bit more; w = s · q + o goes into every type w = d · q + m of at least b bits.
"""

from dataclasses import replace

import torch
from torch import Tensor

from lowbit.errors import InputError
from lowbit.formats import AffineLayout, AffineTensor, QTensor, TwoLevel, TwoLevelFloats, group
from lowbit.formats.affine import centred_codes
from lowbit.formats.packing import pack, unpack
from lowbit.interop.gguf.blocks import TYPES, Blocks, BlockType

SMALL = group(32)
LAYOUTS = {
    "Q8_0": AffineLayout(8, SMALL, False),
    "Q4_0": AffineLayout(4, SMALL, False, signed_scale=True),
    "Q5_0": AffineLayout(5, SMALL, False, signed_scale=True),
    "Q4_1": AffineLayout(4, SMALL, False, offset=True, signed_scale=True),
    "Q5_1": AffineLayout(5, SMALL, False, offset=True, signed_scale=True),
    "Q2_K": AffineLayout(2, group(16), False, offset=True, two_level=TwoLevel(4, False)),
    "Q3_K": AffineLayout(3, group(16), False, two_level=TwoLevel(6, True)),
    "Q4_K": AffineLayout(4, SMALL, False, offset=True, two_level=TwoLevel(6, False)),
    "Q5_K": AffineLayout(5, SMALL, False, offset=True, two_level=TwoLevel(6, False)),
    "Q6_K": AffineLayout(6, group(16), False, two_level=TwoLevel(8, True)),
}
# What holds w = d · q, and w = d · q + m, the smallest first.
PLAIN, WITH_OFFSET = ("Q4_0", "Q5_0", "Q8_0"), ("Q4_1", "Q5_1")
SIZE = 32  # weights in a block of these
# What fills a type, as a rule of a recipe says it.
SCHEMES = {
    **{
        f"Q{bits}_0": f'scheme: absmax, bits: {bits}, granularity: "group:{SIZE}"'
        for bits in (4, 5, 8)
    },
    **{
        f"Q{bits}_1": f'scheme: zero-point, bits: {bits}, zero: float, granularity: "group:{SIZE}"'
        for bits in (4, 5)
    },
    **{f"Q{bits}_K": f"scheme: k-quant, bits: {bits}" for bits in (2, 3, 4, 5, 6)},
}


def type_for(layout: object, columns: int, wanted: str | None = None) -> str:
    """The smallest type, or `wanted`, that holds every tensor of that layout with rows of so many
    columns. Raises InputError where none does."""
    told: str | None = f"{layout} does not have evenly spaced codes"
    if isinstance(layout, AffineLayout):
        for name in TYPES if wanted is None else [wanted]:
            if _same(LAYOUTS[name], layout) and columns % TYPES[name].weights == 0:
                return name
        told = _why_none(layout, columns)
        fitting = WITH_OFFSET if layout.offset else PLAIN
        for name in fitting if wanted is None else {wanted}.intersection(fitting):
            if told is None and _reaches(TYPES[name], layout):
                return name
        told = told or f"{layout} is not what {wanted or 'any type of GGUF'} holds"
    fills = SCHEMES[wanted or "Q8_0"]
    raise InputError(f"{told}: quantize it by the rule {{match: …, {fills}}}")


def _same(of_type: AffineLayout, layout: AffineLayout) -> bool:
    """Whether they are the same but for the signs of plain scales, of which types hold either."""
    if of_type.two_level is None and layout.two_level is None:
        of_type = replace(of_type, signed_scale=layout.signed_scale)
    return of_type == layout


def _why_none(layout: AffineLayout, columns: int) -> str | None:
    """Why no type holds a layout, or None."""
    if layout.two_level is not None:
        return f"{layout} is not what a type of GGUF holds"
    if columns % SIZE:
        return f"its rows have {columns} inputs, not whole blocks of {SIZE}"
    if layout.granularity.width(columns) % SIZE:
        return f"{layout} shares scales in groups that are not a multiple of {SIZE}"
    if layout.scale_dtype != torch.float16:
        return "its scales are float32, those of GGUF float16"
    return None


def _reaches(kind: BlockType, layout: AffineLayout) -> bool:
    """Whether the codes of `kind` reach all of the layout's."""
    if layout.offset:
        return layout.bits <= kind.bits
    half = 1 << (layout.bits - 1)
    lowest, highest = (1 - 2 * half, 2 * half - 1) if layout.zero_point else (-half, half - 1)
    there = 1 << (kind.bits - 1)
    return -there <= lowest and highest < there


def to_blocks(q: QTensor, name: str) -> Blocks:
    """The numbers of `q` as blocks of the type that `type_for` named for its layout."""
    assert isinstance(q, AffineTensor)
    kind = TYPES[name]
    (d, sc), (m, mn) = _halves(q, q.scale), _halves(q, q.offset)
    if m is not None and mn is not None:
        m = -m  # dmin, which is subtracted
    if q.offset is not None:
        codes = unpack(q.codes, q.bits, q.in_features)
    else:
        codes = (centred_codes(q) + float(kind.zero or 0)).to(
            torch.int8 if kind.signed else torch.uint8
        )
    assert d is not None
    return Blocks(codes, d, m, sc, mn)


def _halves(
    q: AffineTensor, floats: Tensor | TwoLevelFloats | None
) -> tuple[Tensor | None, Tensor | None]:
    """The float16 numbers of blocks and the integers of their groups, if there are some."""
    if floats is None:
        return None, None
    if isinstance(floats, TwoLevelFloats):
        return floats.floats, floats.integers.to(torch.int8)
    blocks = q.in_features // SIZE
    times = q.granularity.width(q.in_features) // SIZE
    wide = floats.expand(q.shape[0], -1).repeat_interleave(times, 1)
    return wide[:, :blocks].contiguous(), None


def from_blocks(numbers: Blocks, name: str) -> AffineTensor:
    """The same weights as a quantized tensor, of the type's own layout."""
    layout, columns = LAYOUTS[name], numbers.codes.shape[1]
    codes = numbers.codes if layout.signed else pack(numbers.codes, layout.bits)
    d, m = numbers.d, numbers.m
    if not layout.signed_scale and layout.two_level is None:
        # Nothing but zeros, whatever the codes.
        codes = codes.unflatten(1, (-1, SIZE)).masked_fill((d == 0)[..., None], 0).flatten(1)
        d = d.masked_fill(d == 0, 1)
    tensors = {"codes": codes, "scale": d}
    if layout.two_level is not None:
        assert numbers.sc is not None
        tensors |= TwoLevelFloats.of(d, numbers.sc, layout.two_level).tensors("scale")
    if layout.offset:
        assert m is not None
        tensors["offset"] = m if numbers.mn is None else -m
        if layout.two_level is not None:
            assert numbers.mn is not None
            small = TwoLevelFloats.of(-m, numbers.mn, layout.two_level.unsigned())
            tensors |= small.tensors("offset")
    return layout.assemble(tensors, columns)
