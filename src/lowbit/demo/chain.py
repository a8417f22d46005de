"""The demo from end to end, and what it reports."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from lowbit.convert import Weights, matrix, weights_of
from lowbit.demo.cache import trained
from lowbit.demo.compare import Probe, Row, compare
from lowbit.demo.histogram import Panel, check_picture, draw
from lowbit.demo.model import Settings
from lowbit.errors import UsageError
from lowbit.kernels.ops import dequantize
from lowbit.nn import QuantLinear

# With -all: a table left in float would be a quarter of this model.
RECIPES = ("int8-all", "int8-zeropoint-all", "int4-all", "bcq3-all")
PROMPT = "Return a new"
NEW_TOKENS = 40
DRAWN = "transformer.h.0.mlp.c_fc"


@dataclass(frozen=True)
class Report:
    """What the demo found, and where it left the float model and the picture."""

    rows: tuple[Row, ...]
    parameters: int
    held_out_tokens: int
    prompt: str
    model: Path
    from_cache: bool
    picture: Path

    @property
    def kernels(self) -> str:
        """One sentence on what computed the quantized layers."""
        used = sorted({kernel for row in self.rows for kernel in row.kernels})
        if all(kernel.startswith("reference") for kernel in used):
            return (
                "The quantized layers ran on the PyTorch reference: no native kernel serves them"
                " here, so they may be slower than float."
            )
        return f"Kernels of the quantized layers: {'; '.join(used)}."

    def to_dict(self) -> dict[str, Any]:
        return {
            "rows": [row.to_dict() for row in self.rows],
            "parameters": self.parameters,
            "held_out_tokens": self.held_out_tokens,
            "prompt": self.prompt,
            "kernels": self.kernels,
            "model": str(self.model),
            "from_cache": self.from_cache,
            "picture": str(self.picture),
        }


def run(picture: Path, settings: Settings, retrain: bool = False, progress: bool = True) -> Report:
    """Train (or take from the cache), compare RECIPES with float, and draw the picture.

    Raises UsageError for a picture that cannot be written or fewer than 1 step, InputError for a
    cache that cannot be written or a Python without its documentation.
    """
    check_picture(picture)
    if settings.steps < 1:
        raise UsageError(f"{settings.steps} steps train nothing: at least 1 is needed")
    base = trained(settings, retrain, progress)
    probe = Probe(base.tokenizer, base.held_out, PROMPT, NEW_TOKENS, settings.seed)
    rows, models = compare(base.model, RECIPES, probe, progress)
    _draw(picture, base.model, models)
    return Report(
        rows=tuple(rows),
        parameters=base.model.num_parameters(),
        held_out_tokens=len(base.held_out),
        prompt=PROMPT,
        model=base.folder,
        from_cache=base.from_cache,
        picture=picture,
    )


def _draw(picture: Path, model: PreTrainedModel, quantized: dict[str, PreTrainedModel]) -> None:
    """The weight DRAWN, in float and as each quantized model decodes it."""
    module = model.get_submodule(DRAWN)
    weights = weights_of(module)
    assert isinstance(weights, Weights)
    weight = matrix(module, weights)
    panels = []
    for recipe, other in quantized.items():
        packed = other.get_submodule(DRAWN)
        assert isinstance(packed, QuantLinear)
        decoded = dequantize(packed.qweight)
        error = (weight - decoded).double().square().mean().item()
        title = f"{recipe}: {packed.describe()}, mean squared error {error:.2e}"
        panels.append(Panel(title, decoded, packed.layout.granularity.width(packed.in_features)))
    rows, columns = weight.shape
    draw(
        picture,
        weight,
        f"{rows * columns:,} weights before and after: {DRAWN} [{rows}, {columns}]",
        panels,
    )
