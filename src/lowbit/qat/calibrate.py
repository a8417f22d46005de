"""Static activations without training: the float model runs over some data, and is watched."""

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from lowbit.errors import InputError, UsageError
from lowbit.formats import StaticScale
from lowbit.mode import evaluating
from lowbit.qat.modules import FakeQuantLinear
from lowbit.qat.prepare import QatOptions, fake_quantized, prepare_qat, restore_float, static_scales
from lowbit.recipe import Recipe

SAMPLES_AT_ONCE = 8


def calibrate(
    model: PreTrainedModel,
    recipe: Recipe,
    batches: Tensor | Iterable[Mapping[str, Tensor]],
    options: QatOptions | None = None,
    progress: bool = True,
) -> dict[str, tuple[StaticScale, ...]]:
    """The scales of each module whose activations `recipe` makes static. The model is left as it
    was.

    batches: token ids [samples, length], or model inputs. Raises UsageError for a recipe without
    static activations, InputError for no data.
    """
    if not any(rule.is_static for rule in recipe.rules):
        raise UsageError(f"recipe {recipe.name} has no static activations to calibrate")
    prepare_qat(model, recipe, options or QatOptions(ranges="mse"))
    try:
        for module in fake_quantized(model).values():
            module.watching = isinstance(module, FakeQuantLinear)
        seen = 0
        with evaluating(model):
            for inputs in tqdm(_inputs(batches), "calibrating", delay=2, disable=not progress):
                model(**{name: value.to(model.device) for name, value in inputs.items()})
                seen += 1
        if not seen:
            raise InputError("the calibration data holds no batch")
        return static_scales(model)
    finally:
        restore_float(model)


def _inputs(batches: Tensor | Iterable[Mapping[str, Tensor]]) -> Iterator[Mapping[str, Tensor]]:
    if isinstance(batches, Tensor):
        if batches.ndim != 2 or batches.is_floating_point():
            raise UsageError(
                f"calibration takes token ids [samples, length], not {batches.dtype}"
                f" {list(batches.shape)}"
            )
        for ids in batches.split(SAMPLES_AT_ONCE):
            yield {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    else:
        yield from batches
