"""How often each expert of a mixture was chosen: a row for each layer, a cell for each expert.

A cell's colour is how many times more often than by chance, viridis from never, dark, to twice and
more, light. Cells of one shade are one shape: a mixture has thousands of them.
"""

from collections.abc import Mapping, Sequence

from lowbit.report.pictures.sheet import FAINT, WIDTH, Sheet
from lowbit.report.pictures.viridis import colour
from lowbit.report.places import place
from lowbit.report.wording import number
from lowbit.visible import shortened

ROW, LABEL, WIDEST = 9.0, 24.0, 20.0  # pixels: a row, a layer's number, the widest cell
SHADES = 17
MOST = 2.0  # times chance: the lightest


def chosen(name: str, model: str, counts: Mapping[str, Sequence[int]]) -> str:
    """The picture of one model. counts: for each layer by name, how many tokens chose each of its
    experts."""
    across = max(map(len, counts.values()), default=1)
    wide = min(WIDEST, (WIDTH - LABEL) / across)
    made = Sheet(name, WIDTH, ROW * len(counts) + 46)
    cells: dict[int, list[tuple[float, float, float, float]]] = {}
    stacks = []
    for row, (layer, of) in enumerate(counts.items()):
        at = place(layer)
        stacks.append(f"{at.stack}.*.{at.kind}" if at.layer is not None else layer)
        words = str(row if at.layer is None else at.layer)
        made.text(LABEL - 4, 14 + ROW * (row + 1) - 1, words, "end", 8, FAINT)
        for i, times in enumerate(of):
            shade = round(min(1.0, over_chance(times, of) / MOST) * (SHADES - 1))
            cells.setdefault(shade, []).append((LABEL + i * wide, 14 + ROW * row, wide, ROW))
    made.text(0, 9, shortened(", ".join(dict.fromkeys(stacks)), 60), size=9, colour=FAINT)
    for shade, boxes in sorted(cells.items()):
        made.cells(boxes, colour(shade / (SHADES - 1)))
    _scale(made, 22 + ROW * len(counts))
    return made.svg(f"Experts chosen in {model}", _summary(counts))


def _scale(made: Sheet, y: float) -> None:
    """What the shades mean, below `y`."""
    step = (WIDTH - LABEL) / SHADES
    for shade in range(SHADES):
        made.box(LABEL + shade * step, y, step + 0.5, 7, colour(shade / (SHADES - 1)))
    for share, words, side in (
        (0.0, "never", "start"),
        (0.5, "as by chance", "middle"),
        (1.0, f"{number(MOST)} × and more", "end"),
    ):
        x = LABEL + share * (WIDTH - LABEL)
        made.text(x, y + 19, words, side, 9, FAINT)


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
