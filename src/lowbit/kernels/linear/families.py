"""The two families of arithmetic for float activations in native code.

    limbs   as four int8 limbs each, by the integer product (csrc/linear.h)
    fma     as float32, by fused multiply-adds with decoded weights (csrc/linear_float.h)

A target uses one family for all calls, so that results depend only on the layer and the processor.
The environment variable LOWBIT_FLOAT forces a family: then all processors give the same results.
"""

import os

from lowbit.errors import check_choice
from lowbit.kernels import native

VARIABLE = "LOWBIT_FLOAT"
LIMBS = {"limbs": 4, "fma": 1}


def family(activations: str, target: str) -> str | None:
    """The family of a target of the native code, "limbs" or "fma"; None if activations are int8.

    Raises UsageError if LOWBIT_FLOAT is unknown.
    """
    if activations != "float":
        return None
    forced = os.environ.get(VARIABLE, "")
    if forced:
        check_choice(VARIABLE, forced, LIMBS)
    preferred = native.module is not None and target in native.module.prefer_fma
    return forced or ("fma" if preferred else "limbs")


def limbs(family: str | None) -> int:
    """The number of int8 limbs per activation in native code."""
    return 1 if family is None else LIMBS[family]


def reason(why: str, activations: str, target: str) -> str:
    """The reason for the choice of a target, with the family if there is one."""
    chosen = family(activations, target)
    return why if chosen is None else f"{why}; float activations by {chosen}"
