"""The stacked format: ranges of the rows of a weight, one above the other, each in a format of its
own.

    part0_NAME    the stored tensor NAME of the first rows, as their own format has it
    part1_NAME    of those that follow; …

All parts have the same granularity, so that what multiplies them is quantized once.
Bits per weight: the mean of the parts', each counted by its rows.
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
    """`parts`: (rows, layout) from the first row on. Raises InputError for what is no stack."""

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
        """The first format version that can say it."""
        return max(layout.version for _, layout in self.parts)

    @property
    def rows(self) -> int:
        return sum(rows for rows, _ in self.parts)

    @property
    def bits(self) -> int:
        """Of the part that has most."""
        return max(layout.bits for _, layout in self.parts)

    @property
    def granularity(self) -> Granularity:
        """Of every part."""
        return self.parts[0][1].granularity

    @property
    def prefixes(self) -> tuple[int, ...]:
        """The numbers of planes that all binary parts have parameters for; those with fewer planes
        use all."""
        binary = [layout for _, layout in self.parts if layout.prefixes]
        most = max((layout.bits for layout in binary), default=0)
        return tuple(
            p
            for p in range(1, most + 1)
            if all(min(p, layout.bits) in layout.prefixes for layout in binary)
        )

    @property
    def names(self) -> tuple[str, ...]:
        """Of the stored tensors, in order."""
        return tuple(
            part_name(i, name) for i, (_, layout) in enumerate(self.parts) for name in layout.names
        )

    def tensors(
        self, out_features: int, in_features: int
    ) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Name → (shape, dtype) of the stored tensors of a weight [out, in]. Raises InputError
        where the rows of the parts are not those of the weight."""
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
        """The stored tensors, by name, as one StackedTensor."""
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
        parts: The quantized ranges, from the first row on.
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
    """What a stored tensor of a part is called; names of buffers may not contain dots."""
    return f"part{part}_{name}"


def prefix(q: StackedTensor, planes: int) -> StackedTensor:
    """The model of the first `planes` planes; parts with fewer, or none, stay whole. Raises
    UsageError where a part does not hold it."""
    return StackedTensor(
        tuple(
            part if of is None else of(part, min(planes, part.bits))
            for part in q.parts
            for of in [PLAIN[part.layout.format].prefix]
        )
    )


def decode(q: StackedTensor, dtype: torch.dtype = torch.float32) -> Float[Tensor, "out in"]:
    """Each part as its format has it."""
    return torch.cat([PLAIN[part.layout.format].decode(part, dtype) for part in q.parts])


def decode_rows(
    q: StackedTensor,
    rows: slice | Integer[Tensor, " n"],
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "_n in"]:
    """The given output rows of the weight, which alone are decoded."""
    device = next(iter(q.tensors().values())).device
    asked = torch.arange(q.shape[0], device=device)[rows]
    weight = torch.empty(len(asked), q.in_features, dtype=dtype, device=device)
    for (here, own), part in zip(among(asked, q.layout), q.parts, strict=True):
        weight[here] = PLAIN[part.layout.format].decode_rows(part, own, dtype)
    return weight


def among(
    rows: Integer[Tensor, " n"], layout: StackedLayout
) -> Iterator[tuple[Integer[Tensor, " _m"], Integer[Tensor, " _m"]]]:
    """For each part: which of `rows` it has, and what their numbers are in it."""
    first = 0
    for size, _ in layout.parts:
        (here,) = ((rows >= first) & (rows < first + size)).nonzero(as_tuple=True)
        yield here, rows[here] - first
        first += size
