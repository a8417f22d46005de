"""The Pareto frontier of size against quality.

A point is on it where no other is at least as good in both and better in one.
"""

import math
from collections.abc import Sequence


def frontier(sizes: Sequence[float], qualities: Sequence[float]) -> list[int]:
    """Indices of the points on it by rising size. Smaller is better in `sizes`, larger in
    `qualities`; a point with NaN in either is on no frontier."""
    finite = [
        i
        for i, (size, quality) in enumerate(zip(sizes, qualities, strict=True))
        if not (math.isnan(size) or math.isnan(quality))
    ]
    on: list[int] = []
    for i in sorted(finite, key=lambda i: (sizes[i], -qualities[i])):
        twin = on and (sizes[i], qualities[i]) == (sizes[on[-1]], qualities[on[-1]])
        if not on or twin or qualities[i] > qualities[on[-1]]:
            on.append(i)
    return on
