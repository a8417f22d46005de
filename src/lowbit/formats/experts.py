"""The experts format: the weights of all experts of a mixture, each of the same form.

    NAME    the stored tensor NAME of one expert, as its own format has it, [experts, …]

Every expert is a weight [out, in] by itself: its scales and codes are those that it has alone.
Where the scales of some leave float16, those of all are float32, which changes no value.
Bits per weight: those of one expert.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from lowbit.errors import InputError
from lowbit.formats.entry import entry
from lowbit.formats.granularity import Granularity
from lowbit.formats.table import PLAIN, PlainLayout, PlainTensor, read_layout


@dataclass(frozen=True)
class ExpertsLayout:
    """How many experts there are, and how `each` is stored. Raises InputError for none."""

    format: ClassVar[str] = "experts"
    version: ClassVar[int] = 2  # the first format version that can say it
    experts: int
    each: PlainLayout

    def __post_init__(self) -> None:
        if self.experts < 1:
            raise InputError(f"a mixture of {self.experts} experts: at least 1 is needed")

    def __str__(self) -> str:
        return f"{self.experts} experts, {self.each}"

    @property
    def bits(self) -> int:
        return self.each.bits

    @property
    def granularity(self) -> Granularity:
        return self.each.granularity

    @property
    def prefixes(self) -> Sequence[int]:
        """The numbers of planes that have parameters of their own."""
        return self.each.prefixes

    @property
    def names(self) -> tuple[str, ...]:
        """Of the stored tensors, in order."""
        return self.each.names

    def rows(self, out_features: int) -> int:
        """Of each expert, of so many rows of all. Raises InputError where they do not divide."""
        if out_features % self.experts:
            raise InputError(f"{out_features} rows cannot belong to {self.experts} equal experts")
        return out_features // self.experts

    def tensors(
        self, out_features: int, in_features: int
    ) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Name → (shape, dtype) of the stored tensors of a weight [experts · out, in]. Raises
        InputError for rows that are not as many for each expert."""
        each = self.each.tensors(self.rows(out_features), in_features)
        return {name: ((self.experts, *shape), dtype) for name, (shape, dtype) in each.items()}

    def assemble(self, tensors: Mapping[str, Tensor], in_features: int) -> "ExpertsTensor":
        """The stored tensors, by name, as one ExpertsTensor."""
        return ExpertsTensor({n: tensors[n] for n in self.names}, self.each, in_features)

    def to_dict(self) -> dict[str, Any]:
        return {"format": self.format, "experts": self.experts, "each": self.each.to_dict()}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> "ExpertsLayout":
        return cls(entry(stored, "experts", int), read_layout(entry(stored, "each", dict), PLAIN))


@dataclass(frozen=True)
class ExpertsTensor:
    """A weight [experts · out, in]; `stored` are the tensors of all experts, [experts, …]."""

    stored: Mapping[str, Tensor]
    each: PlainLayout
    in_features: int

    @classmethod
    def of(cls, parts: Iterable[PlainTensor], experts: int) -> "ExpertsTensor":
        """All of so many experts from each, asked for one after the other. They must differ in
        nothing but the dtype of their scales."""
        stored: dict[str, Tensor] = {}
        each: PlainLayout | None = None
        columns = 0
        for i, part in enumerate(parts):
            own, columns = part.tensors(), part.in_features
            if each is None:
                each = part.layout
                stored = {n: t.new_empty((experts, *t.shape)) for n, t in own.items()}
            elif part.layout.scale_dtype.itemsize > each.scale_dtype.itemsize:
                each = part.layout
                stored = {n: t.to(own[n].dtype) for n, t in stored.items()}
            for name, tensor in own.items():
                stored[name][i] = tensor
        assert each is not None
        return cls(stored, each, columns)

    @property
    def experts(self) -> int:
        return len(next(iter(self.stored.values())))

    @property
    def rows(self) -> int:
        """Of one expert."""
        return self.expert(0).shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        return self.experts * self.rows, self.in_features

    @property
    def granularity(self) -> Granularity:
        return self.each.granularity

    @property
    def layout(self) -> ExpertsLayout:
        return ExpertsLayout(self.experts, self.each)

    def expert(self, number: int) -> PlainTensor:
        """The weight [out, in] of one expert: views."""
        own = {name: tensor[number] for name, tensor in self.stored.items()}
        part: PlainTensor = self.each.assemble(own, self.in_features)
        return part

    def tensors(self) -> dict[str, Tensor]:
        """The stored tensors by name."""
        return dict(self.stored)


def prefix(q: ExpertsTensor, planes: int) -> ExpertsTensor:
    """The model of the first `planes` planes of each expert; what has no planes stays whole. Raises
    UsageError where q does not hold it."""
    of = PLAIN[q.each.format].prefix
    if of is None:
        return q
    return ExpertsTensor.of((of(q.expert(i), planes) for i in range(q.experts)), q.experts)


def decode(q: ExpertsTensor, dtype: torch.dtype = torch.float32) -> Float[Tensor, "out in"]:
    """All rows, expert after expert."""
    decode_one, device = PLAIN[q.each.format].decode, next(iter(q.stored.values())).device
    weight = torch.empty(q.experts, q.rows, q.in_features, dtype=dtype, device=device)
    for i in range(q.experts):
        weight[i] = decode_one(q.expert(i), dtype)
    return weight.flatten(0, 1)


def decode_rows(
    q: ExpertsTensor, rows: slice | Integer[Tensor, " n"], dtype: torch.dtype = torch.float32
) -> Float[Tensor, "_n in"]:
    """The given output rows of the weight, which alone are decoded."""
    decode_some, device = PLAIN[q.each.format].decode_rows, next(iter(q.stored.values())).device
    asked = torch.arange(q.shape[0], device=device)[rows]
    weight = torch.empty(len(asked), q.in_features, dtype=dtype, device=device)
    owner = asked // q.rows
    for i in owner.unique().tolist():
        here = owner == i
        weight[here] = decode_some(q.expert(i), asked[here] - i * q.rows, dtype)
    return weight
