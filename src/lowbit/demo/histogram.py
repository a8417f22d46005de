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

BINS = 150
# The axis ends where all but this share of the weights are inside.
OUTSIDE = 1e-3
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
    figure = Figure(figsize=(12, 7.5), layout="constrained")
    figure.suptitle(title, fontsize=15)
    values = weight.numpy()
    edge = float(np.quantile(np.abs(values), 1 - OUTSIDE))
    bins = np.linspace(-edge, edge, BINS + 1).tolist()
    axes = figure.subplots(-(-len(panels) // 2), 2, sharex=True, sharey=True, squeeze=False)
    for axis, panel in zip(axes.flat, panels, strict=True):
        _panel(axis, values, panel, bins)
    for axis in axes[:, 0]:
        axis.set_ylabel("weights per bin")
    for axis in axes[-1]:
        axis.set_xlabel("value of a weight")
    axes[0, 0].legend(loc="upper left", frameon=False)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=120)
    try:
        path.write_bytes(drawn.getvalue())
    except OSError as error:
        raise InputError(f"the picture {path} cannot be written: {error.strerror}") from error


def _panel(axis: Axes, values: np.ndarray, panel: Panel, bins: list[float]) -> None:
    decoded = panel.decoded.numpy()
    axis.hist(values.ravel(), bins, color=FLOAT, label="float")
    axis.hist(decoded.ravel(), bins, histtype="step", color=QUANTIZED, label="quantized")
    levels = np.unique(decoded[0, : panel.group_size])
    axis.plot(levels, np.zeros_like(levels), "|", color=LEVELS, ms=14, label="levels of one scale")
    axis.set_title(panel.title, fontsize=11)
    axis.spines[["top", "right"]].set_visible(False)
