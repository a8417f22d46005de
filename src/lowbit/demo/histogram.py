"""A picture of one weight before and after: a panel per recipe."""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from lowbit.errors import InputError, UsageError

BINS = 151  # odd, so that zero is in the middle of one
# The axis ends where all but this share of the weights are inside.
OUTSIDE = 1e-3
# Where zero is a level of every group its bin would flatten all others: the axis ends at so many
# times the tallest float bin, and a line of text says how tall the tallest bin is.
TALLEST = 2.2
LEVELS_BELOW = 0.1  # the strip of levels below zero, as a share of the height above
FLOAT, QUANTIZED, LEVELS = "#b8c0cc", "#0b5fa5", "#c2410c"


@dataclass(frozen=True)
class Panel:
    """One recipe: its title, the decoded weight, and how many inputs of a row share a scale."""

    title: str
    decoded: Float[Tensor, "out in"]
    group_size: int


def check_picture(path: Path) -> None:
    """Raises UsageError where a picture cannot be written to `path`: asked before the work."""
    if path.suffix.lower() != ".png":
        raise UsageError(f"the picture is a PNG file: {path} must end in .png")
    if path.is_dir() or not path.parent.is_dir():
        raise UsageError(f"the picture cannot be written to {path}: no such folder")


def draw(path: Path, weight: Float[Tensor, "out in"], title: str, panels: list[Panel]) -> None:
    """Histograms of the float weight and of each decoded one, as a PNG. Raises InputError."""
    figure = Figure(figsize=(12, 8), layout="constrained")
    figure.suptitle(title, fontsize=15)
    values = weight.numpy().ravel()
    edge = float(np.quantile(np.abs(values), 1 - OUTSIDE))
    bins = np.linspace(-edge, edge, BINS + 1)
    top = TALLEST * np.histogram(values, bins)[0].max()
    axes = figure.subplots(-(-len(panels) // 2), 2, sharex=True, sharey=True, squeeze=False)
    for axis, panel in zip(axes.flat, panels, strict=True):
        axis.hist(values, bins, color=FLOAT, label="float32")
        _panel(axis, panel, bins, top)
    axes[0, 0].set_ylim(-LEVELS_BELOW * top, top)
    axes[0, 0].yaxis.set_major_formatter("{x:,.0f}")
    axes[0, 0].legend(loc="upper left", frameon=False)
    figure.supxlabel("value of a weight", fontsize=12)
    figure.supylabel("weights in a bin", fontsize=12)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=120)
    try:
        path.write_bytes(drawn.getvalue())
    except OSError as error:
        raise InputError(f"the picture {path} cannot be written: {error.strerror}") from error


def _panel(axis: Axes, panel: Panel, bins: np.ndarray, top: float) -> None:
    decoded = panel.decoded.numpy()
    count = np.histogram(decoded, bins)[0]
    axis.stairs(count, bins, color=QUANTIZED, label="quantized and decoded")
    if count.max() > top:
        text = f"tallest bin: {count.max():,}"
        axis.text(1, 0.97, text, color=QUANTIZED, ha="right", va="top", transform=axis.transAxes)
    levels = np.unique(decoded[0, : panel.group_size])
    height = np.full_like(levels, -LEVELS_BELOW / 2 * top)
    axis.plot(levels, height, "|", color=LEVELS, ms=11, label="levels used with one scale")
    axis.axhline(0, color="black", lw=0.8)
    axis.set_title(panel.title, fontsize=11)
    axis.spines[["top", "right", "bottom"]].set_visible(False)
