"""The weights of one module before and after: a small picture for each quantized model.

Both are densities, so that bins of different widths compare. The float weights are a filled area,
the decoded ones an outline over it. Where zero is a level of every group its bin would flatten all
others: the axis ends at so many times the tallest float bin, and a line of text says how tall the
tallest bin is.
"""

import numpy as np

from lowbit.evaluation.study import Histogram
from lowbit.report.pictures.canvas import (
    ACCENT,
    FAINT,
    FLOAT,
    QUANTIZED,
    RULE,
    WIDTH,
    axes,
    drawing,
    figure,
    to_svg,
)
from lowbit.report.visible import shortened
from lowbit.report.wording import number

HEIGHT = 176
TALLEST = 2.2


@drawing
def histogram(name: str, module: str, model: str, before: Histogram, after: Histogram) -> str:
    """The picture of `module` in `model`; both histograms hold weights."""
    made = figure(WIDTH, HEIGHT)
    plot = axes(made, 12, 26, WIDTH - 24, HEIGHT - 26 - 40)
    edge = before.edge
    (old, old_bins), (new, new_bins) = _density(before), _density(after)
    top = TALLEST * float(old.max()) or 1.0
    plot.stairs(old, old_bins, fill=True, color=FLOAT, lw=0)
    plot.stairs(np.minimum(new, 1.05 * top), new_bins, color=QUANTIZED, lw=1.2)
    plot.axhline(0, color=RULE, lw=1)
    plot.set(xlim=(-edge, edge), ylim=(0, top), yticks=[])
    plot.set_xlabel("value of a weight", labelpad=2)
    plot.locator_params(axis="x", nbins=5)
    plot.spines["left"].set_visible(False)
    made.text(12 / WIDTH, 1 - 15 / HEIGHT, shortened(model, 34), weight="bold")
    tallest = float(new.max()) / float(old.max()) if old.max() else 0.0
    if tallest > TALLEST:
        words = f"tallest bin: {number(tallest, 2)}× float's"
        at = WIDTH - 12, HEIGHT - 28
        plot.text(*at, words, transform=None, ha="right", va="top", color=ACCENT, size=10)
    beyond = before.outside + after.outside
    if beyond:
        words = f"beyond ±{number(edge, 2)}: {before.outside:,} float, {after.outside:,} quantized"
        made.text(1 - 12 / WIDTH, 1 - 15 / HEIGHT, words, ha="right", size=9, color=FAINT)
    description = (
        f"Float weights as a grey area, the weights of {model} as a blue outline;"
        f" {_levels(after)} of {len(after.counts)} bins hold quantized weights,"
        f" {_levels(before)} of {len(before.counts)} hold float ones."
    )
    return to_svg(made, name, f"Weights of {module} in {model}", description)


def drawable(histogram: Histogram | None) -> bool:
    """Whether there is anything to draw: some weights, and an axis to put them on."""
    return (
        histogram is not None
        and bool(np.isfinite(histogram.edge))
        and histogram.edge > 0
        and len(histogram.counts) > 0
        and sum(histogram.counts) > 0
    )


def _density(histogram: Histogram) -> tuple[np.ndarray, np.ndarray]:
    counts = np.asarray(histogram.counts, dtype=float)
    bins = np.linspace(-histogram.edge, histogram.edge, len(counts) + 1)
    return counts / (counts.sum() + histogram.outside) / np.diff(bins), bins


def _levels(histogram: Histogram) -> int:
    return sum(count > 0 for count in histogram.counts)
