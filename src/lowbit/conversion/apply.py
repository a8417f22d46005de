"""Stored weights into the places of float ones, and the account of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from lowbit.conversion.attach import attach
from lowbit.conversion.footprint import Footprint, footprint
from lowbit.conversion.fuse import fuse
from lowbit.conversion.hf_quantizer import LowbitConfig, module_entry
from lowbit.conversion.module_weights import matrix
from lowbit.conversion.plan import Coverage, Decision, check_static, cover
from lowbit.conversion.recipe import Recipe
from lowbit.conversion.swap import TiedKeys, swap, swap_tied, untie
from lowbit.conversion.unchanged import unchanged_on_error
from lowbit.errors import InputError
from lowbit.formats import QTensor, StaticScale
from lowbit.formats.error import WeightError
from lowbit.nn import QuantLinear
from lowbit.progress import tracked


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
    model: nn.Module,
    recipe: Recipe,
    solve: Callable[[Decision, Tensor], QTensor],
    static: Mapping[str, tuple[StaticScale, ...]],
    progress: bool = True,
) -> Result:
    """Quantize `model` in place, with the stored form of each weight [out, in] from `solve`.

    static: the scale of each module whose activations are static, and of its outputs where they are
    requantized. If anything raises, the model is what it was. Raises as `lowbit.quantize` does.
    """
    coverage = cover(model, recipe)
    check_static(coverage, static)
    check_data(model, coverage)
    before = footprint(model)
    stored: dict[str, QTensor] = {}
    errors: dict[str, WeightError] = {}
    owners = [d for d in coverage.quantized if d.tied_to is None]
    for d in tracked(owners, f"quantizing ({recipe.name})", "weight", progress):
        assert d.weights is not None
        weight = matrix(model.get_submodule(d.name), d.weights)
        stored[d.name] = solve(d, weight)
        errors[d.name] = WeightError.of(weight, stored[d.name])
    with unchanged_on_error(model):
        modules, ties = _swap_all(model, coverage, stored, static)
        attach(model, LowbitConfig(recipe, modules, errors), ties)
        fuse(model)
        return Result(recipe, coverage, before, footprint(model), errors)


def check_data(model: nn.Module, coverage: Coverage) -> None:
    """Raises InputError for a weight that is to be quantized and is on the meta device."""
    for d in coverage.quantized:
        weight = model.get_submodule(d.name)._parameters["weight"]
        if weight is not None and weight.is_meta:
            raise InputError(
                f"{d.name}.weight is on the meta device and holds no data: load the weights first"
            )


def _swap_all(
    model: nn.Module,
    coverage: Coverage,
    stored: dict[str, QTensor],
    static: Mapping[str, tuple[StaticScale, ...]],
) -> tuple[dict[str, dict[str, Any]], tuple[TiedKeys, ...]]:
    """Put packed modules everywhere. Returns the map for config.json, and what `retie` needs."""
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
    return modules, ties
