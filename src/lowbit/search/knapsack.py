"""One option for each module, of least total cost, within a budget of bytes.

    min Σ cost(m, o) x(m, o)    Σ bytes(m, o) x(m, o) ≤ budget,  Σ_o x(m, o) = 1,  x ∈ {0, 1}

A multiple-choice knapsack, solved to proven optimality as an integer program (HiGHS, branch and
bound without a gap).
"""

from collections.abc import Sequence

import numpy as np

from lowbit.errors import InputError
from lowbit.extras import needed


def choose(
    sizes: Sequence[Sequence[int]], costs: Sequence[Sequence[float]], budget: int
) -> list[int]:
    """The option of each module. sizes: in bytes; costs: any numbers, the less the better.

    Raises InputError where even the smallest options exceed the budget.
    """
    least = sum(min(options) for options in sizes)
    if least > budget:
        raise InputError(f"the budget of {budget:,} bytes is below the smallest, {least:,} bytes")
    optimize = needed("scipy.optimize", "scipy", "eval")
    size, cost = (np.array([x for row in rows for x in row], float) for rows in (sizes, costs))
    owner = np.repeat(np.arange(len(sizes)), [len(options) for options in sizes])
    one_each = (owner == np.arange(len(sizes))[:, None]).astype(float)
    # Numbers around 1, so that the solver's absolute tolerances are relative ones.
    unit = max(size.max(), 1.0)
    found = optimize.milp(
        cost / (np.abs(cost).max() or 1.0),
        integrality=np.ones_like(cost),
        bounds=optimize.Bounds(0, 1),
        constraints=[
            optimize.LinearConstraint(one_each, 1, 1),
            optimize.LinearConstraint(size[None] / unit, ub=budget / unit),
        ],
        options={"mip_rel_gap": 0.0},
    )
    if found.x is None:
        raise InputError(f"the integer program was not solved: {found.message}")
    taken = found.x.round().astype(int)
    return [int(taken[owner == module].argmax()) for module in range(len(sizes))]
