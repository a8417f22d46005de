"""How often each expert of a mixture was chosen: a row for each layer, a cell for each expert.

A cell's colour is how many times more often than by chance, viridis from never, dark, to twice and
more, light. Experts beyond a row's width go on in the next line of the row.
"""

from collections.abc import Mapping, Sequence

from matplotlib import colormaps

from lowbit.report.pictures.canvas import FAINT, RULE, WIDTH, Sheet, drawing, to_svg
from lowbit.report.wording import number
from lowbit.visible import shortened

CELL, GAP, TITLE = 10.0, 6.0, 16.0
ACROSS = 32  # experts side by side
MOST = 2.0  # times chance: the light end
COLOURS = colormaps["viridis"]


@drawing
def chosen(name: str, model: str, counts: Mapping[str, Sequence[int]]) -> str:
    """The picture of one model. counts: for each layer by name, how many tokens chose each of its
    experts."""
    lines = {layer: -(-len(of) // ACROSS) for layer, of in counts.items()}
    height = sum(TITLE + CELL * n + GAP for n in lines.values()) + 20
    made = Sheet(WIDTH, height)
    y = 0.0
    for layer, of in counts.items():
        made.text(0, y + 11, shortened(layer, 52), color=FAINT, size=10)
        y += TITLE
        for i, times in enumerate(of):
            x, row = CELL * (i % ACROSS), CELL * (i // ACROSS)
            colour = COLOURS(min(1.0, over_chance(times, of) / MOST))
            made.box(x, y + row, CELL - 1, CELL - 1, facecolor=colour, edgecolor=RULE, lw=0.3)
        y += CELL * lines[layer] + GAP
    made.text(0, y + 11, f"dark: never; light: {number(MOST)} × chance and more", size=10)
    return to_svg(made.figure, name, f"Experts chosen in {model}", _summary(counts))


def over_chance(times: int, of: Sequence[int]) -> float:
    """How many times as often as each of `of` would be chosen if all were alike."""
    whole = sum(of)
    return times * len(of) / whole if whole else 0.0


def _summary(counts: Mapping[str, Sequence[int]]) -> str:
    never = sum(times == 0 for of in counts.values() for times in of)
    everything = sum(map(len, counts.values()))
    most = max((over_chance(max(of), of) for of in counts.values()), default=0.0)
    return (
        f"{everything} experts in {len(counts)} layers; {never} were never chosen; the most"
        f" frequent one {number(most, 2)} times as often as by chance."
    )
