"""Blocks of GGUF <-> their numbers, bit for bit both ways.

A row of weights is a sequence of blocks of 32 or 256. A block holds codes, a float16 step d and
either nothing more, a float16 offset m, or one small integer per group of 16 or 32 that multiplies
d (and, in some types, another that multiplies a second float16, dmin):

    Q8_0 Q4_0 Q5_0    w = d · (q − z)            z = 0, 8, 16
    Q4_1 Q5_1         w = d · q + m
    Q3_K Q6_K         w = d · sc · (q − z)       z = 4, 32
    Q2_K Q4_K Q5_K    w = d · sc · q − dmin · mn

Layouts: ggml's `ggml-common.h` and `dequantize_row_*` (github.com/ggml-org/ggml).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float16, Float32, Int8, UInt8
from torch import Tensor


@dataclass(frozen=True)
class Run:
    """How bytes hold codes of `bits` bits: of each `length` bytes, first the lowest bits of all of
    them, then the next ones."""

    bits: int
    length: int

    def spread(self, stored: UInt8[Tensor, "n bytes"]) -> UInt8[Tensor, "n codes"]:
        """The codes, one a byte."""
        lanes = stored.unflatten(1, (-1, 1, self.length)) >> self._shifts
        return (lanes & ((1 << self.bits) - 1)).flatten(1)

    def gather(self, codes: UInt8[Tensor, "n codes"]) -> UInt8[Tensor, "n bytes"]:
        """The inverse of `spread`."""
        lanes = codes.unflatten(1, (-1, 8 // self.bits, self.length)) << self._shifts
        return lanes.sum(2, dtype=torch.uint8).flatten(1)

    @property
    def _shifts(self) -> UInt8[Tensor, "lanes 1"]:
        return torch.arange(0, 8, self.bits, dtype=torch.uint8)[:, None]


# The small integers of one block, as bytes: of d first, then of dmin.
Small = tuple[Int8[Tensor, "n groups"], Int8[Tensor, "n groups"] | None]


def _nibbles(stored: Tensor) -> Small:
    return (stored & 15).view(torch.int8), (stored >> 4).view(torch.int8)


def _pack_nibbles(sc: Tensor, mn: Tensor | None) -> Tensor:
    assert mn is not None
    return sc.view(torch.uint8) | mn.view(torch.uint8) << 4


def _pairs(stored: Tensor) -> Small:
    """Eight pairs of 6 bits in 12 bytes: four of each with their bytes' low 6 bits; of the other
    four the low 4 bits share a byte, and the high 2 bits are the high ones of the first eight."""
    first, second, shared = stored.unflatten(1, (3, 4)).unbind(1)
    sc = torch.cat([first & 63, shared & 15 | first >> 2 & 48], 1)
    mn = torch.cat([second & 63, shared >> 4 | second >> 2 & 48], 1)
    return sc.view(torch.int8), mn.view(torch.int8)


def _pack_pairs(sc: Tensor, mn: Tensor | None) -> Tensor:
    assert mn is not None
    (s, s_high), (m, m_high) = (
        x.view(torch.uint8).unflatten(1, (2, 4)).unbind(1) for x in (sc, mn)
    )
    high = [s | s_high >> 4 << 6, m | m_high >> 4 << 6]
    return torch.cat([*high, s_high & 15 | (m_high & 15) << 4], 1)


LOW, HIGH = Run(4, 8), Run(2, 4)


def _singles(stored: Tensor) -> Small:
    """Sixteen of 6 bits, −32 … 31, in 12 bytes: their low 4 bits in eight, their high 2 in four."""
    sc = LOW.spread(stored[:, :8]) | HIGH.spread(stored[:, 8:]) << 4
    return sc.view(torch.int8) - 32, None


def _pack_singles(sc: Tensor, mn: Tensor | None) -> Tensor:
    raised = (sc + 32).view(torch.uint8)
    return torch.cat([LOW.gather(raised & 15), HIGH.gather(raised >> 4)], 1)


def _bytes(stored: Tensor) -> Small:
    return stored.view(torch.int8), None


def _pack_bytes(sc: Tensor, mn: Tensor | None) -> Tensor:
    return sc.view(torch.uint8)


@dataclass(frozen=True)
class BlockType:
    """One type: its number in files, the fields of a block with their bytes, in order, and how they
    are read. `zero` is what is subtracted from codes."""

    number: int
    weights: int
    fields: dict[str, int]
    low: Run
    high: Run | None = None
    zero: int | None = None
    group: int | None = None
    small: tuple[Callable[[Tensor], Small], Callable[[Tensor, Tensor | None], Tensor]] | None = None

    @property
    def bits(self) -> int:
        """Of a code."""
        return self.low.bits + (self.high.bits if self.high else 0)

    @property
    def bytes(self) -> int:
        """Of a block."""
        return sum(self.fields.values())

    @property
    def signed(self) -> bool:
        """Whether codes are int8."""
        return self.bits == 8


PAIRS, SINGLES = (_pairs, _pack_pairs), (_singles, _pack_singles)
TYPES = {
    "Q4_0": BlockType(2, 32, {"d": 2, "low": 16}, Run(4, 16), zero=8),
    "Q4_1": BlockType(3, 32, {"d": 2, "m": 2, "low": 16}, Run(4, 16)),
    "Q5_0": BlockType(6, 32, {"d": 2, "high": 4, "low": 16}, Run(4, 16), Run(1, 1), zero=16),
    "Q5_1": BlockType(7, 32, {"d": 2, "m": 2, "high": 4, "low": 16}, Run(4, 16), Run(1, 1)),
    "Q8_0": BlockType(8, 32, {"d": 2, "low": 32}, Run(8, 32), zero=0),
    "Q2_K": BlockType(
        10, 256, {"small": 16, "low": 64, "d": 2, "m": 2}, Run(2, 32), group=16,
        small=(_nibbles, _pack_nibbles),
    ),
    "Q3_K": BlockType(
        11, 256, {"high": 32, "low": 64, "small": 12, "d": 2}, Run(2, 32), Run(1, 32), zero=4,
        group=16, small=SINGLES,
    ),
    "Q4_K": BlockType(
        12, 256, {"d": 2, "m": 2, "small": 12, "low": 128}, Run(4, 32), group=32, small=PAIRS
    ),
    "Q5_K": BlockType(
        13, 256, {"d": 2, "m": 2, "small": 12, "high": 32, "low": 128}, Run(4, 32), Run(1, 32),
        group=32, small=PAIRS,
    ),
    "Q6_K": BlockType(
        14, 256, {"low": 128, "high": 64, "small": 16, "d": 2}, Run(4, 64), Run(2, 32), zero=32,
        group=16, small=(_bytes, _pack_bytes),
    ),
}  # fmt: skip
# Types that hold plain numbers.
FLOATS = {"F32": (0, torch.float32), "F16": (1, torch.float16), "BF16": (30, torch.bfloat16)}


@dataclass(frozen=True)
class Blocks:
    """The numbers of a matrix [rows, columns] of one type. `m` is its offset, or dmin; `sc` and
    `mn` are the small integers that multiply d and dmin, one per group."""

    codes: UInt8[Tensor, "rows columns"] | Int8[Tensor, "rows columns"]
    d: Float16[Tensor, "rows blocks"]
    m: Float16[Tensor, "rows blocks"] | None = None
    sc: Int8[Tensor, "rows groups"] | None = None
    mn: Int8[Tensor, "rows groups"] | None = None


def unpack(kind: BlockType, stored: UInt8[Tensor, "rows bytes"]) -> Blocks:
    """The numbers in whole blocks."""
    rows = stored.shape[0]
    blocks = stored.reshape(-1, kind.bytes)
    parts = dict(zip(kind.fields, blocks.split(list(kind.fields.values()), 1), strict=True))
    codes = kind.low.spread(parts["low"])
    if kind.high:
        codes = codes | kind.high.spread(parts["high"]) << kind.low.bits
    sc, mn = kind.small[0](parts["small"].contiguous()) if kind.small else (None, None)
    return Blocks(
        (codes.view(torch.int8) if kind.signed else codes).reshape(rows, -1),
        _half(parts["d"], rows),
        _half(parts["m"], rows) if "m" in parts else None,
        None if sc is None else sc.reshape(rows, -1),
        None if mn is None else mn.reshape(rows, -1),
    )


def pack(kind: BlockType, numbers: Blocks) -> UInt8[Tensor, "rows bytes"]:
    """The inverse of `unpack`."""
    rows = numbers.codes.shape[0]
    codes = numbers.codes.view(torch.uint8).reshape(-1, kind.weights)
    parts = {"low": kind.low.gather(codes & ((1 << kind.low.bits) - 1))}
    if kind.high:
        parts["high"] = kind.high.gather(codes >> kind.low.bits)
    if kind.small:
        assert numbers.sc is not None
        mn = None if numbers.mn is None else numbers.mn.reshape(len(codes), -1)
        parts["small"] = kind.small[1](numbers.sc.reshape(len(codes), -1), mn)
    for name, half in (("d", numbers.d), ("m", numbers.m)):
        if half is not None:
            parts[name] = half.reshape(-1, 1).view(torch.uint8)
    return torch.cat([parts[name] for name in kind.fields], 1).reshape(rows, -1)


def decode(kind: BlockType, numbers: Blocks) -> Float32[Tensor, "rows columns"]:
    """The weights, in the order of float32 operations that ggml has."""
    width = kind.group or kind.weights
    q = numbers.codes.float().unflatten(1, (-1, width)) - (kind.zero or 0)
    step = _per_group(numbers.d, numbers.sc)
    w = q * step[..., None]
    if numbers.m is not None:
        low = _per_group(numbers.m, numbers.mn)[..., None]
        w = w + low if numbers.mn is None else w - low
    return w.flatten(1)


def _per_group(half: Tensor, small: Tensor | None) -> Float32[Tensor, "rows groups"]:
    wide = half.float()
    if small is None:
        return wide
    return wide.repeat_interleave(small.shape[1] // half.shape[1], 1) * small.float()


def _half(stored: Tensor, rows: int) -> Float16[Tensor, "rows blocks"]:
    return stored.contiguous().view(torch.float16).reshape(rows, -1)
