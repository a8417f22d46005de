"""A picture: shapes and words, written as an SVG that can stand in a page among others.

One unit is one CSS pixel, counted from the top left. Text stays text, in the page's font: it can be
searched and read aloud. Colours are CSS variables of the page, so that a dark page has light ink.
"""

from collections.abc import Sequence

from markupsafe import Markup

from lowbit.visible import visible

# The narrowest screen leaves about this much: pictures are drawn at the size they have there.
WIDTH = 368
FONT = 11.0
# Width of a character as a share of the font size. Few characters of a browser's font are wider.
EM = 0.62

INK, FAINT, RULE, PAPER = "var(--ink)", "var(--faint)", "var(--rule)", "var(--paper)"
FLOAT, QUANTIZED, ACCENT = "var(--float)", "var(--quantized)", "var(--accent)"

Point = tuple[float, float]

PICTURE = Markup(
    '<svg class="picture" role="img" viewBox="0 0 {width} {height}"'
    ' aria-labelledby="{name}-title {name}-desc">'
    '<title id="{name}-title">{title}</title><desc id="{name}-desc">{description}</desc>'
    "{definitions}<g>{shapes}</g></svg>"
)
TEXT = Markup('<text x="{x}" y="{y}" text-anchor="{anchor}" style="{style}">{words}</text>')
BOX = Markup('<rect x="{x}" y="{y}" width="{width}" height="{height}" style="{style}"></rect>')
PATH = Markup('<path d="{steps}" style="{style}"></path>')
MARK = Markup(
    '<path class="point" transform="translate({x} {y})" d="{steps}" style="{style}"></path>'
)
HATCH = Markup(
    '<defs><pattern id="{name}-hatch" width="5" height="5" patternUnits="userSpaceOnUse">'
    '<rect width="5" height="5" style="fill: var(--kept)"></rect>'
    '<path d="M-1 1L1 -1M0 5L5 0M4 6L6 4" style="stroke: var(--rule); stroke-width: .8"></path>'
    "</pattern></defs>"
)


class Sheet:
    """What is drawn on it comes out as one SVG. `name` starts each id, so ids differ in a page."""

    def __init__(self, name: str, width: float, height: float) -> None:
        self.name, self.width, self.height = name, width, height
        self._shapes: list[Markup] = []
        self._hatched = False

    @property
    def hatch(self) -> str:
        """The fill of slanted lines."""
        self._hatched = True
        return f"url(#{self.name}-hatch)"

    def text(
        self,
        x: float,
        y: float,
        words: str,
        anchor: str = "start",
        size: float = FONT,
        colour: str = INK,
        bold: bool = False,
    ) -> None:
        """`y` is the line that the letters stand on; `anchor` is start, middle or end."""
        style = f"font-size: {_short(size)}px; fill: {colour}" + "; font-weight: 700" * bold
        self._add(TEXT, x=x, y=y, anchor=anchor, style=style, words=visible(words))

    def box(
        self, x: float, y: float, width: float, height: float, fill: str, edge: str = "none"
    ) -> None:
        self._add(BOX, x=x, y=y, width=width, height=height, style=f"fill: {fill}; stroke: {edge}")

    def line(
        self, points: Sequence[Point], colour: str, width: float = 1.0, dashes: str = "none"
    ) -> None:
        style = f"fill: none; stroke: {colour}; stroke-width: {width}; stroke-dasharray: {dashes}"
        self._add(PATH, steps=_steps(points), style=style)

    def area(self, points: Sequence[Point], fill: str) -> None:
        self._add(PATH, steps=_steps(points) + "z", style=f"fill: {fill}")

    def cells(self, boxes: Sequence[tuple[float, float, float, float]], fill: str) -> None:
        """Boxes (x, y, width, height) of one colour, as one shape."""
        steps = "".join(
            f"M{_short(x)} {_short(y)}h{_short(wide)}v{_short(high)}h{_short(-wide)}z"
            for x, y, wide, high in boxes
        )
        self._add(PATH, steps=steps, style=f"fill: {fill}; stroke: {RULE}; stroke-width: .2")

    def mark(self, x: float, y: float, steps: str, fill: str, edge: str) -> None:
        """A shape around (x, y); `steps` is its path around (0, 0)."""
        style = f"fill: {fill}; stroke: {edge}; stroke-width: 1.6"
        self._add(MARK, x=x, y=y, steps=steps, style=style)

    def svg(self, title: str, description: str) -> str:
        """`title` and `description` are for those who do not see the picture."""
        return PICTURE.format(
            name=self.name,
            width=_short(self.width),
            height=_short(self.height),
            title=visible(title),
            description=visible(description),
            definitions=HATCH.format(name=self.name) if self._hatched else "",
            shapes=Markup("").join(self._shapes),
        )

    def _add(self, template: Markup, **values: str | float) -> None:
        written = {k: v if isinstance(v, str) else _short(v) for k, v in values.items()}
        self._shapes.append(template.format(**written))


def text_width(words: str, size: float = FONT) -> float:
    return len(words) * size * EM


def _short(value: float) -> str:
    """Hundredths of a pixel are enough."""
    text = f"{value:.2f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def _steps(points: Sequence[Point]) -> str:
    """A path through the points; a step along one axis names only the other coordinate."""
    written = [(_short(x), _short(y)) for x, y in points]
    steps = [f"M{written[0][0]} {written[0][1]}"]
    for (x0, y0), (x, y) in zip(written, written[1:], strict=False):
        steps.append(f"V{y}" if x == x0 else f"H{x}" if y == y0 else f"L{x} {y}")
    return "".join(steps)
