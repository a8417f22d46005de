"""The binary format: w ≈ Σᵢ αᵢ bᵢ + o, bᵢ ∈ {−1, +1}, i = 0 … bits − 1.

    planes     uint8 [bits, out, ceil(in/8)]      bit 1 = +1, least significant bit first
    alpha_p    float16 or float32 [groups, p, out]  for the model that uses the first p planes
    offset_p   like alpha_p, [groups, out]; present or absent for all p together

A plain tensor has only p = bits. A nested tensor has every p = 1 … bits, so that a model can
compute with any number of its first planes (several precisions from one file).
Bits per weight of a plain tensor: bits + 16·bits/g, and 16/g more with an offset.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Integer, UInt8
from torch import Tensor

from lowbit.errors import UsageError
from lowbit.formats.entry import entry
from lowbit.formats.granularity import Granularity, by_row_blocks
from lowbit.formats.packing import packed_width, unpack
from lowbit.formats.scales import SCALE_DTYPES

MAX_PLANES = 4


@dataclass(frozen=True)
class BinaryLayout:
    """The structure of a binary tensor, as in config.json."""

    format: ClassVar[str] = "binary"
    version: ClassVar[int] = 1  # the oldest format version that supports this layout
    bits: int
    granularity: Granularity
    offset: bool
    nested: bool = False
    scale_dtype: torch.dtype = torch.float16

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= MAX_PLANES:
            raise UsageError(f"bits {self.bits} is outside 1 … {MAX_PLANES} (binary format)")
        if self.granularity.kind == "tensor":
            raise UsageError("the binary format has scales per channel or group, not per tensor")

    def __str__(self) -> str:
        return f"{self.format} {self.bits}-bit {self.granularity}"

    @property
    def prefixes(self) -> range:
        """The numbers of planes that have their own α and o."""
        return range(1 if self.nested else self.bits, self.bits + 1)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the stored tensors, in order. They do not depend on the shape."""
        return tuple(self.tensors(1, 1))

    def tensors(
        self, out_features: int, in_features: int
    ) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Name → (shape, dtype) of the stored tensors of a weight [out, in]."""
        groups = self.granularity.parameter_shape(out_features, in_features)[1]
        stored: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
            "planes": ((self.bits, out_features, packed_width(in_features, 1)), torch.uint8)
        }
        for p in self.prefixes:
            stored[f"alpha_{p}"] = ((groups, p, out_features), self.scale_dtype)
            if self.offset:
                stored[f"offset_{p}"] = ((groups, out_features), self.scale_dtype)
        return stored

    def assemble(self, tensors: Mapping[str, Tensor], in_features: int) -> "BinaryTensor":
        """Build a BinaryTensor from its stored tensors by name."""
        return BinaryTensor(
            planes=tensors["planes"],
            alphas=tuple(tensors[f"alpha_{p}"] for p in self.prefixes),
            offsets=tuple(tensors[f"offset_{p}"] for p in self.prefixes) if self.offset else None,
            granularity=self.granularity,
            in_features=in_features,
        )

    def to_dict(self) -> dict[str, Any]:
        return {
            "format": self.format,
            "bits": self.bits,
            "granularity": str(self.granularity),
            "offset": self.offset,
            "nested": self.nested,
            "scale_dtype": str(self.scale_dtype).removeprefix("torch."),
        }

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> "BinaryLayout":
        return cls(
            bits=entry(stored, "bits", int),
            granularity=Granularity.parse(stored["granularity"]),
            offset=entry(stored, "offset", bool),
            nested=entry(stored, "nested", bool),
            scale_dtype=SCALE_DTYPES[stored["scale_dtype"]],
        )


@dataclass(frozen=True)
class BinaryTensor:
    """A weight [out, in] in binary codes: w ≈ Σ α_p · b_p + o, with b_p in −1, +1.

    Attributes:
        planes: Signs, one bit each, uint8 [bits, out, ceil(in/8)]; bit 1 is +1.
        alphas: α for each stored prefix of the planes, float16 or float32 [groups, planes of the
            prefix, out].
        offsets: o for each stored prefix, float [groups, out]; None if there is no offset.
        granularity: Which weights share α and o.
        in_features: The number of inputs.
    """

    planes: UInt8[Tensor, "bits out packed"]
    alphas: tuple[Float[Tensor, "groups _p out"], ...]
    offsets: tuple[Float[Tensor, "groups out"], ...] | None
    granularity: Granularity
    in_features: int

    @property
    def bits(self) -> int:
        return self.planes.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        return self.planes.shape[1], self.in_features

    @property
    def alpha(self) -> Float[Tensor, "groups bits out"]:
        """The α for all planes."""
        return self.alphas[-1]

    @property
    def offset(self) -> Float[Tensor, "groups out"] | None:
        """The offset for all planes."""
        return None if self.offsets is None else self.offsets[-1]

    @property
    def layout(self) -> BinaryLayout:
        return BinaryLayout(
            self.bits,
            self.granularity,
            offset=self.offsets is not None,
            nested=len(self.alphas) > 1,
            scale_dtype=self.alpha.dtype,
        )

    def tensors(self) -> dict[str, Tensor]:
        """The stored tensors by name, in the order of the layout."""
        stored = {"planes": self.planes}
        for i, p in enumerate(self.layout.prefixes):
            stored[f"alpha_{p}"] = self.alphas[i]
            if self.offsets is not None:
                stored[f"offset_{p}"] = self.offsets[i]
        return stored


def prefix(q: BinaryTensor, planes: int) -> BinaryTensor:
    """The tensor of the first `planes` planes. Raises UsageError if q has no α for them."""
    prefixes = q.layout.prefixes
    if planes not in prefixes:
        raise UsageError(
            f"a prefix of {planes} planes is not available; this tensor supports {list(prefixes)}"
        )
    count = prefixes.index(planes) + 1
    return BinaryTensor(
        planes=q.planes[:planes],
        alphas=q.alphas[count - 1 : count],
        offsets=None if q.offsets is None else q.offsets[count - 1 : count],
        granularity=q.granularity,
        in_features=q.in_features,
    )


def signs(q: BinaryTensor) -> Float[Tensor, "bits out in"]:
    """The planes as float32 −1 and +1."""
    return unpack(q.planes, 1, q.in_features).float() * 2 - 1


def decode(q: BinaryTensor, dtype: torch.dtype = torch.float32) -> Float[Tensor, "out in"]:
    """Σᵢ αᵢ bᵢ + o, computed in float32: the offset first, then plane 0, 1, …"""

    def values(rows: slice) -> Tensor:
        part = take_rows(q, rows)
        groups = part.alpha.shape[0]
        total = part.alpha.new_zeros((part.shape[0], groups, 1), dtype=torch.float32)
        if part.offset is not None:
            total = part.offset.float().t()[..., None]
        for plane, alpha in zip(signs(part), part.alpha.float().unbind(1), strict=True):
            total = total + q.granularity.split(plane) * alpha.t()[..., None]
        return total.flatten(1)[:, : q.in_features]

    return by_row_blocks(q.shape, dtype, q.planes.device, values, q.alpha.requires_grad)


def decode_rows(
    q: BinaryTensor, rows: slice | Integer[Tensor, " n"], dtype: torch.dtype = torch.float32
) -> Float[Tensor, "_n in"]:
    """Decode only the given output rows of the weight."""
    return decode(take_rows(q, rows), dtype)


def take_rows(q: BinaryTensor, rows: slice | Integer[Tensor, " n"]) -> BinaryTensor:
    """The given output rows, still packed: a view for a slice, a gather for indices."""
    return BinaryTensor(
        planes=q.planes[:, rows],
        alphas=tuple(alpha[..., rows] for alpha in q.alphas),
        offsets=None if q.offsets is None else tuple(o[..., rows] for o in q.offsets),
        granularity=q.granularity,
        in_features=q.in_features,
    )
