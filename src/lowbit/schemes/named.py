"""Schemes with a one-word name, which includes their options."""

from lowbit.formats import TENSOR, group
from lowbit.schemes.absmax import Absmax
from lowbit.schemes.binary import Binary
from lowbit.schemes.k_quant import KQuant
from lowbit.schemes.scheme import Scheme
from lowbit.schemes.zero_point import ZeroPoint

GROUPS = group(64)
# The first part of the names of presets.
NAMED: dict[str, Scheme] = {
    "int8": Absmax(8),
    "int8-zeropoint": ZeroPoint(8),
    **{f"int{bits}": ZeroPoint(bits, GROUPS) for bits in (4, 3, 2)},
    **{f"int{bits}-k": KQuant(bits) for bits in (4, 3, 2)},
    **{f"bcq{bits}": Binary(bits, GROUPS) for bits in (1, 2, 3, 4)},
}
# The names of `simulate`: one scale per tensor.
PER_TENSOR: dict[str, Scheme] = {s.name: s for s in (Absmax(8, TENSOR), ZeroPoint(8, TENSOR))}
