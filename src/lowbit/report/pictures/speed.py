"""Speed over the reference: a bar for each model and shape, 1× as a line, spread as a whisker."""

import math
from collections.abc import Sequence

from lowbit.evaluation.study import Timing
from lowbit.report.pictures import axis
from lowbit.report.pictures.axis import Scale
from lowbit.report.pictures.sheet import ACCENT, FAINT, INK, QUANTIZED, WIDTH, Sheet
from lowbit.report.wording import duration, number, times
from lowbit.visible import shortened

ROW, VALUE, TOP, LEFT = 34.0, 150.0, 44.0, 12.0


def comparable(timing: Timing | None) -> bool:
    """Whether there is a speed-up to draw."""
    gain = timing.speedup if timing is not None and timing.seconds > 0 else None
    return gain is not None and math.isfinite(gain) and gain > 0


def bars(name: str, shape: str, rows: Sequence[tuple[str, Timing]]) -> str:
    """The picture of one shape; every timing is `comparable`. Whiskers reach from the speed-up at
    the upper quartile of the seconds to that at the lower, taken as half the spread either way."""
    base = TOP + ROW * len(rows)
    made = Sheet(name, WIDTH, base + 36)
    gains = [timing.speedup or 0.0 for _, timing in rows]
    # A whisker may be longer than all bars: it ends where the axis does.
    longest = 1.3 * max(1.0, *gains)
    whiskers = [tuple(min(end, longest) for end in _whisker(timing)) for _, timing in rows]
    across = Scale(0.0, max(1.0, *(high for _, high in whiskers)), LEFT, WIDTH - VALUE)
    made.text(0, 14, shortened(shape, 50), bold=True)
    made.line([(across(1), TOP - 6), (across(1), base)], FAINT, 1.2, "3 3")
    made.text(across(1), TOP - 9, "1×", "middle", 9, FAINT)
    axis.bottom(made, across, base, "times as fast as the reference", lambda v: number(v) + "×")
    for row, ((model, timing), gain, ends) in enumerate(zip(rows, gains, whiskers, strict=True)):
        y = TOP + row * ROW
        made.text(LEFT, y + 10, shortened(model, 40), size=10)
        colour = QUANTIZED if gain >= 1 else ACCENT
        made.box(LEFT, y + 15, across(gain) - LEFT, 10, colour)
        low, high = map(across, ends)
        made.line([(low, y + 20), (high, y + 20)], INK, 1.2)
        words = f"{times(gain)} · {duration(timing.seconds)}"
        words += " · slower" if gain < 1 else ""
        made.text(max(across(gain), high) + 6, y + 24, words, size=10)
    listed = "; ".join(
        f"{model}: {times(gain)}" for (model, _), gain in zip(rows, gains, strict=True)
    )
    return made.svg(f"Speed over the reference, {shape}", listed + ".")


def _whisker(timing: Timing) -> tuple[float, float]:
    gain = timing.speedup or 0.0
    half = timing.spread / 2
    if not (math.isfinite(half) and 0 <= half < timing.seconds):
        return gain, gain
    return gain * timing.seconds / (timing.seconds + half), gain * timing.seconds / (
        timing.seconds - half
    )
