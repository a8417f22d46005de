"""By which arithmetic native code computes float activations.

    limbs   as four int8 limbs each, by the integer product (csrc/linear.h)
    fma     as float32, by fused multiply-adds with decoded weights (csrc/linear_float.h)

Each path prefers one for all its calls, so that results depend on the layer and the processor
alone. The environment variable LOWBIT_FLOAT forces one: then results are those of every processor.
"""

import os

from lowbit.errors import UsageError
from lowbit.kernels import native

VARIABLE = "LOWBIT_FLOAT"
DIGITS = {"limbs": 4, "fma": 1}


def family(activations: str, path: str) -> str | None:
    """The one that a path of the native code takes, "limbs" or "fma"; None if activations are int8.

    Raises UsageError if LOWBIT_FLOAT is unknown.
    """
    if activations != "float":
        return None
    forced = os.environ.get(VARIABLE, "")
    if forced and forced not in DIGITS:
        raise UsageError(f"{VARIABLE}={forced} is unknown; it can be {', '.join(DIGITS)}")
    preferred = native.module is not None and path in native.module.prefer_fma
    return forced or ("fma" if preferred else "limbs")


def digits(family: str | None) -> int:
    """How many numbers an activation is to native code."""
    return 1 if family is None else DIGITS[family]


def reason(why: str, activations: str, path: str) -> str:
    """Why a path of the native code was chosen, with the family if there is one."""
    chosen = family(activations, path)
    return why if chosen is None else f"{why}; float activations by {chosen}"
