"""The stacked format: each range of rows of a weight has its own format.

    part0_NAME    the stored tensor NAME of the first range of rows, in its own format
    part1_NAME    the same of the next range; …

All parts have the same granularity, so that activations are quantized once for all.
Bits per weight: the mean over the parts, weighted by their rows.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from lowbit.errors import InputError
from lowbit.formats.entry import entry
from lowbit.formats.granularity import Granularity
from lowbit.formats.table import PLAIN, PlainLayout, PlainTensor, read_layout

MAX_PARTS = 16


@dataclass(frozen=True)
class StackedLayout:
    """`parts`: (rows, layout) from the first row on. Raises InputError if there are too many parts,
    a part has no rows, or granularities differ."""

    format: ClassVar[str] = "stacked"
    parts: tuple[tuple[int, PlainLayout], ...]

    def __post_init__(self) -> None:
        if not 1 <= len(self.parts) <= MAX_PARTS:
            raise InputError(f"a stack of {len(self.parts)} parts is outside 1 … {MAX_PARTS}")
        for i, (rows, _) in enumerate(self.parts):
            if rows < 1:
                raise InputError(f"part {i} of a stack has {rows} rows, at least 1 is needed")
        found = {str(layout.granularity): None for _, layout in self.parts}
        if len(found) > 1:
            raise InputError(f"the parts of a stack differ in granularity: {', '.join(found)}")

    def __str__(self) -> str:
        each = (f"{rows} rows {layout.format} {layout.bits}-bit" for rows, layout in self.parts)
        return f"{', '.join(each)} {self.granularity}"

    @property
    def version(self) -> int:
        """The oldest format version that supports this layout."""
        return max(layout.version for _, layout in self.parts)

    @property
    def rows(self) -> int:
        return sum(rows for rows, _ in self.parts)

    @property
    def bits(self) -> int:
        """The bits of the part with the most."""
        return max(layout.bits for _, layout in self.parts)

    @property
    def granularity(self) -> Granularity:
        """The granularity of every part."""
        return self.parts[0][1].granularity

    @property
    def prefixes(self) -> tuple[int, ...]:
        """The numbers of planes that every binary part supports; parts with fewer planes use all of
        them."""
        binary = [layout for _, layout in self.parts if layout.prefixes]
        most = max((layout.bits for layout in binary), default=0)
        return tuple(
            p
            for p in range(1, most + 1)
            if all(min(p, layout.bits) in layout.prefixes for layout in binary)
        )

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the stored tensors, in order."""
        return tuple(
            part_name(i, name) for i, (_, layout) in enumerate(self.parts) for name in layout.names
        )

    def tensors(
        self, out_features: int, in_features: int
    ) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Name → (shape, dtype) of the stored tensors of a weight [out, in]. Raises InputError if
        the rows of the parts do not add up to `out_features`."""
        if self.rows != out_features:
            raise InputError(
                f"the parts of a stack hold {self.rows} rows, the weight {out_features}"
            )
        return {
            part_name(i, name): form
            for i, (rows, layout) in enumerate(self.parts)
            for name, form in layout.tensors(rows, in_features).items()
        }

    def assemble(self, tensors: Mapping[str, Tensor], in_features: int) -> "StackedTensor":
        """Build a StackedTensor from its stored tensors by name."""
        return StackedTensor(
            tuple(
                layout.assemble(
                    {name: tensors[part_name(i, name)] for name in layout.names}, in_features
                )
                for i, (_, layout) in enumerate(self.parts)
            )
        )

    def to_dict(self) -> dict[str, Any]:
        parts = [{"rows": rows} | layout.to_dict() for rows, layout in self.parts]
        return {"format": self.format, "parts": parts}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> "StackedLayout":
        parts = entry(stored, "parts", list)
        return cls(tuple((entry(part, "rows", int), read_layout(part, PLAIN)) for part in parts))


@dataclass(frozen=True)
class StackedTensor:
    """A weight [out, in] whose ranges of rows are quantized separately.

    Attributes:
        parts: The affine or binary tensor of each range, from the first row on. All have the same
            number of inputs and the same granularity.
    """

    parts: tuple[PlainTensor, ...]

    @property
    def shape(self) -> tuple[int, int]:
        return sum(part.shape[0] for part in self.parts), self.in_features

    @property
    def in_features(self) -> int:
        return self.parts[0].in_features

    @property
    def granularity(self) -> Granularity:
        return self.parts[0].granularity

    @property
    def layout(self) -> StackedLayout:
        return StackedLayout(tuple((part.shape[0], part.layout) for part in self.parts))

    def tensors(self) -> dict[str, Tensor]:
        """The stored tensors by name, in the order of the layout."""
        return {
            part_name(i, name): tensor
            for i, part in enumerate(self.parts)
            for name, tensor in part.tensors().items()
        }


def part_name(part: int, name: str) -> str:
    """The name of a stored tensor of a part. Names of buffers must not contain dots."""
    return f"part{part}_{name}"


def prefix(q: StackedTensor, planes: int) -> StackedTensor:
    """The tensor of the first `planes` planes; parts with fewer or no planes stay whole. Raises
    UsageError if a part has no α for this number of planes."""
    return StackedTensor(
        tuple(
            part if of is None else of(part, min(planes, part.bits))
            for part in q.parts
            for of in [PLAIN[part.layout.format].prefix]
        )
    )


def decode(q: StackedTensor, dtype: torch.dtype = torch.float32) -> Float[Tensor, "out in"]:
    """Decode each part in its format, and join the rows."""
    return torch.cat([PLAIN[part.layout.format].decode(part, dtype) for part in q.parts])


def decode_rows(
    q: StackedTensor,
    rows: slice | Integer[Tensor, " n"],
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "_n in"]:
    """Decode only the given output rows of the weight."""
    device = next(iter(q.tensors().values())).device
    asked = torch.arange(q.shape[0], device=device)[rows]
    weight = torch.empty(len(asked), q.in_features, dtype=dtype, device=device)
    for (here, own), part in zip(among(asked, q.layout), q.parts, strict=True):
        weight[here] = PLAIN[part.layout.format].decode_rows(part, own, dtype)
    return weight


def among(
    rows: Integer[Tensor, " n"], layout: StackedLayout
) -> Iterator[tuple[Integer[Tensor, " _m"], Integer[Tensor, " _m"]]]:
    """For each part: the indices into `rows` of the rows it has, and their numbers in the part."""
    first = 0
    for size, _ in layout.parts:
        (here,) = ((rows >= first) & (rows < first + size)).nonzero(as_tuple=True)
        yield here, rows[here] - first
        first += size
