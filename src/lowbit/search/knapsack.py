"""One option for each module, of least total cost, within a budget of bytes.

    min Σ cost(m, o) x(m, o)    Σ bytes(m, o) x(m, o) ≤ budget,  Σ_o x(m, o) = 1,  x ∈ {0, 1}

A multiple-choice knapsack, solved to proven optimality as an integer program (HiGHS, branch and
bound without a gap).
"""

import math
from collections.abc import Sequence

import numpy as np

from lowbit.errors import InputError
from lowbit.extras import needed

# What the largest cost is scaled to: the solver stops at a gap of 1e-6.
COSTLIEST = 1e5


def choose(
    sizes: Sequence[Sequence[int]], costs: Sequence[Sequence[float]], budget: int
) -> list[int]:
    """The option of each module. sizes: in bytes; costs: any numbers, the less the better.

    Raises InputError where even the smallest options exceed the budget.
    """
    least = sum(min(options) for options in sizes)
    if least > budget:
        raise InputError(f"the budget of {budget:,} bytes is below the smallest, {least:,} bytes")
    size, cost = (np.array([x for row in rows for x in row], float) for rows in (sizes, costs))
    if not np.isfinite(cost).all():
        raise InputError("a choice has a cost that is not a number: the model's output is not one")
    optimize = needed("scipy.optimize", "scipy", "eval")
    owner = np.repeat(np.arange(len(sizes)), [len(options) for options in sizes])
    one_each = (owner == np.arange(len(sizes))[:, None]).astype(float)
    # Whole numbers, as small as they get: the solver's tolerances are absolute.
    unit = max(1, math.gcd(*(x for row in sizes for x in row)))
    found = optimize.milp(
        COSTLIEST * cost / (np.abs(cost).max() or 1.0),
        integrality=np.ones_like(cost),
        bounds=optimize.Bounds(0, 1),
        constraints=[
            optimize.LinearConstraint(one_each, 1, 1),
            optimize.LinearConstraint(size[None] / unit, ub=budget // unit),
        ],
        options={"mip_rel_gap": 0.0},
    )
    if found.x is None:
        raise InputError(f"the integer program was not solved: {found.message}")
    taken = found.x.round().astype(int)
    return [int(taken[owner == module].argmax()) for module in range(len(sizes))]
