"""Granularity: a scale per tensor, per channel (output row), or per group of consecutive inputs.

Recipes, YAML and config.json write it as "tensor", "channel" or "group:64". Every parameter tensor
is [rows, groups]; per tensor it is [1, 1]. The last group of a row may be shorter.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from lowbit.errors import UsageError, check_choice

MAX_GROUP_SIZE = 1 << 16
# Weights per block of rows: temporaries of a block stay in the cache of a core.
WEIGHTS_AT_ONCE = 1 << 17


@dataclass(frozen=True)
class Granularity:
    """Which weights share a scale: those of the tensor, of a channel (output row), or of a group.

    Attributes:
        kind: "tensor", "channel" or "group".
        group_size: For groups, the number of consecutive inputs that share a scale, 2 … 65536;
            else None.

    Raises:
        UsageError: if the kind is unknown, or if the size is absent, superfluous or out of range.
    """

    kind: str
    group_size: int | None = None

    def __post_init__(self) -> None:
        known = ("tensor", "channel", "group")
        check_choice("granularity", self.kind, known, "tensor, channel or group:SIZE")
        if (self.kind == "group") != (self.group_size is not None):
            raise UsageError(
                "a granularity of groups, and no other, needs a size, as in group:64;"
                f" got {self.kind!r} with size {self.group_size}"
            )
        if self.group_size is not None and not 2 <= self.group_size <= MAX_GROUP_SIZE:
            raise UsageError(f"group size {self.group_size} is outside 2 … {MAX_GROUP_SIZE}")

    @classmethod
    def parse(cls, text: object) -> "Granularity":
        """Read "tensor", "channel" or "group:SIZE"; a Granularity passes through.

        Raises:
            UsageError: if the text is none of these.
        """
        if isinstance(text, Granularity):
            return cls(text.kind, text.group_size)
        kind, colon, size = str(text).partition(":")
        if colon and not size.isdecimal():
            raise UsageError(f"granularity {text!r} is not of the form group:SIZE")
        return cls(kind, int(size) if colon else None)

    def __str__(self) -> str:
        return self.kind if self.group_size is None else f"{self.kind}:{self.group_size}"

    def parameter_shape(self, rows: int, columns: int) -> tuple[int, int]:
        """The shape [rows, groups] of the scales of a weight [rows, columns]; [1, 1] per tensor."""
        if self.kind == "tensor":
            return 1, 1
        return rows, -(-columns // self.width(columns))

    def width(self, columns: int) -> int:
        """The number of inputs of one row that share a scale."""
        return columns if self.group_size is None else self.group_size

    def split(self, x: Shaped[Tensor, "rows columns"]) -> Shaped[Tensor, "rows groups width"]:
        """View the rows in groups. If the last group is shorter, copy and pad it with zeros."""
        rows, columns = x.shape
        width = self.width(columns)
        groups = -(-columns // width)
        if groups * width != columns:
            x = torch.nn.functional.pad(x, (0, groups * width - columns))
        return x.unflatten(1, (groups, width))


TENSOR = Granularity("tensor")
CHANNEL = Granularity("channel")


def group(size: int) -> Granularity:
    """Groups of `size` consecutive inputs of a row."""
    return Granularity("group", size)


def by_row_blocks(
    shape: tuple[int, int],
    dtype: torch.dtype,
    device: torch.device,
    values: Callable[[slice], Tensor],
    gradients: bool,
) -> Float[Tensor, "rows columns"]:
    """Compute a weight in blocks of rows; `values` returns the rows of a block.

    gradients: whether gradients flow through the result. Then blocks are concatenated, because
    writing into a slice would copy the whole gradient for each block.
    """
    blocks = row_blocks(*shape)
    if gradients and torch.is_grad_enabled():
        return torch.cat([values(rows).to(dtype) for rows in blocks])
    weight = torch.empty(shape, dtype=dtype, device=device)
    for rows in blocks:
        weight[rows] = values(rows)
    return weight


def row_blocks(rows: int, columns: int) -> Iterator[slice]:
    """Slices over the rows of a weight, of about WEIGHTS_AT_ONCE weights each. A weight without
    rows has one empty slice."""
    step = max(1, WEIGHTS_AT_ONCE // max(1, columns))
    return (slice(start, start + step) for start in range(0, max(1, rows), step))
