"""Floats of groups in two levels: d · c, d shared by 256 inputs, c an integer of a few bits.

    NAME       float16 [out, in / 256]                 d, of a super-group
    sub_NAME   uint8   [out, ceil(groups·bits / 8)]    c of each group, packed like codes

A signed c of b bits is stored as c + 2^(b − 1). d · c is exact in float32: 11 bits times at most 8.
The form is that of llama.cpp's K-quants.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Float32, Int64, Integer, UInt8
from torch import Tensor

from lowbit.errors import InputError, UsageError
from lowbit.formats.entry import entry
from lowbit.formats.granularity import Granularity
from lowbit.formats.packing import pack, packed_width, unpack

SUPER_GROUP = 256  # inputs
MIN_BITS, MAX_BITS = 2, 8


@dataclass(frozen=True)
class TwoLevel:
    """How many bits the small integers have, and their range: −2^(bits−1) … 2^(bits−1) − 1 if they
    are signed, else 0 … 2^bits − 1. Scales and offsets have the same bits; offsets are never
    signed."""

    dtype: ClassVar[torch.dtype] = torch.float16
    bits: int
    signed: bool

    def __post_init__(self) -> None:
        if not MIN_BITS <= self.bits <= MAX_BITS:
            raise UsageError(f"two-level scales of {self.bits} bits are outside 2 … 8")

    def __str__(self) -> str:
        return f"two-level {self.bits}-bit scales"

    @property
    def lowest(self) -> int:
        """The smallest integer."""
        return -(1 << self.bits - 1) if self.signed else 0

    @property
    def highest(self) -> int:
        """The largest integer."""
        return self.lowest + (1 << self.bits) - 1

    def unsigned(self) -> "TwoLevel":
        """That of the offsets."""
        return replace(self, signed=False)

    def tensors(
        self, name: str, rows: int, columns: int, granularity: Granularity
    ) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Name → (shape, dtype) of what is stored for a weight [rows, columns]. Raises InputError
        unless rows are whole super-groups."""
        if refusal := misfit(columns):
            raise InputError(refusal)
        groups = granularity.parameter_shape(rows, columns)[1]
        return {
            name: ((rows, columns // SUPER_GROUP), self.dtype),
            f"sub_{name}": ((rows, packed_width(groups, self.bits)), torch.uint8),
        }

    def to_dict(self) -> dict[str, Any]:
        return {"bits": self.bits, "signed": self.signed}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> "TwoLevel":
        return cls(entry(stored, "bits", int), entry(stored, "signed", bool))


def misfit(columns: int) -> str | None:
    """Why rows of so many inputs cannot have two-level scales, or None."""
    if columns % SUPER_GROUP == 0:
        return None
    return f"two-level scales need rows of a multiple of {SUPER_GROUP} inputs, not of {columns}"


def check_granularity(granularity: Granularity) -> None:
    """Raises UsageError unless a super-group holds whole groups."""
    size = granularity.group_size
    if size is None or SUPER_GROUP % size:
        raise UsageError(
            f"two-level scales need groups whose size divides {SUPER_GROUP}, not {granularity}"
        )


@dataclass(frozen=True)
class TwoLevelFloats:
    """A float for each group, [out, groups]. `float`, `dtype` and rows by index are as those of the
    plain tensor that it stands for."""

    floats: Float[Tensor, "out supers"]
    codes: UInt8[Tensor, "out packed"]
    groups: int
    form: TwoLevel

    @classmethod
    def of(
        cls,
        floats: Float[Tensor, "out supers"],
        integers: Integer[Tensor, "out groups"],
        form: TwoLevel,
    ) -> "TwoLevelFloats":
        """From small integers as they are. Raises InputError for one outside its bits."""
        low, high = (int(x) for x in torch.aminmax(integers)) if integers.numel() else (0, 0)
        for found in (low, high):
            if not form.lowest <= found <= form.highest:
                raise InputError(
                    f"a sub-scale of {found} is outside {form.lowest} … {form.highest}"
                )
        codes = (integers.to(torch.int16) - form.lowest).to(torch.uint8)
        return cls(floats, pack(codes, form.bits), integers.shape[1], form)

    @property
    def dtype(self) -> torch.dtype:
        """Of the floats as they are stored; while they are trained they may be float32."""
        return self.form.dtype

    @property
    def integers(self) -> Int64[Tensor, "out groups"]:
        """The small integers as they are."""
        return unpack(self.codes, self.form.bits, self.groups).long() + self.form.lowest

    def float(self) -> Float32[Tensor, "out groups"]:
        """d · c."""
        d = self.floats.float()[..., None]
        c = unpack(self.codes, self.form.bits, self.groups).float() + self.form.lowest
        return (d * c.unflatten(1, (d.shape[1], -1))).flatten(1)

    def __getitem__(self, rows: slice | Integer[Tensor, " n"]) -> "TwoLevelFloats":
        return replace(self, floats=self.floats[rows], codes=self.codes[rows])

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The stored tensors by name."""
        return {name: self.floats, f"sub_{name}": self.codes}


GroupFloats = Tensor | TwoLevelFloats


def stored_floats(name: str, floats: GroupFloats) -> Mapping[str, Tensor]:
    """The stored tensors of floats of groups, plain or in two levels, by name."""
    return floats.tensors(name) if isinstance(floats, TwoLevelFloats) else {name: floats}
