"""Which numbers a stored tensor may hold: what no scheme writes is a fault of the file.

    affine   scale finite and > 0 (any sign if signed or in two levels); zero_point a code; offset
             finite; pad bits zero
    binary   alpha_p and offset_p finite; pad bits zero
    stacked  as its parts
    experts  as each of them

Every check is one pass over the tensor, at the speed of memory; a flipped bit inside valid codes is
not seen (hashes are for that).
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import torch
from torch import Tensor

from lowbit.formats.affine import AffineLayout
from lowbit.formats.experts import ExpertsLayout
from lowbit.formats.stacked import StackedLayout, part_name
from lowbit.formats.table import PlainLayout

# What is wrong with a tensor, or None.
Test = Callable[[Tensor], str | None]


def tests(
    layout: PlainLayout | StackedLayout | ExpertsLayout, columns: int
) -> Iterator[tuple[str, Test]]:
    """(name, its test) of each stored tensor of a weight with so many columns."""
    if isinstance(layout, StackedLayout):
        for i, (_, own) in enumerate(layout.parts):
            yield from ((part_name(i, name), test) for name, test in tests(own, columns))
        return
    if isinstance(layout, ExpertsLayout):
        layout = layout.each
    bits = layout.bits if isinstance(layout, AffineLayout) else 1
    if columns * bits % 8:
        yield layout.names[0], partial(_padding, bits=columns * bits)
    levels = layout.two_level if isinstance(layout, AffineLayout) else None
    sub_bits = layout.granularity.parameter_shape(1, columns)[1] * levels.bits if levels else 0
    for name in layout.names[1:]:
        if name == "zero_point":
            yield name, partial(_codes, codes=1 << layout.bits)
        elif not name.startswith("sub_"):
            positive = isinstance(layout, AffineLayout) and layout.positive and name == "scale"
            yield name, unscaled if positive else not_finite
        elif sub_bits % 8:
            yield name, partial(_padding, bits=sub_bits)


def faults(
    layout: PlainLayout | StackedLayout | ExpertsLayout, tensors: Mapping[str, Tensor], columns: int
) -> Iterator[tuple[str, str]]:
    """(name, what is wrong) of each stored tensor that holds what it may not."""
    for name, test in tests(layout, columns):
        if told := test(tensors[name]):
            yield name, told


def not_finite(tensor: Tensor) -> str | None:
    """What is wrong with floats of which none may be NaN or infinite."""
    low, high = _range(tensor)
    return None if -torch.inf < low and high < torch.inf else f"holds {_worst(low, high)}"


def not_a_number(tensor: Tensor) -> str | None:
    """What is wrong with floats that may be −∞, as those of a mask are, but not NaN or ∞."""
    low, high = _range(tensor)
    return None if high < torch.inf else f"holds {_worst(low, high)}"


def unscaled(tensor: Tensor) -> str | None:
    """What is wrong with scales, which are finite and above zero."""
    low, high = _range(tensor)
    if 0 < low and high < torch.inf:
        return None
    return f"holds {low if low <= 0 else _worst(low, high):g}; scales are finite and above zero"


def _range(tensor: Tensor) -> tuple[float, float]:
    """The smallest and the largest value; NaN and NaN where there is one."""
    if not tensor.numel():
        return 1.0, 1.0
    # One pass; it hands NaN on.
    low, high = torch.aminmax(tensor.detach())
    return low.item(), high.item()


def _worst(low: float, high: float) -> float:
    return high if high == torch.inf or high != high else low


def _codes(zero_point: Tensor, codes: int) -> str | None:
    largest = int(zero_point.max()) if zero_point.numel() else 0
    return None if largest < codes else f"holds {largest}, outside the codes 0 … {codes - 1}"


def _padding(packed: Tensor, bits: int) -> str | None:
    """Rows are padded with zero bits to whole bytes."""
    if not packed.numel() or not bool((packed[..., -1] >> bits % 8).any()):
        return None
    return f"has bits set beyond the {bits} of a row"
