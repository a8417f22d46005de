"""Solvers: how codes are chosen beyond nearest rounding. One file each, and this table.

    solve(weight [out, in], hessian [in, in], scheme, …options) -> the scheme's own stored form

The hessian is the mean of x xᵀ over calibration tokens: symmetric, undamped.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from lowbit.errors import UsageError
from lowbit.formats import QTensor
from lowbit.schemes import Scheme
from lowbit.solvers import awq, binary_compensated, gptq, hqq, nearest, smoothquant
from lowbit.solvers.hessian import Inputs

# (weights [out, in] that read the same x, what is known of x, their schemes) -> one per input
FindFactors = Callable[[Sequence[Tensor], Inputs, Sequence[Scheme]], Tensor]


@dataclass(frozen=True)
class Method:
    """`solve`, and whether it needs data: without, its hessian is None. `factors` finds a scale per
    input that is folded into the module before, first of all."""

    solve: Callable[..., QTensor]
    data: bool = True
    factors: FindFactors | None = None


SOLVERS = {
    "nearest": Method(nearest.solve, data=False),
    "hqq": Method(hqq.solve, data=False),
    "gptq": Method(gptq.solve),
    "binary": Method(binary_compensated.solve),
    "awq": Method(nearest.solve, factors=awq.factors),
    "smoothquant": Method(nearest.solve, factors=smoothquant.factors),
}


@dataclass(frozen=True)
class Solver:
    """A method by name, with options. Raises UsageError for what is unknown."""

    name: str = "nearest"
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.name not in SOLVERS:
            raise UsageError(f"solver {self.name!r} is unknown: use {', '.join(SOLVERS)}")
        known = list(inspect.signature(self.method.solve).parameters)[3:]
        for option in self.options:
            if option not in known:
                has = f"use {', '.join(known)}" if known else "it has none"
                raise UsageError(f"solver {self.name} has no option {option!r}: {has}")

    @property
    def method(self) -> Method:
        return SOLVERS[self.name]

    def solve(self, weight: Tensor, hessian: Tensor | None, scheme: Scheme) -> QTensor:
        """`weight` in the stored form of `scheme`."""
        return self.method.solve(weight, hessian, scheme, **self.options)

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, **self.options}


def load_solver(solver: str | Mapping[str, Any] | Solver) -> Solver:
    """A name, a mapping {"name": …, option: value, …}, or a Solver as it is. Raises UsageError."""
    if isinstance(solver, Solver):
        return solver
    if isinstance(solver, str):
        return Solver(solver)
    options = dict(solver)
    return Solver(str(options.pop("name", None)), options)
