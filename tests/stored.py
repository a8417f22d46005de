"""Random stored weights beside the plain numbers they hold, for what computes with stored forms."""

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import torch
from hypothesis import strategies as st

from lowbit.formats import (
    CHANNEL,
    TENSOR,
    AffineTensor,
    BinaryTensor,
    QTensor,
    StackedTensor,
    TwoLevel,
    TwoLevelFloats,
    group,
)
from lowbit.formats.granularity import Granularity
from tests.oracles import packing


@dataclass(frozen=True)
class Stored:
    """`q`, and the same as arrays that the oracles take."""

    q: QTensor
    codes: np.ndarray  # uint8 [out, in]; bit i of a binary code is plane i
    scale: np.ndarray  # float16 or float32 [out, groups], binary [out, groups, planes]
    zero_point: np.ndarray  # int64 [out, groups]
    offset: np.ndarray | None  # [out, groups]

    @property
    def binary(self) -> bool:
        return isinstance(self.q, BinaryTensor)

    @property
    def width(self) -> int:
        """Inputs under one scale."""
        return self.q.granularity.width(self.q.in_features)


def tensor(array):
    return torch.from_numpy(np.ascontiguousarray(array))


def affine(codes, scale, zero_point, bits, granularity=CHANNEL, offset=None):
    """`scale` and `zero_point` (or None, for 2^(bits - 1)) or `offset` are [out, groups], or
    [1, 1]."""
    shape = (len(codes), scale.shape[1])
    packed = packing.pack(codes, bits)
    if bits == 8 and zero_point is None and offset is None:
        packed = (codes ^ 0x80).view(np.int8)
    q = AffineTensor(
        tensor(packed),
        tensor(scale),
        None if zero_point is None else tensor(zero_point.astype(np.uint8)),
        bits,
        granularity,
        codes.shape[1],
        None if offset is None else tensor(offset),
    )
    implied = 0 if offset is not None else 1 << (bits - 1)
    zero = np.full((1, 1), implied) if zero_point is None else zero_point
    return Stored(
        q,
        codes,
        np.broadcast_to(scale, shape),
        np.broadcast_to(zero, shape).astype(np.int64),
        None if offset is None else np.broadcast_to(offset, shape),
    )


def two_level(codes, bits, size, sub_bits, signed, seed=0):
    """Affine codes in groups of `size`, rows of whole super-groups, with random scales in two
    levels: signed ones, or unsigned ones and offsets."""
    rng = np.random.default_rng(seed)
    rows, columns = codes.shape
    supers, groups = columns // 256, columns // size
    d, e = rng.normal(0, 0.02, (2, rows, supers)).astype(np.float16)
    small = rng.integers(0, 1 << sub_bits, (2, rows, groups), dtype=np.uint8)
    lowest = -(1 << sub_bits - 1) if signed else 0
    form = TwoLevel(sub_bits, signed)

    def floats(shared, stored, form):
        return TwoLevelFloats(tensor(shared), tensor(packing.pack(stored, sub_bits)), groups, form)

    def values(shared, integers):
        return np.repeat(shared.astype(np.float32), 256 // size, 1) * integers.astype(np.float32)

    q = AffineTensor(
        tensor(packing.pack(codes, bits)),
        floats(d, small[0], form),
        None,
        bits,
        group(size),
        columns,
        None if signed else floats(e, small[1], form),
    )
    zero = np.full((rows, groups), 1 << bits - 1 if signed else 0, np.int64)
    scale = values(d, small[0].astype(int) + lowest)
    return Stored(q, codes, scale, zero, None if signed else values(e, small[1]))


def binary(codes, alphas, offsets, bits, granularity=CHANNEL):
    """`alphas` [out, groups, p] and `offsets` [out, groups] (or None) run over the prefixes."""
    planes = np.stack([packing.pack(codes >> i & 1, 1) for i in range(bits)])
    q = BinaryTensor(
        tensor(planes),
        tuple(tensor(alpha.transpose(1, 2, 0)) for alpha in alphas),
        None if offsets is None else tuple(tensor(offset.T) for offset in offsets),
        granularity,
        codes.shape[1],
    )
    zero = np.zeros(alphas[-1].shape[:2], np.int64)
    return Stored(q, codes, alphas[-1], zero, None if offsets is None else offsets[-1])


@dataclass(frozen=True)
class Form:
    """What a stored weight is like, but for its shape and numbers."""

    format: str
    bits: int
    granularity: Granularity = CHANNEL
    shift: bool = False  # affine: zero points; binary: offsets
    nested: bool = False
    dtype: type = np.float16
    offset: bool = False  # affine

    def __str__(self) -> str:
        options = ["shift"] * self.shift + ["nested"] * self.nested
        options += ["offset"] * self.offset
        return "-".join(
            [self.format, str(self.bits), str(self.granularity), *options, self.dtype.__name__]
        )

    def random(self, rows, columns, seed=0):
        """Any codes, and scales as weights have them."""
        rng = np.random.default_rng(seed)
        codes = rng.integers(0, 1 << self.bits, (rows, columns), dtype=np.uint8)
        shape = self.granularity.parameter_shape(rows, columns)
        if self.format == "affine":
            scale = rng.uniform(0.01, 0.04, shape).astype(self.dtype)
            zero = rng.integers(0, 1 << self.bits, shape) if self.shift else None
            offset = rng.normal(0, 0.1, shape).astype(self.dtype) if self.offset else None
            return affine(codes, scale, zero, self.bits, self.granularity, offset)
        prefixes = range(1 if self.nested else self.bits, self.bits + 1)
        alphas = [rng.normal(0, 0.1, (*shape, p)).astype(self.dtype) for p in prefixes]
        offsets = [rng.normal(0, 0.1, shape).astype(self.dtype) for _ in prefixes]
        return binary(codes, alphas, offsets if self.shift else None, self.bits, self.granularity)


@dataclass(frozen=True)
class Stack:
    """As Form, of several, which share the rows alike; the last one has what is left."""

    forms: tuple[Form, ...]
    format = "stacked"

    def __str__(self) -> str:
        return "+".join(map(str, self.forms))

    def parts(self, rows, columns, seed=0):
        """One Stored for each form."""
        each = rows // len(self.forms)
        sizes = [each] * (len(self.forms) - 1)
        sizes.append(rows - sum(sizes))
        own = enumerate(zip(self.forms, sizes, strict=True))
        return [form.random(size, columns, seed + i) for i, (form, size) in own]

    def random(self, rows, columns, seed=0):
        return SimpleNamespace(q=stack(self.parts(rows, columns, seed)))


def stack(parts):
    return StackedTensor(tuple(part.q for part in parts))


def values(stored):
    """The weight as NumPy has it, in float32: s · (q − z), or the offset, then plane 0, 1, …"""
    columns = np.arange(stored.q.in_features) // stored.width
    scale, zero = stored.scale.astype(np.float32), stored.zero_point.astype(np.float32)
    if not stored.binary:
        product = scale[:, columns] * (stored.codes.astype(np.float32) - zero[:, columns])
        return product if stored.offset is None else product + stored.offset[:, columns]
    total = np.zeros(stored.codes.shape, np.float32)
    if stored.offset is not None:
        total = stored.offset.astype(np.float32)[:, columns]
    for i in range(scale.shape[2]):
        sign = (stored.codes >> i & 1).astype(np.float32) * 2 - 1
        total = total + sign * scale[:, columns, i]
    return total


# Binary codes in fewer and fewer planes; other formats and scales beside them.
STACKS = [
    Stack(tuple(Form("binary", bits, CHANNEL) for bits in (4, 3, 2, 1))),
    Stack(tuple(Form("binary", bits, group(32), True, nested=True) for bits in (3, 2, 1))),
    Stack(
        (
            Form("affine", 8, group(64), True),
            Form("binary", 2, group(64), dtype=np.float32),
            Form("affine", 4, group(64)),
        )
    ),
]


# Every number of bits and planes, every granularity, either dtype, with and without a shift. The
# groups are a whole block, two, a padded one, and more inputs than the smallest weights have.
FORMS = [
    Form("affine", 8),
    Form("affine", 8, CHANNEL, shift=True),
    Form("affine", 8, TENSOR, dtype=np.float32),
    Form("affine", 8, group(96), shift=True),
    Form("affine", 7, group(64), shift=True),
    Form("affine", 6, CHANNEL, dtype=np.float32),
    Form("affine", 5, group(96), shift=True),
    Form("affine", 4, group(32)),
    Form("affine", 4, group(128), shift=True, dtype=np.float32),
    Form("affine", 3, TENSOR, shift=True),
    Form("affine", 3, group(50)),
    Form("affine", 2, group(32), shift=True),
    Form("affine", 8, TENSOR, offset=True),
    Form("affine", 4, group(32), offset=True),
    Form("affine", 5, CHANNEL, dtype=np.float32, offset=True),
    Form("binary", 1, CHANNEL),
    Form("binary", 2, group(64), shift=True),
    Form("binary", 3, group(48), shift=True, nested=True),
    Form("binary", 4, CHANNEL, nested=True, dtype=np.float32),
]


# Groups that are not padded too much.
GROUPS = [size for size in range(2, 140) if -(-size // 32) * 32 <= 2 * size]


@st.composite
def forms(draw):
    """Any form that can be packed."""
    format = draw(st.sampled_from(["affine", "binary"]))
    granularity = draw(st.just(CHANNEL) | st.sampled_from(GROUPS).map(group))
    dtype = draw(st.sampled_from([np.float16, np.float32]))
    shift = draw(st.booleans())
    if format == "binary":
        return Form(format, draw(st.integers(1, 4)), granularity, shift, draw(st.booleans()), dtype)
    granularity = draw(st.sampled_from([granularity, granularity, TENSOR]))
    offset = not shift and draw(st.booleans())
    return Form(format, draw(st.integers(2, 8)), granularity, shift, dtype=dtype, offset=offset)
