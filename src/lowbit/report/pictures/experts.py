"""How often each expert of a mixture was chosen: a row for each layer, a cell for each expert.

A cell's colour is how many times more often than by chance, viridis from never, dark, to twice and
more, light. Cells of one shade are one shape: a mixture has thousands of them.
"""

from collections.abc import Mapping, Sequence

from matplotlib import colormaps
from matplotlib.patches import PathPatch
from matplotlib.path import Path

from lowbit.report.pictures.canvas import FAINT, RULE, WIDTH, Sheet, drawing, to_svg
from lowbit.report.places import place
from lowbit.report.wording import number
from lowbit.visible import shortened

ROW, LABEL, WIDEST = 9.0, 24.0, 20.0  # pixels: a row, a layer's number, the widest cell
SHADES = 17
MOST = 2.0  # times chance: the lightest
COLOURS = colormaps["viridis"]


@drawing
def chosen(name: str, model: str, counts: Mapping[str, Sequence[int]]) -> str:
    """The picture of one model. counts: for each layer by name, how many tokens chose each of its
    experts."""
    across = max(map(len, counts.values()), default=1)
    wide = min(WIDEST, (WIDTH - LABEL) / across)
    made = Sheet(WIDTH, ROW * len(counts) + 46)
    cells: dict[int, list[Path]] = {}
    stacks = []
    for row, (layer, of) in enumerate(counts.items()):
        at = place(layer)
        stacks.append(f"{at.stack}.*.{at.kind}" if at.layer is not None else layer)
        words = str(row if at.layer is None else at.layer)
        made.text(LABEL - 4, 14 + ROW * (row + 1) - 1, words, ha="right", size=8, color=FAINT)
        for i, times in enumerate(of):
            shade = round(min(1.0, over_chance(times, of) / MOST) * (SHADES - 1))
            cells.setdefault(shade, []).append(_box(LABEL + i * wide, 14 + ROW * row, wide, ROW))
    made.text(0, 9, shortened(", ".join(dict.fromkeys(stacks)), 60), size=9, color=FAINT)
    for shade, boxes in sorted(cells.items()):
        shape = PathPatch(
            Path.make_compound_path(*boxes),
            transform=made.pixels,
            facecolor=COLOURS(shade / (SHADES - 1)),
            edgecolor=RULE,
            lw=0.2,
        )
        made.figure.add_artist(shape)
    _scale(made, 22 + ROW * len(counts))
    return to_svg(made.figure, name, f"Experts chosen in {model}", _summary(counts))


def _box(x: float, y: float, wide: float, high: float) -> Path:
    corners = [(x, y), (x + wide, y), (x + wide, y + high), (x, y + high), (x, y)]
    return Path(corners, closed=True)


def _scale(made: Sheet, y: float) -> None:
    """What the shades mean, below `y`."""
    step = (WIDTH - LABEL) / SHADES
    for shade in range(SHADES):
        colour = COLOURS(shade / (SHADES - 1))
        made.box(LABEL + shade * step, y, step + 0.5, 7, facecolor=colour)
    for share, words, side in (
        (0.0, "never", "left"),
        (0.5, "as by chance", "center"),
        (1.0, f"{number(MOST)} × and more", "right"),
    ):
        x = LABEL + share * (WIDTH - LABEL)
        made.text(x, y + 19, words, ha=side, size=9, color=FAINT)


def over_chance(times: int, of: Sequence[int]) -> float:
    """How many times as often as each of `of` would be chosen if all were alike."""
    whole = sum(of)
    return times * len(of) / whole if whole else 0.0


def _summary(counts: Mapping[str, Sequence[int]]) -> str:
    never = sum(times == 0 for of in counts.values() for times in of)
    everything = sum(map(len, counts.values()))
    most = max((over_chance(max(of), of) for of in counts.values() if of), default=0.0)
    return (
        f"{everything} experts in {len(counts)} layers; {never} were never chosen; the most"
        f" frequent one {number(most, 2)} times as often as by chance."
    )
