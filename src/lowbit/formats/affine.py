"""The affine format: w ≈ s · (q − z), or w ≈ s · q + o.

    codes       uint8 [out, ceil(in·bits/8)]   codes 0 … 2^bits − 1, bit-contiguous in a row
                int8  [out, in]                at 8 bits if z is implied
    scale       float16 or float32 [out, groups], or [1, 1] per tensor
    zero_point  uint8, shaped like scale; absent for symmetric codes, where z = 2^(bits − 1)
                is implied (z = 0 for int8)
    offset      like scale, in place of a zero point

Scales and offsets may be stored in two levels (two_level.py).
Bits per weight, if g inputs share a scale: bits + 16/g; 8/g more with a zero point, 16/g more with
an offset. In two levels of b bits: bits + 16/256 + b/g; 16/256 + b/g more with an offset.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int8, Integer, UInt8
from torch import Tensor

from lowbit.errors import UsageError
from lowbit.formats.entry import entry
from lowbit.formats.granularity import Granularity, by_row_blocks, row_blocks
from lowbit.formats.packing import pack, packed_width, unpack
from lowbit.formats.scales import SCALE_DTYPES
from lowbit.formats.two_level import (
    SUPER_GROUP,
    GroupFloats,
    TwoLevel,
    TwoLevelFloats,
    check_granularity,
    stored_floats,
)

MIN_BITS, MAX_BITS = 2, 8


@dataclass(frozen=True)
class AffineLayout:
    """The structure of an affine tensor, as in config.json.

    signed_scale: whether plain scales may be zero or negative. Two-level scales always may.

    Raises UsageError if `bits` is out of range, or if there are both zero points and offsets. In
    two levels, also for other groups than those of k-quants, float32 scales and `signed_scale`.
    """

    format: ClassVar[str] = "affine"
    prefixes: ClassVar[tuple[int, ...]] = ()  # there are no planes
    bits: int
    granularity: Granularity
    zero_point: bool
    scale_dtype: torch.dtype = torch.float16
    offset: bool = False
    two_level: TwoLevel | None = None
    signed_scale: bool = False

    def __post_init__(self) -> None:
        if not MIN_BITS <= self.bits <= MAX_BITS:
            raise UsageError(f"bits {self.bits} is outside {MIN_BITS} … {MAX_BITS} (affine format)")
        if self.zero_point and self.offset:
            raise UsageError("codes have a zero point or an offset, not both")
        if self.two_level is not None:
            check_granularity(self.granularity)
            if self.scale_dtype != TwoLevel.dtype or self.signed_scale:
                raise UsageError(
                    f"two-level scales are float16 and need no signed_scale, not"
                    f" {self.scale_dtype} with signed_scale {self.signed_scale}"
                )

    @property
    def version(self) -> int:
        """The oldest format version that supports this layout."""
        return 2 if self._second_version() else 1

    @property
    def signed(self) -> bool:
        """Whether codes are plain int8."""
        return _signed(self.bits, self.zero_point, self.offset)

    @property
    def positive(self) -> bool:
        """Whether every scale is above zero."""
        return not self.signed_scale and self.two_level is None

    def __str__(self) -> str:
        levels = "" if self.two_level is None else f", {self.two_level}"
        offsets = ", offsets" if self.offset else ""
        return f"{self.format} {self.bits}-bit {self.granularity}{levels}{offsets}"

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the stored tensors, in order. They do not depend on the shape."""
        columns = 1 if self.two_level is None else SUPER_GROUP
        return tuple(self.tensors(1, columns))

    def tensors(
        self, out_features: int, in_features: int
    ) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Name → (shape, dtype) of the stored tensors of a weight [out, in]. Raises InputError if
        two-level scales do not fit the number of inputs."""
        units = self.granularity.parameter_shape(out_features, in_features)

        def floats(name: str) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
            if self.two_level is None:
                return {name: (units, self.scale_dtype)}
            return self.two_level.tensors(name, out_features, in_features, self.granularity)

        codes = (out_features, packed_width(in_features, self.bits))
        return {
            "codes": (codes, torch.int8 if self.signed else torch.uint8),
            **floats("scale"),
            **({"zero_point": (units, torch.uint8)} if self.zero_point else {}),
            **(floats("offset") if self.offset else {}),
        }

    def assemble(self, tensors: Mapping[str, Tensor], in_features: int) -> "AffineTensor":
        """Build an AffineTensor from its stored tensors by name."""
        groups = self.granularity.parameter_shape(1, in_features)[1]

        def floats(name: str, form: TwoLevel | None) -> GroupFloats:
            stored = tensors[name]
            if form is None:
                return stored
            return TwoLevelFloats(stored, tensors[f"sub_{name}"], groups, form)

        of_offsets = None if self.two_level is None else self.two_level.unsigned()
        return AffineTensor(
            codes=tensors["codes"],
            scale=floats("scale", self.two_level),
            zero_point=tensors.get("zero_point"),
            bits=self.bits,
            granularity=self.granularity,
            in_features=in_features,
            offset=floats("offset", of_offsets) if self.offset else None,
            signed_scale=self.signed_scale,
        )

    def to_dict(self) -> dict[str, Any]:
        """The layout as plain values. Keys of version 2 are present only if needed."""
        return {
            "format": self.format,
            "bits": self.bits,
            "granularity": str(self.granularity),
            "zero_point": self.zero_point,
            "scale_dtype": str(self.scale_dtype).removeprefix("torch."),
            **self._second_version(),
        }

    def _second_version(self) -> dict[str, Any]:
        """The keys that only version 2 of the format has."""
        levels = None if self.two_level is None else self.two_level.to_dict()
        said = {"offset": self.offset, "signed_scale": self.signed_scale, "two_level": levels}
        return {key: value for key, value in said.items() if value}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> "AffineLayout":
        levels = entry(stored, "two_level", dict) if "two_level" in stored else None
        return cls(
            bits=entry(stored, "bits", int),
            granularity=Granularity.parse(stored["granularity"]),
            zero_point=entry(stored, "zero_point", bool),
            scale_dtype=SCALE_DTYPES[stored["scale_dtype"]],
            offset="offset" in stored and entry(stored, "offset", bool),
            two_level=None if levels is None else TwoLevel.from_dict(levels),
            signed_scale="signed_scale" in stored and entry(stored, "signed_scale", bool),
        )


@dataclass(frozen=True)
class AffineTensor:
    """A weight [out, in] in the affine format: w ≈ s · (q − z), or w ≈ s · q + o.

    Scales and offsets are float tensors [units, groups], plain or in two levels; `float()` returns
    the values of both. A unit is an output row; per tensor there is one unit.

    Attributes:
        codes: Packed codes, uint8 [out, ceil(in·bits/8)]. Codes of 8 bits without zero point and
            offset are int8 [out, in].
        scale: s, float16 or float32 [units, groups].
        zero_point: z, uint8 [units, groups]. None: 2^(bits − 1), or 0 for int8 codes and with an
            offset.
        bits: Bits of a code, 2 … 8.
        granularity: Which weights share a scale.
        in_features: The number of inputs.
        offset: o, float [units, groups]; None if there is no offset.
        signed_scale: Whether plain scales may be zero or negative.
    """

    codes: UInt8[Tensor, "out packed"] | Int8[Tensor, "out in"]
    scale: GroupFloats
    zero_point: UInt8[Tensor, "units groups"] | None
    bits: int
    granularity: Granularity
    in_features: int
    offset: GroupFloats | None = None
    signed_scale: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        return self.codes.shape[0], self.in_features

    @property
    def layout(self) -> AffineLayout:
        return AffineLayout(
            self.bits,
            self.granularity,
            self.zero_point is not None,
            self.scale.dtype,
            self.offset is not None,
            self.scale.form if isinstance(self.scale, TwoLevelFloats) else None,
            self.signed_scale,
        )

    def tensors(self) -> dict[str, Tensor]:
        """The stored tensors by name, in the order of the layout."""
        return {
            "codes": self.codes,
            **stored_floats("scale", self.scale),
            **({} if self.zero_point is None else {"zero_point": self.zero_point}),
            **({} if self.offset is None else stored_floats("offset", self.offset)),
        }


def encode(
    weight: Float[Tensor, "out in"],
    scale: GroupFloats,
    zero_point: UInt8[Tensor, "units groups"] | None,
    bits: int,
    granularity: Granularity,
    lowest: int | None = None,
    offset: GroupFloats | None = None,
    signed_scale: bool = False,
) -> AffineTensor:
    """Encode a weight with the nearest codes, for given scales, zero points and offsets:

        q = clamp(round(w / s) + z), or, with an offset, clamp(round((w − o) / s))

    Halves are rounded to even. Without zero point and offset, codes are symmetric:
    −(2^(bits−1) − 1) … 2^(bits−1) − 1; `lowest` = −2^(bits−1) extends the range by one code. If s
    is 0, which `signed_scale` and two levels allow, w / s counts as 0.
    """
    rows, columns = weight.shape
    signed = _signed(bits, zero_point is not None, offset is not None)
    dtype = torch.int8 if signed else torch.uint8
    codes = torch.empty(rows, packed_width(columns, bits), dtype=dtype, device=weight.device)
    half = 1 << (bits - 1)
    step, shift, low = scale.float()[..., None], None, 1 - half if lowest is None else lowest
    step = step.masked_fill(step == 0, torch.inf)
    if zero_point is not None:
        shift = zero_point.float()[..., None] - half
    taken = None if offset is None else offset.float()[..., None]
    if lowest is None and (zero_point is not None or offset is not None):
        low = -half
    for at in row_blocks(*weight.shape):
        units = slice(None) if granularity.kind == "tensor" else at
        w = granularity.split(weight[at].float())
        steps = ((w if taken is None else w - taken[units]) / step[units]).round_()
        if shift is not None:
            steps += shift[units]
        if taken is not None:
            steps -= half
        # Via int8, which PyTorch vectorizes; −half … half − 1 wraps around to 0 … 2·half − 1.
        steps = steps.clamp_(low, half - 1).to(torch.int8).flatten(1)[:, :columns]
        codes[at] = steps if signed else pack(steps.view(torch.uint8) + half, bits)
    return AffineTensor(codes, scale, zero_point, bits, granularity, columns, offset, signed_scale)


def code_range(
    q: AffineTensor,
) -> tuple[Float[Tensor, "units groups"], Float[Tensor, "units groups"]]:
    """The smallest and the largest weight that each group can represent, as `encode` clamps."""
    half = 1 << (q.bits - 1)
    lowest: Tensor | int = 1 - half
    highest: Tensor | int = half - 1
    if q.zero_point is not None:
        lowest = -q.zero_point.float()
        highest = lowest + (2 * half - 1)
    if q.offset is not None:
        lowest, highest = 0, 2 * half - 1
    scale = q.scale.float()
    ends = scale * lowest, scale * highest
    if q.offset is not None:
        ends = ends[0] + q.offset.float(), ends[1] + q.offset.float()
    return torch.minimum(*ends), torch.maximum(*ends)


def centred_codes(q: AffineTensor) -> Float[Tensor, "out in"]:
    """The integers that are multiplied by the scale, as float32: q − z, or q with an offset."""
    codes: Tensor = q.codes if q.layout.signed else unpack(q.codes, q.bits, q.in_features)
    centred = q.granularity.split(codes.float()).sub_(_zero(q))
    return centred.flatten(1)[:, : q.in_features]


def decode(q: AffineTensor, dtype: torch.dtype = torch.float32) -> Float[Tensor, "out in"]:
    """s · (q − z) or s · q + o, computed in float32, each operation rounded once."""

    def values(rows: slice) -> Tensor:
        part = take_rows(q, rows)
        w = q.granularity.split(centred_codes(part)) * part.scale.float()[..., None]
        if part.offset is not None:
            w = w + part.offset.float()[..., None]
        return w.flatten(1)[:, : q.in_features]

    gradients = any(tensor.requires_grad for tensor in q.tensors().values())
    return by_row_blocks(q.shape, dtype, q.codes.device, values, gradients)


def decode_rows(
    q: AffineTensor, rows: slice | Integer[Tensor, " n"], dtype: torch.dtype = torch.float32
) -> Float[Tensor, "_n in"]:
    """Decode only the given output rows of the weight."""
    return decode(take_rows(q, rows), dtype)


def take_rows(q: AffineTensor, rows: slice | Integer[Tensor, " n"]) -> AffineTensor:
    """The given output rows, still packed: a view for a slice, a gather for indices."""
    units = slice(None) if q.granularity.kind == "tensor" else rows
    return replace(
        q,
        codes=q.codes[rows],
        scale=q.scale[units],
        zero_point=None if q.zero_point is None else q.zero_point[units],
        offset=None if q.offset is None else q.offset[units],
    )


def _zero(q: AffineTensor) -> Tensor | int:
    """The number that is subtracted from the stored codes."""
    if q.zero_point is not None:
        return q.zero_point[..., None]
    return 0 if q.layout.signed or q.offset is not None else 1 << (q.bits - 1)


def _signed(bits: int, zero_point: bool, offset: bool) -> bool:
    """Whether codes are plain int8."""
    return bits == 8 and not zero_point and not offset
