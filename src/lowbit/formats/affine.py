"""The affine format: w ≈ s · (q − z).

    codes       uint8 [out, ceil(in·bits/8)]   codes 0 … 2^bits − 1, bit-contiguous in a row
                int8  [out, in]                at 8 bits without a stored zero point
    scale       float16 or float32 [out, groups], or [1, 1] per tensor
    zero_point  uint8, shaped like scale; absent for symmetric codes, where z = 2^(bits − 1)
                is implied (z = 0 for int8)

Bits per weight: bits + 16/g, and 8/g more with a zero point, g inputs sharing a scale.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int8, Integer, UInt8
from torch import Tensor

from lowbit.errors import UsageError
from lowbit.formats.granularity import Granularity, by_row_blocks, row_blocks
from lowbit.formats.packing import pack, packed_width, unpack
from lowbit.formats.scales import SCALE_DTYPES

MIN_BITS, MAX_BITS = 2, 8


def entry(stored: Mapping[str, Any], key: str, kind: type) -> Any:
    """stored[key]. Raises TypeError where it is no `kind`: "false", say, is not False."""
    if type(stored[key]) is not kind:
        raise TypeError(f"{key} is {stored[key]!r}, not of type {kind.__name__}")
    return stored[key]


@dataclass(frozen=True)
class AffineLayout:
    """Everything about an affine tensor but its numbers: what config.json keeps of it."""

    format: ClassVar[str] = "affine"
    prefixes: ClassVar[tuple[int, ...]] = ()  # there are no planes
    bits: int
    granularity: Granularity
    zero_point: bool
    scale_dtype: torch.dtype = torch.float16

    def __post_init__(self) -> None:
        if not MIN_BITS <= self.bits <= MAX_BITS:
            raise UsageError(f"bits {self.bits} is outside {MIN_BITS} … {MAX_BITS} (affine format)")

    @property
    def signed(self) -> bool:
        """Whether codes are plain int8."""
        return self.bits == 8 and not self.zero_point

    def __str__(self) -> str:
        return f"{self.format} {self.bits}-bit {self.granularity}"

    @property
    def names(self) -> tuple[str, ...]:
        """Of the stored tensors, in order: that does not depend on the shape."""
        return tuple(self.tensors(1, 1))

    def tensors(
        self, out_features: int, in_features: int
    ) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Name → (shape, dtype) of the stored tensors of a weight [out, in]."""
        units = self.granularity.parameter_shape(out_features, in_features)
        stored: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
            "codes": (
                (out_features, packed_width(in_features, self.bits)),
                torch.int8 if self.signed else torch.uint8,
            ),
            "scale": (units, self.scale_dtype),
        }
        if self.zero_point:
            stored["zero_point"] = (units, torch.uint8)
        return stored

    def assemble(self, tensors: Mapping[str, Tensor], in_features: int) -> "AffineTensor":
        """The stored tensors, by name, as one AffineTensor."""
        return AffineTensor(
            codes=tensors["codes"],
            scale=tensors["scale"],
            zero_point=tensors.get("zero_point"),
            bits=self.bits,
            granularity=self.granularity,
            in_features=in_features,
        )

    def to_dict(self) -> dict[str, Any]:
        return {
            "format": self.format,
            "bits": self.bits,
            "granularity": str(self.granularity),
            "zero_point": self.zero_point,
            "scale_dtype": str(self.scale_dtype).removeprefix("torch."),
        }

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> "AffineLayout":
        return cls(
            bits=entry(stored, "bits", int),
            granularity=Granularity.parse(stored["granularity"]),
            zero_point=entry(stored, "zero_point", bool),
            scale_dtype=SCALE_DTYPES[stored["scale_dtype"]],
        )


@dataclass(frozen=True)
class AffineTensor:
    """A weight [out, in] in the affine format."""

    codes: UInt8[Tensor, "out packed"] | Int8[Tensor, "out in"]
    scale: Float[Tensor, "units groups"]
    zero_point: UInt8[Tensor, "units groups"] | None
    bits: int
    granularity: Granularity
    in_features: int

    @property
    def shape(self) -> tuple[int, int]:
        return self.codes.shape[0], self.in_features

    @property
    def layout(self) -> AffineLayout:
        return AffineLayout(
            self.bits, self.granularity, self.zero_point is not None, self.scale.dtype
        )

    def tensors(self) -> dict[str, Tensor]:
        """The stored tensors by name."""
        stored = {"codes": self.codes, "scale": self.scale}
        return stored if self.zero_point is None else stored | {"zero_point": self.zero_point}


def encode(
    weight: Float[Tensor, "out in"],
    scale: Float[Tensor, "units groups"],
    zero_point: UInt8[Tensor, "units groups"] | None,
    bits: int,
    granularity: Granularity,
    lowest: int | None = None,
) -> AffineTensor:
    """The nearest codes, q = clamp(round(w / s) + z), halves to even, from the scale as stored.

    Without a zero point codes are symmetric, −(2^(bits−1) − 1) … 2^(bits−1) − 1; `lowest` lets
    them reach down to −2^(bits−1). A scale of zero is not allowed.
    """
    layout = AffineLayout(bits, granularity, zero_point is not None, scale.dtype)
    shape, dtype = layout.tensors(*weight.shape)["codes"]
    codes = torch.empty(shape, dtype=dtype, device=weight.device)
    half = 1 << (bits - 1)
    shift = None if zero_point is None else zero_point.float()[..., None] - half
    if lowest is None:
        lowest = 1 - half if zero_point is None else -half
    for rows in row_blocks(*weight.shape):
        units = slice(None) if granularity.kind == "tensor" else rows
        q = (granularity.split(weight[rows].float()) / scale[units, :, None].float()).round_()
        if shift is not None:
            q += shift[units]
        # Via int8, which PyTorch vectorizes; −half … half − 1 wraps around to 0 … 2·half − 1.
        q = q.clamp_(lowest, half - 1).to(torch.int8).flatten(1)[:, : weight.shape[1]]
        codes[rows] = q if layout.signed else pack(q.view(torch.uint8) + half, bits)
    return AffineTensor(codes, scale, zero_point, bits, granularity, weight.shape[1])


def code_range(
    q: AffineTensor,
) -> tuple[Float[Tensor, "units groups"], Float[Tensor, "units groups"]]:
    """The smallest and the largest weight that each scale can say, as `encode` clamps codes."""
    half = 1 << (q.bits - 1)
    lowest: Tensor | int = 1 - half
    highest: Tensor | int = half - 1
    if q.zero_point is not None:
        lowest = -q.zero_point.float()
        highest = lowest + (2 * half - 1)
    scale = q.scale.float()
    return scale * lowest, scale * highest


def centred_codes(q: AffineTensor) -> Float[Tensor, "out in"]:
    """q − z as float32 integers, −255 … 255."""
    codes: Tensor = q.codes if q.layout.signed else unpack(q.codes, q.bits, q.in_features)
    centred = q.granularity.split(codes.float()).sub_(_zero(q))
    return centred.flatten(1)[:, : q.in_features]


def decode(q: AffineTensor, dtype: torch.dtype = torch.float32) -> Float[Tensor, "out in"]:
    """s · (q − z), computed in float32."""

    def values(rows: slice) -> Tensor:
        part = take_rows(q, rows)
        w = q.granularity.split(centred_codes(part)) * part.scale[..., None].float()
        return w.flatten(1)[:, : q.in_features]

    return by_row_blocks(q.shape, dtype, q.codes.device, values, q.scale.requires_grad)


def decode_rows(
    q: AffineTensor, rows: slice | Integer[Tensor, " n"], dtype: torch.dtype = torch.float32
) -> Float[Tensor, "_n in"]:
    """The given output rows of the weight, which alone are decoded."""
    return decode(take_rows(q, rows), dtype)


def take_rows(q: AffineTensor, rows: slice | Integer[Tensor, " n"]) -> AffineTensor:
    """The given output rows, still packed: a view for a slice, a gather for indices."""
    units = slice(None) if q.granularity.kind == "tensor" else rows
    zero_point = None if q.zero_point is None else q.zero_point[units]
    return AffineTensor(
        q.codes[rows], q.scale[units], zero_point, q.bits, q.granularity, q.in_features
    )


def _zero(q: AffineTensor) -> Tensor | int:
    """What is subtracted from the codes as they are stored."""
    if q.zero_point is not None:
        return q.zero_point[..., None]
    return 0 if q.layout.signed else 1 << (q.bits - 1)
