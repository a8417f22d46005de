"""A matplotlib figure as an SVG that can stand in a page among others.

One unit is one CSS pixel. Text stays text, in the page's font: it can be searched and read aloud.
It is laid out with DejaVu Sans, which is wider than the fonts of browsers, so nothing collides that
did not here. Colours of the theme are written as CSS variables, so that a dark page has light ink.
The same figure gives the same bytes; every id starts with the picture's own name.
"""

import io
import re
import warnings
from typing import Any
from xml.etree import ElementTree

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Polygon, Rectangle
from matplotlib.transforms import Affine2D
from numpy.typing import ArrayLike

from lowbit.visible import visible

SVG = "http://www.w3.org/2000/svg"
# Metadata, and a style sheet that would reach the whole page.
UNWANTED = {f"{{{SVG}}}metadata", f"{{{SVG}}}style"}
HREF = "{http://www.w3.org/1999/xlink}href"
# The narrowest screen leaves about this much: pictures are drawn at the size they have there.
WIDTH = 368
FONT = 11.0
# Width of a character of DejaVu Sans, as a share of the font size; few are wider than this.
EM = 0.62

# What is drawn in one of these takes its colour from the page; the numbers themselves are never
# seen. The CSS has a variable of each name.
THEME = {
    "ink": "#0a0b01",
    "faint": "#0a0b02",
    "rule": "#0a0b03",
    "float": "#0a0b04",
    "quantized": "#0a0b05",
    "accent": "#0a0b06",
    "paper": "#0a0b07",
    "kept": "#0a0b08",
}
INK, FAINT, RULE = THEME["ink"], THEME["faint"], THEME["rule"]
FLOAT, QUANTIZED, ACCENT = THEME["float"], THEME["quantized"], THEME["accent"]
PAPER, KEPT = THEME["paper"], THEME["kept"]

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "lowbit",
    "text.parse_math": False,
    "font.family": "DejaVu Sans",
    "font.size": FONT,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": RULE,
    "axes.unicode_minus": True,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": FAINT,
    "ytick.labelcolor": FAINT,
    "xtick.labelsize": FONT - 1,
    "ytick.labelsize": FONT - 1,
    "hatch.linewidth": 0.8,
}


# The style of the pictures, whatever the user's own is: decorates a function that draws one.
drawing = style.context(["default", STYLE])


def figure(width: float, height: float) -> Figure:
    made = Figure(figsize=(width / 72, height / 72), dpi=72)
    made.patch.set_visible(False)
    return made


def axes(made: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Axes at this place in pixels, counted from the top left."""
    w, h = made.get_size_inches() * 72
    placed = made.add_axes((left / w, 1 - (top + height) / h, width / w, height / h))
    placed.patch.set_visible(False)
    placed.spines[["top", "right"]].set_visible(False)
    return placed


class Sheet:
    """A figure to draw on in pixels from the top left. It has no axes: those take most of the time
    of a small picture."""

    def __init__(self, width: float, height: float) -> None:
        self.figure = figure(width, height)
        self.pixels = Affine2D().scale(1, -1).translate(0, height)

    def text(self, x: float, y: float, words: str, **style: Any) -> None:
        """`y` is the line that the letters stand on."""
        self.figure.text(x, y, words, transform=self.pixels, va="baseline", **style)

    def box(self, x: float, y: float, width: float, height: float, **style: Any) -> None:
        box = Rectangle((x, y), width, height, transform=self.pixels, **{"lw": 0, **style})
        self.figure.add_artist(box)

    def line(self, x: ArrayLike, y: ArrayLike, **style: Any) -> None:
        self.figure.add_artist(Line2D(np.asarray(x), np.asarray(y), transform=self.pixels, **style))

    def area(self, points: np.ndarray, **style: Any) -> None:
        self.figure.add_artist(Polygon(points, transform=self.pixels, lw=0, **style))


def text_width(words: str, size: float = FONT) -> float:
    return len(words) * size * EM


def to_svg(made: Figure, name: str, title: str, description: str) -> str:
    """`name` makes the ids of this picture its own; title and description are its text for those
    who do not see it."""
    drawn = io.StringIO()
    with warnings.catch_warnings():
        # The browser has fonts for the scripts that DejaVu Sans lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        made.savefig(drawn, format="svg", metadata={"Date": None})
    root = ElementTree.fromstring(drawn.getvalue())
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in UNWANTED:
                parent.remove(child)
    referred = _referred(root)
    for element in root.iter():
        _rewrite(element, name, referred)
    view = root.get("viewBox", "")
    root.attrib.clear()
    root.attrib.update(
        {
            "class": "picture",
            "role": "img",
            "viewBox": view,
            "aria-labelledby": f"{name}-title {name}-desc",
        }
    )
    for position, (tag, words) in enumerate((("title", title), ("desc", description))):
        label = ElementTree.Element(tag, {"id": f"{name}-{tag}"})
        label.text = visible(words)
        root.insert(position, label)
    return ElementTree.tostring(root, encoding="unicode", short_empty_elements=False)


def _referred(root: ElementTree.Element) -> set[str]:
    """The ids that something in the picture points at; the others only fill the page."""
    links = {element.get(HREF, "").removeprefix("#") for element in root.iter()}
    values = (value for element in root.iter() for value in element.attrib.values())
    return links | {name for value in values for name in re.findall(r"url\(#([^)]*)\)", value)}


_COLOURS = {code: f"var(--{name})" for name, code in THEME.items()}
_COLOUR = re.compile("|".join(_COLOURS))


def _rewrite(element: ElementTree.Element, name: str, referred: set[str]) -> None:
    element.tag = element.tag.removeprefix(f"{{{SVG}}}")
    element.tail = None
    if element.text is not None and not element.text.strip():
        element.text = None
    own = element.attrib.pop("id", None)
    if own in referred:
        element.set("id", f"{name}-{own}")
    link = element.attrib.pop(HREF, None)
    if link is not None:
        element.set("href", f"#{name}-{link.removeprefix('#')}")
    for key, value in element.attrib.items():
        value = value.replace("url(#", f"url(#{name}-")
        if key in ("style", "fill"):
            value = re.sub(r"font-family:[^;]*;? ?", "", value)
            value = _COLOUR.sub(lambda match: _COLOURS[match[0]], value)
        if key == "d":
            value = " ".join(value.split())
        element.set(key, value)
