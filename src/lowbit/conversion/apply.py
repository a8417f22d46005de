"""Replace float weights by quantized ones, and report sizes and errors."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from lowbit.conversion.attach import attach
from lowbit.conversion.config import LowbitConfig
from lowbit.conversion.footprint import Footprint, footprint
from lowbit.conversion.fuse import fuse
from lowbit.conversion.one_weight import (
    QuantizedWeight,
    Solve,
    put_quantized,
    put_tied,
    quantize_weight,
    tied_entry,
)
from lowbit.conversion.plan import Plan, check_static
from lowbit.conversion.recipe import Recipe
from lowbit.conversion.ties import TiedKeys, untie
from lowbit.conversion.unchanged import unchanged_on_error
from lowbit.errors import InputError
from lowbit.formats import StaticScale
from lowbit.formats.error import WeightError
from lowbit.nn import QuantLinear
from lowbit.progress import tracked


@dataclass(frozen=True)
class Result:
    """The result of a quantization: plan, sizes, errors and notes.

    Attributes:
        plan: The decision for each weight, with its reason.
        before: Sizes of the float model, in bytes.
        after: Sizes of the quantized model, in bytes.
        errors: The error of each quantized weight, by module name.
        unused: Names of checkpoint tensors that the model does not use.
        notes: Sentences about the choice of the recipe and the work of the solver.
    """

    plan: Plan
    before: Footprint
    after: Footprint
    errors: dict[str, WeightError]
    unused: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def recipe(self) -> Recipe:
        return self.plan.recipe

    def to_dict(self) -> dict[str, Any]:
        return {
            "recipe": self.recipe.to_dict(),
            "coverage": self.plan.to_dict(),
            "before": self.before.to_dict(),
            "after": self.after.to_dict(),
            "errors": {name: error.to_dict() for name, error in self.errors.items()},
            "unused": list(self.unused),
            "notes": list(self.notes),
        }


def quantize_with(
    model: nn.Module,
    plan: Plan,
    solve: Solve,
    static: Mapping[str, tuple[StaticScale, ...]],
    progress: bool = True,
) -> Result:
    """Quantize `model` in place. `solve` returns the quantized tensor of each weight [out, in].

    static: the input scale of each module with static activations, and the output scale if outputs
    are requantized. On error, the model is left unchanged. Raises the errors of `lowbit.quantize`.
    """
    check_static(plan, static)
    check_data(model, plan)
    before = footprint(model)
    found: dict[str, QuantizedWeight] = {}
    for d in tracked(plan.owners, f"quantizing ({plan.recipe.name})", "weight", progress):
        found[d.name] = quantize_weight(d, d.weight.of(model), solve)
    errors = {name: weight.error for name, weight in found.items()}
    with unchanged_on_error(model):
        modules, ties = _swap_all(model, plan, found, static)
        attach(model, LowbitConfig(plan.recipe, modules, errors), ties)
        fuse(model)
        return Result(plan, before, footprint(model), errors)


def check_data(model: nn.Module, plan: Plan) -> None:
    """Raises InputError if a weight to quantize is on the meta device."""
    for d in plan.quantized:
        if d.weight.of(model).is_meta:
            raise InputError(
                f"{d.weight} is on the meta device, so it has no data: it was offloaded to disk or"
                " never loaded. Load the model without device_map, or quantize its folder with"
                " lowbit.quantize_checkpoint, which holds one tensor at a time"
            )


def _swap_all(
    model: nn.Module,
    plan: Plan,
    found: dict[str, QuantizedWeight],
    static: Mapping[str, tuple[StaticScale, ...]],
) -> tuple[dict[str, dict[str, Any]], tuple[TiedKeys, ...]]:
    """Replace all planned modules by packed ones, and remove their weights from `found`. Returns
    the map for config.json and the former ties, for `retie`."""
    ties = untie(model, {d.weight for d in plan.tied})
    modules = {}
    for d in plan.owners:
        weight = found.pop(d.name)
        put_quantized(model, d, weight.stored, d.weight.of(model))
        modules[d.name] = weight.entry
    for tied in plan.tied:
        put_tied(model, tied)
        modules[tied.name] = tied_entry(tied)
    for name, scales in static.items():
        module = model.get_submodule(name)
        assert isinstance(module, QuantLinear)
        module.set_static(*scales)
    return modules, ties
