"""What shares one scale: a tensor, a channel (an output row), or a group of consecutive inputs.

Written "tensor", "channel" or "group:64" in recipes, YAML and config.json. Every parameter
tensor is [rows, groups]; per tensor it is [1, 1]. The last group of a row may be shorter.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from lowbit.errors import UsageError, check_choice

MAX_GROUP_SIZE = 1 << 16
# Rows are worked on in blocks whose temporaries stay in the cache of a core.
WEIGHTS_AT_ONCE = 1 << 17


@dataclass(frozen=True)
class Granularity:
    """Which weights share a scale: those of the tensor, of a channel (output row), or of a group.

    Attributes:
        kind: "tensor", "channel" or "group".
        group_size: Consecutive inputs that share a scale, for groups; else None.

    Raises:
        UsageError: for an unknown kind, and a size that is absent, superfluous or out of range.
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
        """ "tensor", "channel" or "group:SIZE"; a Granularity passes through."""
        if isinstance(text, Granularity):
            return cls(text.kind, text.group_size)
        kind, colon, size = str(text).partition(":")
        if colon and not size.isdecimal():
            raise UsageError(f"granularity {text!r} is not of the form group:SIZE")
        return cls(kind, int(size) if colon else None)

    def __str__(self) -> str:
        return self.kind if self.group_size is None else f"{self.kind}:{self.group_size}"

    def parameter_shape(self, rows: int, columns: int) -> tuple[int, int]:
        """The shape [rows, groups] of one parameter per unit for a weight [rows, columns]."""
        if self.kind == "tensor":
            return 1, 1
        return rows, -(-columns // self.width(columns))

    def width(self, columns: int) -> int:
        """How many inputs of one row share a scale."""
        return columns if self.group_size is None else self.group_size

    def split(self, x: Shaped[Tensor, "rows columns"]) -> Shaped[Tensor, "rows groups width"]:
        """View the rows in groups; a short last group is padded with zeros (a copy, then)."""
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
    """A weight from the `values` of its rows, some at a time. gradients: they are to flow through
    it. Writing into a part of a tensor would copy all of its gradient for each part then."""
    blocks = row_blocks(*shape)
    if gradients and torch.is_grad_enabled():
        return torch.cat([values(rows).to(dtype) for rows in blocks])
    weight = torch.empty(shape, dtype=dtype, device=device)
    for rows in blocks:
        weight[rows] = values(rows)
    return weight


def row_blocks(rows: int, columns: int) -> Iterator[slice]:
    """Slices over the rows of a weight that hold about WEIGHTS_AT_ONCE weights each. A weight
    without rows has one empty slice."""
    step = max(1, WEIGHTS_AT_ONCE // max(1, columns))
    return (slice(start, start + step) for start in range(0, max(1, rows), step))
