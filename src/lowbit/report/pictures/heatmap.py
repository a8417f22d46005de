"""Where the error is: signal-to-noise ratio in dB of every module, layers × kinds.

SNR = −10·log10( Σ(w − ŵ)² / Σw² ), so 6 dB more is one bit more of a uniform grid. All maps of a
page share one colour scale, viridis, which the colour-blind read as others do; cells wide enough
carry their number. A module kept in float is hatched, one whose error is not known has a question
mark, one that the model does not have is left empty. Many layers go in rows of twelve.
"""

import math
from collections.abc import Sequence

from lowbit.evaluation.study import ModuleRecord
from lowbit.report.pictures.sheet import FAINT, INK, RULE, WIDTH, Sheet, text_width
from lowbit.report.pictures.viridis import colour, viridis
from lowbit.report.places import Stack, arrange
from lowbit.report.wording import decibels, number
from lowbit.visible import shortened

CELL, LABEL, SMALL = 20.0, 118.0, 9.0
ACROSS = 12  # layers side by side: more would leave cells too narrow for a number at 400 px
MOST_ROWS = 40  # of one block, and of modules without a layer
WIDEST = 34.0  # a cell
STEP = 5  # the colour scale starts and ends on a multiple of this
NARROWEST = 20  # dB from end to end: on a shorter scale noise would look like a pattern


def scale(models: Sequence[Sequence[ModuleRecord]]) -> tuple[float, float] | None:
    """The ends in dB of the colour scale that all maps share; None where no error is known."""
    ratios = [decibels(module.relative_error) for modules in models for module in modules]
    known = [ratio for ratio in ratios if ratio is not None and math.isfinite(ratio)]
    if not known:
        exact = any(ratio == math.inf for ratio in ratios if ratio is not None)
        return (0.0, float(NARROWEST)) if exact else None
    low, high = STEP * math.floor(min(known) / STEP), STEP * math.ceil(max(known) / STEP)
    return float(min(low, high - NARROWEST)), float(high)


def legend(name: str, ends: tuple[float, float]) -> str:
    """The colour scale, and the cells that are not on it."""
    made = Sheet(name, WIDTH, 64)
    low, high = ends
    left, width, steps = 12.0, WIDTH - 36.0, 60
    for i in range(steps):
        # Each reaches under all that follow, so that no seam shows between two.
        at, rest = left + i * width / steps, width * (1 - i / steps)
        made.box(at, 4, rest, 10, colour(i / (steps - 1)))
    for tick in _ticks(low, high):
        words = number(tick) + (" dB" if tick == high else "")
        x = left + width * (tick - low) / (high - low)
        made.text(x, 27, words, "middle", 10, FAINT)
    for x, value, words in (
        (left, None, "kept in float"),
        (left + 124, math.nan, "error not known"),
        (left + 256, math.inf, "exact"),
    ):
        _cell(made, x, 42, CELL, value, ends)
        made.text(x + CELL + 6, 55, words, size=10)
    return made.svg("Colour scale", f"From {low:.0f} dB, dark, to {high:.0f} dB, light.")


def _ticks(low: float, high: float) -> list[float]:
    """At most eight, from `low` on, and `high`."""
    step = STEP * math.ceil((high - low) / STEP / 7)
    inner = [low + i * step for i in range(math.ceil((high - low) / step))]
    return [value for value in inner if high - value >= 0.7 * step] + [high]


def heatmap(
    name: str, model: str, modules: Sequence[ModuleRecord], ends: tuple[float, float]
) -> str:
    """The map of one model; `ends` is the shared scale."""
    cells = {module.name: _value(module) for module in modules}
    stacks, alone = arrange(cells)
    blocks = [
        (stack, list(stack.names)[:MOST_ROWS], stack.layers[i : i + ACROSS])
        for stack in stacks
        for i in range(0, len(stack.layers), ACROSS)
    ]
    shown = alone[:MOST_ROWS]
    height = sum(46 + CELL * len(kinds) for _, kinds, _ in blocks) + 8
    height += (30 + CELL * len(shown)) if shown else 0
    made = Sheet(name, WIDTH, height)
    y = 0.0
    for stack, kinds, layers in blocks:
        y = _block(made, y, stack, kinds, layers, cells, ends)
    if shown:
        made.text(0, y + 15, "outside the layers", colour=FAINT, size=10)
        for row, module in enumerate(shown):
            top = y + 22 + row * CELL
            # One cell each, so the name may be as long as the line.
            made.text(CELL + 8, top + 14, shortened(module, 48), size=10)
            _cell(made, 0, top, CELL, cells[module], ends)
    return made.svg(f"Signal-to-noise ratio by module in {model}", _summary(modules))


def left_out(modules: Sequence[ModuleRecord]) -> int:
    """How many modules a map of these has no room for."""
    stacks, alone = arrange(module.name for module in modules)
    rows = [len(row) for stack in stacks for row in list(stack.names.values())[MOST_ROWS:]]
    return sum(rows) + len(alone[MOST_ROWS:])


def _value(module: ModuleRecord) -> float | None:
    """The module's ratio; None for one in float, NaN for one whose error is not known."""
    ratio = decibels(module.relative_error)
    return math.nan if ratio is None and module.kernel else ratio


def _block(
    made: Sheet,
    y: float,
    stack: Stack,
    kinds: list[str],
    layers: tuple[int, ...],
    cells: dict[str, float | None],
    ends: tuple[float, float],
) -> float:
    """Draw it below `y`, and return where it ends."""
    wide = min((WIDTH - LABEL) / min(len(stack.layers), ACROSS), WIDEST)
    made.text(0, y + 15, shortened(stack.name or "layers", 40), colour=FAINT, size=10)
    for column, layer in enumerate(layers):
        words = str(layer)
        size = min(SMALL, SMALL * wide / text_width(words, SMALL))
        made.text(LABEL + (column + 0.5) * wide, y + 31, words, "middle", size, FAINT)
    for row, kind in enumerate(kinds):
        top = y + 36 + row * CELL
        words = shortened(kind, 18) or "(itself)"
        made.text(LABEL - 6, top + 14, words, "end", 10)
        for column, layer in enumerate(layers):
            if layer in stack.names[kind]:
                value = cells[stack.names[kind][layer]]
                _cell(made, LABEL + column * wide, top, wide, value, ends)
    return y + 46 + CELL * len(kinds)


def _cell(
    made: Sheet, x: float, y: float, wide: float, value: float | None, ends: tuple[float, float]
) -> None:
    if value is None:
        made.box(x, y, wide - 1, CELL - 1, made.hatch, RULE)
        return
    if math.isnan(value):
        made.box(x, y, wide - 1, CELL - 1, "none", RULE)
        ink, words = INK, "?"
    else:
        share = (value - ends[0]) / (ends[1] - ends[0])
        made.box(x, y, wide - 1, CELL - 1, colour(share), RULE)
        # Black or white, whichever the eye tells better from the cell.
        red, green, blue = ((part / 255) ** 2.2 for part in viridis(share))
        ink = "#010101" if 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.179 else "#ffffff"
        words = "∞" if math.isinf(value) and value > 0 else f"{value:.0f}".replace("-", "−")
    if wide >= 16:
        made.text(x + (wide - 1) / 2, y + 13.2, words, "middle", SMALL, ink)


def _summary(modules: Sequence[ModuleRecord]) -> str:
    known = [(r, m.name) for m in modules if (r := _value(m)) is not None and not math.isnan(r)]
    kept = sum(_value(module) is None for module in modules)
    if not known:
        return f"No error is known; {kept} modules are kept in float."
    (low, worst), (high, best) = min(known), max(known)
    return (
        f"{len(known)} quantized modules from {number(low, 3)} dB ({worst}) to"
        f" {number(high, 3)} dB ({best}); {kept} modules are kept in float."
    )
