"""Axes: which numbers stand where, and how they are drawn."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from lowbit.report.pictures.sheet import FAINT, RULE, Sheet

TICK, SMALL = 4.0, 10.0
STEPS = (1, 2, 5, 10)


@dataclass(frozen=True)
class Scale:
    """Values from `low` to `high`, drawn from pixel `start` to pixel `end`.

    doublings: half the value is the same distance everywhere; both ends are above 0.
    """

    low: float
    high: float
    start: float
    end: float
    doublings: bool = False

    def __call__(self, value: float) -> float:
        low, high = self.low, self.high
        if self.doublings:
            low, high, value = math.log2(low), math.log2(high), math.log2(value)
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self, most: int = 6) -> list[float]:
        """At most so many round numbers: powers of two, or multiples of 1, 2 or 5 · 10ⁿ."""
        if self.doublings:
            first, last = math.ceil(math.log2(self.low)), math.floor(math.log2(self.high))
            every = max(1, math.ceil((last - first + 1) / most))
            return [2.0**power for power in range(first, last + 1, every)]
        least = (self.high - self.low) / most
        unit = 10.0 ** math.floor(math.log10(least))
        step = next(unit * s for s in STEPS if unit * s >= least * (1 - 1e-9))
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [step * multiple for multiple in range(first, last + 1)]


def bottom(sheet: Sheet, scale: Scale, y: float, label: str, write: Callable[[float], str]) -> None:
    """A line at `y` with ticks, their numbers as `write` has them, and what they are below."""
    sheet.line([(scale.start, y), (scale.end, y)], RULE)
    for tick in scale.ticks():
        x = scale(tick)
        sheet.line([(x, y), (x, y + TICK)], RULE)
        sheet.text(x, y + 15, write(tick), "middle", SMALL, FAINT)
    sheet.text((scale.start + scale.end) / 2, y + 30, label, "middle")


def left(sheet: Sheet, scale: Scale, x: float, write: Callable[[float], str]) -> None:
    """A line at `x` with ticks and their numbers as `write` has them."""
    sheet.line([(x, scale.start), (x, scale.end)], RULE)
    for tick in scale.ticks():
        y = scale(tick)
        sheet.line([(x - TICK, y), (x, y)], RULE)
        sheet.text(x - TICK - 3, y + 3.5, write(tick), "end", SMALL, FAINT)
