"""Names beside points, without overlaps.

A greedy search: each label tries places around its point in growing rings and takes the first that
touches no label placed before, no point, no obstacle, and no edge. The result is deterministic. All
numbers are pixels from the top left.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

# Right, left, above, below and the diagonals, in the order in which they are tried.
DIRECTIONS = (
    0,
    180,
    90,
    270,
    45,
    315,
    135,
    225,
    22.5,
    337.5,
    157.5,
    202.5,
    67.5,
    292.5,
    112.5,
    247.5,
)
RADIUS = 5.0  # of a point, with the air around it


@dataclass(frozen=True)
class Box:
    left: float
    top: float
    right: float
    bottom: float

    def meets(self, other: "Box") -> bool:
        return (
            self.left < other.right
            and other.left < self.right
            and self.top < other.bottom
            and other.top < self.bottom
        )

    def within(self, other: "Box") -> bool:
        return (
            other.left <= self.left
            and self.right <= other.right
            and other.top <= self.top
            and self.bottom <= other.bottom
        )

    @property
    def centre(self) -> tuple[float, float]:
        return (self.left + self.right) / 2, (self.bottom + self.top) / 2


def place_labels(
    points: Sequence[tuple[float, float]],
    sizes: Sequence[tuple[float, float]],
    area: Box,
    obstacles: Sequence[Box] = (),
) -> list[Box | None]:
    """A box of each size near its point; None where the area has no room left."""
    dots = [Box(x - RADIUS, y - RADIUS, x + RADIUS, y + RADIUS) for x, y in points]
    dots += obstacles
    taken: list[Box] = []
    placed: list[Box | None] = []
    for point, (width, height) in zip(points, sizes, strict=True):
        box = next(
            (
                box
                for box in _candidates(point, width, height, area)
                if box.within(area) and not any(map(box.meets, dots + taken))
            ),
            None,
        )
        placed.append(box)
        if box is not None:
            taken.append(box)
    return placed


def _candidates(point: tuple[float, float], width: float, height: float, area: Box) -> list[Box]:
    reach = math.hypot(area.right - area.left, area.bottom - area.top)
    found = []
    distance = RADIUS + 2
    while distance < reach:
        for degrees in DIRECTIONS:
            cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
            # The nearest edge of the box, not its centre, keeps the distance.
            x = point[0] + cosine * (distance + width / 2)
            y = point[1] - sine * (distance + height / 2)
            found.append(Box(x - width / 2, y - height / 2, x + width / 2, y + height / 2))
        distance += 6
    return found
