"""One weight of a model, by the solver and the scheme that were decided for it."""

from torch import Tensor

from lowbit.conversion.plan import Decision
from lowbit.errors import naming
from lowbit.formats import QTensor
from lowbit.solvers import Solver


def solve_weight(
    solver: Solver, decision: Decision, weight: Tensor, hessian: Tensor | None
) -> QTensor:
    """The stored form of a weight [out, in]. Raises with the module's name."""
    assert decision.rule is not None and decision.rule.scheme is not None
    with naming(f"{decision.name}.weight"):
        return solver.solve(weight, hessian, decision.rule.scheme)
