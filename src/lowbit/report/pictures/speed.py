"""Speed over the reference: a bar for each model and shape, 1× as a line, spread as a whisker."""

import math
from collections.abc import Sequence

from lowbit.evaluation.study import Timing
from lowbit.report.pictures.canvas import (
    ACCENT,
    FAINT,
    INK,
    QUANTIZED,
    RULE,
    WIDTH,
    Sheet,
    drawing,
    to_svg,
)
from lowbit.report.wording import duration, times
from lowbit.visible import shortened

ROW, VALUE, TOP = 34.0, 150.0, 44.0


def comparable(timing: Timing | None) -> bool:
    """Whether there is a speed-up to draw."""
    gain = timing.speedup if timing is not None and timing.seconds > 0 else None
    return gain is not None and math.isfinite(gain) and gain > 0


@drawing
def bars(name: str, shape: str, rows: Sequence[tuple[str, Timing]]) -> str:
    """The picture of one shape; every timing is `comparable`. Whiskers reach from the speed-up at
    the upper quartile of the seconds to that at the lower, taken as half the spread either way."""
    made = Sheet(WIDTH, TOP + ROW * len(rows) + 4)
    gains = [timing.speedup or 0.0 for _, timing in rows]
    unit = (WIDTH - VALUE) / max(1.0, *gains)
    made.text(0, 14, shortened(shape, 50), weight="bold")
    for row, ((model, timing), gain) in enumerate(zip(rows, gains, strict=True)):
        y = TOP + row * ROW
        made.text(0, y + 10, shortened(model, 40), size=10)
        made.box(0, y + 15, gain * unit, 10, facecolor=QUANTIZED if gain >= 1 else ACCENT)
        low, high = _whisker(timing)
        made.line([low * unit, high * unit], [y + 20, y + 20], color=INK, lw=1.2)
        words = f"{times(gain)} · {duration(timing.seconds)}"
        words += " · slower" if gain < 1 else ""
        made.text(max(gain, high) * unit + 6, y + 24, words, size=10)
    made.line([unit, unit], [TOP - 6, TOP + ROW * len(rows)], color=RULE, lw=1.2, ls=(0, (3, 3)))
    made.text(unit, TOP - 9, "1×", ha="center", size=9, color=FAINT)
    listed = "; ".join(
        f"{model}: {times(gain)}" for (model, _), gain in zip(rows, gains, strict=True)
    )
    return to_svg(made.figure, name, f"Speed over the reference, {shape}", listed + ".")


def _whisker(timing: Timing) -> tuple[float, float]:
    gain = timing.speedup or 0.0
    half = timing.spread / 2
    if not (math.isfinite(half) and 0 <= half < timing.seconds):
        return gain, gain
    return gain * timing.seconds / (timing.seconds + half), gain * timing.seconds / (
        timing.seconds - half
    )
