"""The recipe of those who name none, by the kind of the model.

A model that generates reads all its weights for every token: 4 bits a weight. Its embeddings and
its head get 8, which costs no accuracy where 4 would (docs/results/quality.md). Any other model
reads a whole sequence at once: arithmetic decides, and 8 bits lose nothing. Both make activations
int8, which is fastest on every processor.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn
from transformers import PreTrainedModel

from lowbit.conversion.plan import make_plan
from lowbit.conversion.recipe import PRESETS, Recipe, load_recipe

GENERATING = PRESETS["int4-head8-dynamic"]
READING = PRESETS["int8-all-dynamic"]


class Choice(NamedTuple):
    """A recipe, and in a sentence why lowbit chose it: none for one that the caller named."""

    recipe: Recipe
    why: tuple[str, ...] = ()


def named(recipe: str | Path | Recipe | Mapping[str, Any] | None) -> Recipe | None:
    """The recipe that the caller named, loaded; None for none. Raises UsageError."""
    return None if recipe is None else load_recipe(recipe)


def choose(model: nn.Module, recipe: Recipe | None) -> Choice:
    """`recipe`, or if there is none the default for a float model, which may be on the meta device.

    Raises as `make_plan` does.
    """
    if recipe is not None:
        return Choice(recipe)
    if not isinstance(model, PreTrainedModel) or not model.can_generate():
        return _chosen(READING, "the default for models that do not generate")
    if model.config.is_encoder_decoder:
        return _chosen(READING, "the default for encoder–decoders, which lose words at 4 bits")
    misfit = _misfit(model)
    if misfit is not None:
        return _chosen(READING, f"as 4 bits do not fit {misfit}")
    return _chosen(GENERATING, "the default for models that generate: a token reads every weight")


def _misfit(model: nn.Module) -> str | None:
    """The first layer that has no 4-bit form, and why; None if there is none."""
    few, many = make_plan(model, GENERATING), make_plan(model, READING)
    fits = {d.name for d in few.quantized} | {d.name for d in many.kept}
    return next((f"{d.name} ({d.reason})" for d in few.kept if d.name not in fits), None)


def _chosen(recipe: Recipe, why: str) -> Choice:
    return Choice(recipe, (f"Recipe {recipe.name} was chosen, {why}.",))
