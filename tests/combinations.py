"""Parametrization over several lists without their whole product."""

from collections import Counter
from collections.abc import Iterable
from itertools import combinations, product
from typing import Any

import pytest


def some(*lists: Iterable[Any], together: int = 1) -> list[Any]:
    """The product of the lists. All but a few combinations run at night only: those few have every
    value, or, with `together` = 2, every pair of values of different lists."""
    values = [list(each) for each in lists]
    every = list(product(*(range(len(each)) for each in values)))

    def parts(numbers: tuple[int, ...]) -> set[Any]:
        return set(combinations(enumerate(numbers), together))

    missing: set[Any] = set().union(*map(parts, every))
    used: Counter[tuple[int, int]] = Counter()
    by_day: set[tuple[int, ...]] = set()
    while missing:
        # Among equals that of the values that were taken least.
        best = max(
            every, key=lambda n: (len(parts(n) & missing), -sum(used[v] for v in enumerate(n)))
        )
        by_day.add(best)
        used.update(enumerate(best))
        missing -= parts(best)
    return [
        pytest.param(
            *(own[i] for own, i in zip(values, numbers, strict=True)),
            marks=() if numbers in by_day else pytest.mark.nightly,
        )
        for numbers in every
    ]
