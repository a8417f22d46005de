"""Solvers: methods to choose codes. One file each, and this table.

    solve(weight [out, in], hessian [in, in], scheme, …options) -> quantized tensor of the scheme

The hessian is the mean of x xᵀ over calibration tokens: symmetric, undamped. A solver that finds
all weights of a block together has a function for that too.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from jaxtyping import Float
from torch import Tensor

from lowbit.conversion.plan import Quantize
from lowbit.errors import UsageError, check_at_least, check_choice, naming
from lowbit.formats import QTensor
from lowbit.schemes import Scheme
from lowbit.solvers import autoround, awq, gptq, hqq, nearest, smoothquant
from lowbit.solvers.binary import compensated as binary_compensated
from lowbit.solvers.hessian import Inputs

Value = TypeVar("Value")
# (weights [out, in] that read the same x, statistics of x, their schemes) -> one factor per input
FindFactors = Callable[[Sequence[Tensor], Inputs, Sequence[Scheme]], Tensor]
# (weights [out, in] of a block by name, their schemes, block, progress, …options) -> all quantized
SolveBlock = Callable[..., Mapping[str, QTensor]]


@dataclass(frozen=True)
class Method:
    """`solve`, and whether it needs a Hessian; if not, the Hessian is None. factors: finds a scale
    per input, which is folded into the previous module before solving. solve_block: replaces
    `solve` in the blocks of stacks."""

    solve: Callable[..., QTensor]
    data: bool = False
    factors: FindFactors | None = None
    solve_block: SolveBlock | None = None


SOLVERS = {
    "nearest": Method(nearest.solve),
    "hqq": Method(hqq.solve),
    "gptq": Method(gptq.solve, data=True),
    "binary": Method(binary_compensated.solve, data=True),
    "autoround": Method(autoround.solve, data=True, solve_block=autoround.solve_block),
    "awq": Method(nearest.solve, factors=awq.factors),
    "smoothquant": Method(nearest.solve, factors=smoothquant.factors),
}


@dataclass(frozen=True)
class Solver:
    """A method by name, with options. Raises UsageError if a name or option is unknown.

    correct_bias: move the bias of each layer by the mean error that its weight leaves,
    b + (W − Ŵ) · mean x (Nagel et al. 2019, "Data-Free Quantization", equation 16).
    rotate: first rotate the values of each attention head (rotation.py).
    tune: the number of passes over the data that finally fine-tune all scales together
    (scale_finetuning.py).
    """

    name: str = "nearest"
    options: Mapping[str, Any] = field(default_factory=dict)
    correct_bias: bool = False
    rotate: bool = False
    tune: int = 0

    def __post_init__(self) -> None:
        check_choice("solver", self.name, SOLVERS)
        known = list(inspect.signature(self.method.solve).parameters)[3:]
        for option in self.options:
            if option not in known:
                has = f"use {', '.join(known)}" if known else "it has none"
                raise UsageError(f"solver {self.name} has no option {option!r}: {has}")
        check_at_least("tune", self.tune, 0)

    @property
    def method(self) -> Method:
        return SOLVERS[self.name]

    @property
    def moves(self) -> bool:
        """Whether it also changes float parameters that it does not quantize."""
        return self.method.factors is not None or self.correct_bias or self.rotate

    @property
    def data(self) -> bool:
        """Whether it needs calibration data."""
        return self.method.data or self.moves or self.tune > 0

    @property
    def learner(self) -> str:
        """The part of it that needs data, in words."""
        asked = [name for name in ("correct_bias", "rotate", "tune") if getattr(self, name)]
        return f"solver {self.name}" if self.method.data or not asked else asked[0]

    def solve(
        self, decision: Quantize, weight: Float[Tensor, "out in"], hessian: Tensor | None = None
    ) -> QTensor:
        """The quantized tensor of a weight by its decision. Errors name the weight."""
        with naming(str(decision.weight)):
            return decision.by_expert(
                weight, lambda own: self.method.solve(own, hessian, decision.scheme, **self.options)
            )

    def to_dict(self) -> dict[str, Any]:
        own = {"name": self.name, "correct_bias": self.correct_bias, "rotate": self.rotate}
        return {**own, "tune": self.tune, **self.options}


def load_solver(solver: str | Mapping[str, Any] | Solver) -> Solver:
    """A name, a mapping {"name": …, option: value, …}, or a Solver as it is. Raises UsageError.

    "correct_bias", "rotate" and "tune" are options of every solver.
    """
    if isinstance(solver, Solver):
        return solver
    if isinstance(solver, str):
        return Solver(solver)
    if not isinstance(solver, Mapping):
        raise UsageError(f"a solver is a name or a mapping with the key name, not {solver!r}")
    options = dict(solver)
    name = str(options.pop("name", None))
    shared = {key: _of(bool, key, options.pop(key, False)) for key in ("correct_bias", "rotate")}
    return Solver(name, options, tune=_of(int, "tune", options.pop("tune", 0)), **shared)


def _of(kind: type[Value], name: str, value: Any) -> Value:
    """`value`, if it has this type: the text "false" is not False. Else raises UsageError."""
    if type(value) is not kind:
        raise UsageError(f"{name} of a solver is {value!r}, not of type {kind.__name__}")
    return value
