from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowbit.errors import InputError
from lowbit.search.knapsack import choose


@settings(max_examples=30)
@given(st.integers(1, 5), st.integers(1, 4), st.integers(0, 2**32), st.floats(0, 1))
def test_the_choices_cost_as_little_as_any_that_fit(modules, options, seed, share):
    random = np.random.default_rng(seed)
    sizes = random.integers(1, 1000, (modules, options)) * int(random.integers(1, 65))
    costs = random.exponential(1.0, (modules, options)) * 10.0 ** random.integers(-6, 1)
    least, most = sizes.min(1).sum(), sizes.max(1).sum()
    budget = int(least + share * (most - least))
    picked = choose(sizes.tolist(), costs.tolist(), budget)
    at = np.arange(modules)
    assert sizes[at, picked].sum() <= budget
    every = (list(p) for p in product(range(options), repeat=modules))
    best = min(costs[at, p].sum() for p in every if sizes[at, p].sum() <= budget)
    assert costs[at, picked].sum() <= best * (1 + 1e-9) + 1e-10 * costs.max()


def test_a_budget_below_the_smallest_names_it():
    with pytest.raises(InputError, match="of 9 bytes is below the smallest, 10 bytes"):
        choose([[4, 8], [6, 7]], [[1, 0], [1, 0]], 9)


def test_a_cost_that_is_not_a_number_is_refused():
    with pytest.raises(InputError, match="not a number"):
        choose([[4, 8]], [[float("nan"), 0.0]], 9)
