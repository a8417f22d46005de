"""Weights before and after: a small picture for each quantized model.

The float weights are a filled area, the decoded ones an outline over it. The height is the share of
the weights in a bin. If zero is a level of every group, its bin would flatten all others: the axis
ends at so many times the tallest float bin, and a line of text says how tall the tallest bin is.
"""

import numpy as np

from lowbit.evaluation.study import Histogram
from lowbit.report.pictures import axis
from lowbit.report.pictures.axis import Scale
from lowbit.report.pictures.sheet import ACCENT, FAINT, FLOAT, QUANTIZED, WIDTH, Point, Sheet
from lowbit.report.wording import number
from lowbit.visible import shortened

HEIGHT, TOP, BASE, LEFT, RIGHT = 196.0, 44.0, 160.0, 42.0, WIDTH - 14.0
TALLEST = 2.2


def histogram(name: str, module: str, model: str, before: Histogram, after: Histogram) -> str:
    """The picture of `module` in `model`; both histograms hold weights."""
    made = Sheet(name, WIDTH, HEIGHT)
    edge, bin_width = before.edge, 2 * before.edge / len(before.counts)
    old, new = _shares(before, bin_width), _shares(after, bin_width)
    tallest, highest = float(old.max()), float(new.max())
    top = max(tallest, min(highest, TALLEST * tallest)) * 1.02
    across, up = Scale(-edge, edge, LEFT, RIGHT), Scale(0.0, top, BASE, TOP)
    made.area(_outline(old, before, across, up), FLOAT)
    made.line(_outline(new, after, across, up), QUANTIZED)
    axis.bottom(made, across, BASE, "value of a weight", lambda value: number(value, 3))
    axis.left(made, up, LEFT, lambda share: f"{number(100 * share, 2)} %")
    made.text(0, 12, shortened(model, 34), bold=True)
    made.box(0, 22, 10, 10, FLOAT)
    made.text(14, 31, "float", size=10)
    made.line([(48, 27), (62, 27)], QUANTIZED, 1.6)
    made.text(66, 31, "quantized", size=10)
    if highest > top:
        words = f"tallest bin: {number(highest / tallest, 2)}× float’s"
        made.text(WIDTH, 31, words, "end", 10, ACCENT)
    if before.outside + after.outside:
        words = f"beyond ±{number(edge, 2)}: {before.outside:,} float, {after.outside:,} quantized"
        made.text(WIDTH, 12, words, "end", 9, FAINT)
    return made.svg(
        f"Weights of {module} in {model}",
        f"Float weights as a grey area, the weights of {model} as a blue outline;"
        f" {_levels(after)} of {len(after.counts)} bins hold quantized weights,"
        f" {_levels(before)} of {len(before.counts)} hold float ones.",
    )


def drawable(histogram: Histogram | None) -> bool:
    """Whether there is anything to draw: some weights, and an axis to put them on."""
    return (
        histogram is not None
        and bool(np.isfinite(histogram.edge))
        and histogram.edge > 0
        and len(histogram.counts) > 0
        and sum(histogram.counts) > 0
    )


def _outline(shares: np.ndarray, of: Histogram, across: Scale, up: Scale) -> list[Point]:
    """The corners of the bars, from the axis up, over all of them and down."""
    edges = np.clip(np.linspace(-of.edge, of.edge, len(shares) + 1), across.low, across.high)
    heights = np.minimum(shares, up.high)
    x, y = np.repeat(edges, 2), np.concatenate([[0.0], np.repeat(heights, 2), [0.0]])
    return [(across(a), up(b)) for a, b in zip(x.tolist(), y.tolist(), strict=True)]


def _shares(histogram: Histogram, bin_width: float) -> np.ndarray:
    """The share of all weights in each bin, if the bins were so wide."""
    counts = np.asarray(histogram.counts, dtype=float)
    own = 2 * histogram.edge / len(counts)
    return counts / (counts.sum() + histogram.outside) * (bin_width / own)


def _levels(histogram: Histogram) -> int:
    return sum(count > 0 for count in histogram.counts)
