"""The main job: quantize a transformers model in place, with data where its recipe needs any."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from jaxtyping import Integer
from torch import Tensor
from transformers import PreTrainedModel

from lowbit.errors import UsageError
from lowbit.hub import quantize_weight
from lowbit.inplace import Result, quantize_with
from lowbit.qat.calibrate import calibrate
from lowbit.qat.prepare import QatOptions
from lowbit.recipe import Recipe, load_recipe

Batches = Integer[Tensor, "samples length"] | Iterable[Mapping[str, Tensor]]


def quantize(
    model: PreTrainedModel,
    recipe: str | Path | Recipe | Mapping[str, Any],
    progress: bool = True,
    calibration: Batches | None = None,
    options: QatOptions | None = None,
) -> Result:
    """Quantize `model` in place; it stays a transformers model.

    recipe: a preset ("int4", "int8-dynamic", …), a `Recipe`, a mapping, or a YAML path.
    progress: show a bar if it takes more than two seconds.
    calibration: what static activations are seen on: token ids [samples, length], or any iterable
    of model inputs. options: how their ranges are found; the least squared error by default.

    Raises UsageError for an unknown recipe, a pattern that matches nothing, or static activations
    without calibration; InputError for a weight that is not finite. The model is changed only
    after all its weights are quantized.
    """
    if not isinstance(model, PreTrainedModel):
        raise UsageError(f"a transformers PreTrainedModel is needed, not {type(model).__name__}")
    recipe = load_recipe(recipe)
    inputs = {}
    if calibration is not None:
        inputs = calibrate(model, recipe, calibration, options, progress)
    return quantize_with(model, recipe, quantize_weight, inputs, progress)
