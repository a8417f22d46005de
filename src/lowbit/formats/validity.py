"""Which numbers a stored tensor may hold: what no scheme writes is a fault of the file.

    affine   scale finite and > 0; zero_point a code; pad bits zero
    binary   alpha_p and offset_p finite; pad bits zero
    stacked  as its parts
    experts  as each of them

Every check is one pass over the tensor, at the speed of memory; a flipped bit inside valid codes is
not seen (hashes are for that).
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from lowbit.formats.affine import AffineLayout
from lowbit.formats.experts import ExpertsLayout
from lowbit.formats.stacked import StackedLayout, part_name
from lowbit.formats.table import PlainLayout


def faults(
    layout: PlainLayout | StackedLayout | ExpertsLayout, tensors: Mapping[str, Tensor], columns: int
) -> Iterator[tuple[str, str]]:
    """(name, what is wrong) of each stored tensor that holds what it may not."""
    if isinstance(layout, StackedLayout):
        for i, (_, own) in enumerate(layout.parts):
            part = {name: tensors[part_name(i, name)] for name in own.names}
            yield from ((part_name(i, name), told) for name, told in faults(own, part, columns))
        return
    if isinstance(layout, ExpertsLayout):
        layout = layout.each
    packed, bits = layout.names[0], layout.bits if isinstance(layout, AffineLayout) else 1
    if told := _padding(tensors[packed], columns * bits):
        yield packed, told
    for name in layout.names[1:]:
        tensor = tensors[name]
        if name == "zero_point":
            largest, codes = int(tensor.max()) if tensor.numel() else 0, 1 << layout.bits
            if largest >= codes:
                yield name, f"holds {largest}, outside the codes 0 … {codes - 1}"
        elif told := unscaled(tensor) if name == "scale" else not_finite(tensor):
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


def _padding(packed: Tensor, bits: int) -> str | None:
    """Rows are padded with zero bits to whole bytes."""
    used = bits % 8
    if not used or not packed.numel() or not bool((packed[..., -1] >> used).any()):
        return None
    return f"has bits set beyond the {bits} of a row"
