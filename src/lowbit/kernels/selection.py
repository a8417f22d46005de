"""Select the kernel of a call, with the reason.

An operator lists its kernels, best first: those of the native code (native.targets), and at the end
the reference, which serves every call:

    KERNELS = (
        *(Kernel(t.name, run, unsupported, t.feature) for t in native.targets("linear")),
        Kernel("reference", run, never),
    )
    kernel, why = select(KERNELS, x, group_size)

The environment variable LOWBIT_KERNEL forces one of `NAMES` for all operators that have such a
kernel. It has no effect on the others.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from lowbit.errors import UsageError
from lowbit.kernels import native

VARIABLE = "LOWBIT_KERNEL"
NAMES = ("reference", *reversed(native.target_names()))


# Compared by identity, so that the cache below hashes kernels fast.
@dataclass(frozen=True, eq=False)
class Kernel:
    """One implementation of an operator. `unsupported` takes the arguments of the call."""

    name: str  # one of NAMES
    run: Callable[..., Any]
    unsupported: Callable[..., str | None]  # why it cannot serve this call, or None
    feature: str | None = None  # that the processor needs (native.lacks); None for PyTorch


def never(*args: object) -> None:
    """`unsupported` of a kernel that serves every call."""


@lru_cache(maxsize=256)
def _candidates(kernels: tuple[Kernel, ...], forced: str) -> tuple[tuple[Kernel, str], ...]:
    """The kernels that can run on this machine, best first, with the reason for each."""
    if forced and forced not in NAMES:
        known = ", ".join(NAMES)
        without = "" if native.available() else f", as {native.reason()}"
        raise UsageError(f"{VARIABLE}={forced} is unknown; it can be {known}{without}")
    reference = kernels[-1]
    named = next((kernel for kernel in kernels if kernel.name == forced), None)
    if named is not None:
        missing = native.lacks(named.feature) if named.feature else None
        if missing:
            raise UsageError(f"{VARIABLE}={forced} cannot be met: {missing}")
        return tuple((k, f"forced by {VARIABLE}") for k in dict.fromkeys((named, reference)))

    best = "best of what this processor has"
    if forced:
        best = f"{best}, as this op has no {forced} kernel"
    lacking = (native.lacks(kernel.feature) for kernel in kernels if kernel.feature)
    missing = next(filter(None, lacking), None) or native.lacks(native.BASE)
    runnable = [
        kernel for kernel in kernels if not (kernel.feature and native.lacks(kernel.feature))
    ]
    if runnable == [reference]:
        return ((reference, missing or "no other implementation supports this operator"),)
    return tuple((kernel, best) for kernel in runnable)


def target_here(operator: str) -> str:
    """The best target of a native operator on this processor, or the forced target if the operator
    has it. All targets give the same bits."""
    return _target_here(operator, os.environ.get(VARIABLE, ""))


@lru_cache(maxsize=64)
def _target_here(operator: str, forced: str) -> str:
    here = [target.name for target in native.targets(operator) if not native.lacks(target.feature)]
    return forced if forced in here else here[0]


def select(kernels: Sequence[Kernel], *args: object) -> tuple[Kernel, str]:
    """The first of `kernels` that can serve `args`, and one line on why it was chosen.

    Raises UsageError if LOWBIT_KERNEL is unknown or names a kernel that cannot run here.
    """
    refusal = None
    candidates = _candidates(tuple(kernels), os.environ.get(VARIABLE, ""))
    for kernel, why in candidates[:-1]:
        refused = kernel.unsupported(*args)
        if refused is None:
            return kernel, f"{kernel.name}: {refusal or why}"
        refusal = refusal or f"{kernel.name} cannot serve this call: {refused}"
    kernel, why = candidates[-1]
    return kernel, f"{kernel.name}: {refusal or why}"
