"""Stored weights into the places of float ones, and the account of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from lowbit.accounting import Footprint, footprint
from lowbit.convert import matrix, swap, swap_tied, untie
from lowbit.coverage import Coverage, Decision, check_static, cover
from lowbit.formats import QTensor, StaticScale
from lowbit.fusion import fuse
from lowbit.hub import LowbitConfig, attach, module_entry
from lowbit.nn import QuantLinear
from lowbit.progress import tracked
from lowbit.recipe import Recipe
from lowbit.weight_error import WeightError


@dataclass(frozen=True)
class Result:
    """What was done: coverage, sizes before and after, and each module's error.

    `unused` names tensors of a checkpoint that the model has no place for; `notes` are sentences
    about what a solver met.
    """

    recipe: Recipe
    coverage: Coverage
    before: Footprint
    after: Footprint
    errors: dict[str, WeightError]
    unused: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return {
            "recipe": self.recipe.to_dict(),
            "coverage": self.coverage.to_dict(),
            "before": self.before.to_dict(),
            "after": self.after.to_dict(),
            "errors": {name: error.to_dict() for name, error in self.errors.items()},
            "unused": list(self.unused),
            "notes": list(self.notes),
        }


def quantize_with(
    model: PreTrainedModel,
    recipe: Recipe,
    solve: Callable[[Decision, Tensor], QTensor],
    static: Mapping[str, tuple[StaticScale, ...]],
    progress: bool = True,
) -> Result:
    """Quantize `model` in place, with the stored form of each weight [out, in] from `solve`.

    static: the scale of each module whose activations are static, and of its outputs where they are
    requantized. The model is changed only after
    all its weights are quantized. Raises as `lowbit.quantize` does.
    """
    coverage = cover(model, recipe)
    check_static(coverage, static)
    before = footprint(model)
    stored: dict[str, QTensor] = {}
    errors: dict[str, WeightError] = {}
    owners = [d for d in coverage.quantized if d.tied_to is None]
    for d in tracked(owners, f"quantizing ({recipe.name})", "weight", progress):
        assert d.weights is not None
        weight = matrix(model.get_submodule(d.name), d.weights)
        stored[d.name] = solve(d, weight)
        errors[d.name] = WeightError.of(weight, stored[d.name])
    tied = [d for d in coverage.quantized if d.tied_to is not None]
    ties = untie(model, {d.name for d in tied})
    modules = {}
    for d in coverage.quantized:
        assert d.weights is not None and d.rule is not None
        if d.tied_to is None:
            q = stored.pop(d.name)
            weight = model.get_submodule(d.name).weight
            assert isinstance(weight, Tensor)
            swap(model, d.name, d.weights, q, d.rule.activations, weight)
            modules[d.name] = module_entry(d, q.layout)
    for d in tied:
        assert d.weights is not None and d.rule is not None and d.tied_to is not None
        swap_tied(model, d.name, d.weights, d.tied_to, d.rule.activations)
        modules[d.name] = module_entry(d, None)
    for name, scales in static.items():
        module = model.get_submodule(name)
        assert isinstance(module, QuantLinear)
        module.set_static(*scales)
    attach(model, LowbitConfig(recipe, modules, errors), ties)
    fuse(model)
    return Result(recipe, coverage, before, footprint(model), errors)
