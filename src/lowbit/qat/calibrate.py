"""Static activations without training: the float model runs over some data, and is watched."""

from torch import nn

from lowbit.calibration import Calibration, batches_of
from lowbit.conversion.recipe import Recipe
from lowbit.errors import UsageError
from lowbit.formats import StaticScale
from lowbit.nn.eval_mode import evaluating
from lowbit.progress import tracked
from lowbit.qat.modules import FakeQuantLinear
from lowbit.qat.prepare import QatOptions, fake_quantized, prepare_qat, restore_float, static_scales


def calibrate(
    model: nn.Module,
    recipe: Recipe,
    calibration: Calibration,
    options: QatOptions | None = None,
    progress: bool = True,
) -> dict[str, tuple[StaticScale, ...]]:
    """The scales of each module whose activations `recipe` makes static. The model is left as it
    was.

    calibration: token ids [samples, length], or model inputs. Raises UsageError for a recipe
    without static activations, InputError for no data.
    """
    if not any(rule.is_static for rule in recipe.rules):
        raise UsageError(f"recipe {recipe.name} has no static activations to calibrate")
    batches = batches_of(calibration, model)
    prepare_qat(model, recipe, options or QatOptions())
    try:
        for module in fake_quantized(model).values():
            module.watching = isinstance(module, FakeQuantLinear)
        with evaluating(model):
            for inputs in tracked(batches, "calibrating", "batch", progress):
                model(**inputs)
        return static_scales(model)
    finally:
        restore_float(model)
