"""The default recipe, by the kind of the model.

A model that generates reads all its weights for every token, so weights get 4 bits. Its embeddings
and head get 8 bits: 4 would cost accuracy, 8 does not (docs/results/quality.md). Any other model
reads a whole sequence at once, so arithmetic decides, and weights get 8 bits without loss. Both
have int8 activations, which are fastest on every processor.
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
    """A recipe, and a sentence why lowbit chose it; no sentence if the caller chose it."""

    recipe: Recipe
    why: tuple[str, ...] = ()


def named(recipe: str | Path | Recipe | Mapping[str, Any] | None) -> Recipe | None:
    """The caller's recipe, loaded, or None. Raises UsageError."""
    return None if recipe is None else load_recipe(recipe)


def choose(model: nn.Module, recipe: Recipe | None) -> Choice:
    """`recipe`, or if it is None the default for a float model, which may be on the meta device.

    Raises the errors of `make_plan`.
    """
    if recipe is not None:
        return Choice(recipe)
    if not isinstance(model, PreTrainedModel) or not model.can_generate():
        return _chosen(READING, "the default for models that do not generate: 8 bits lose least")
    if model.config.is_encoder_decoder:
        return _chosen(READING, "the default for encoder–decoders, which lose words at 4 bits")
    misfit = _misfit(model)
    if misfit is not None:
        return _chosen(READING, f"as 4 bits do not fit {misfit}")
    return _chosen(GENERATING, "the default for models that generate: a token reads every weight")


def _misfit(model: nn.Module) -> str | None:
    """The first layer that 4 bits do not fit, and why; None if all fit."""
    few, many = make_plan(model, GENERATING), make_plan(model, READING)
    fits = {d.name for d in few.quantized} | {d.name for d in many.kept}
    return next((f"{d.name} ({d.reason})" for d in few.kept if d.name not in fits), None)


def _chosen(recipe: Recipe, why: str) -> Choice:
    return Choice(recipe, (f"Recipe {recipe.name} was chosen, {why}.",))
