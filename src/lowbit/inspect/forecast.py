"""What a recipe would make of a float checkpoint: its plan and its size, before any weight is read.

stored = float bytes − Σ float bytes of quantized weights + Σ bytes of their stored tensors
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from lowbit.checkpoint.read import (
    find,
    float_config,
    open_checkpoint,
    open_tensors,
    read_config,
    skeleton,
)
from lowbit.conversion.default_recipe import choose
from lowbit.conversion.footprint import Footprint, footprint
from lowbit.conversion.plan import Plan, Quantize, make_plan
from lowbit.conversion.recipe import PRESETS, Recipe
from lowbit.conversion.streamed_load import float_dtype
from lowbit.errors import LowbitError

# From the most bits to the fewest.
USUAL = (
    "int8-all-dynamic",
    "int4-head8-dynamic",
    "int4-all",
    "int3-all",
    "int2-all",
    "bcq4-all",
    "bcq3-all",
    "bcq2-all",
    "bcq1-all",
)


@dataclass(frozen=True)
class Forecast:
    """A plan and the bytes of all tensors that it would store; notes: how its recipe was chosen."""

    plan: Plan
    stored_bytes: int
    notes: tuple[str, ...] = ()

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.stored_bytes / max(1, self.plan.parameters)

    def to_dict(self) -> dict[str, Any]:
        return {
            "recipe": self.plan.recipe.to_dict(),
            "stored_bytes": self.stored_bytes,
            "bits_per_weight": self.bits_per_weight,
            "coverage": self.plan.to_dict(),
            "notes": list(self.notes),
        }


def is_float(model: str | Path) -> bool:
    """Whether a folder has a config.json that names no quantization. Raises InputError."""
    return getattr(read_config(find(model)), "quantization_config", None) is None


def float_skeleton(model: str | Path) -> tuple[PreTrainedModel, Footprint]:
    """A float checkpoint without its numbers, on the meta device, and its size.

    Raises InputError for what is no complete float checkpoint.
    """
    folder = find(model)
    checkpoint = open_checkpoint(folder, float_config(folder))
    with open_tensors(checkpoint.files) as tensors:
        empty = skeleton(checkpoint, float_dtype(tensors))
    return empty, footprint(empty, folder)


def forecast(model: PreTrainedModel, before: Footprint, recipe: Recipe | None) -> Forecast:
    """What `recipe`, or the default one, would make of a model, which may be on the meta device.

    Raises as `make_plan` does.
    """
    chosen, why = choose(model, recipe)
    plan = make_plan(model, chosen)
    saved = sum(_float_bytes(model, d) - _stored_bytes(d) for d in plan.owners)
    return Forecast(plan, before.stored_bytes - saved, tuple(why))


def forecasts(model: PreTrainedModel, before: Footprint) -> Iterator[Forecast]:
    """Those of the usual recipes that fit the model."""
    for name in USUAL:
        try:
            yield forecast(model, before, PRESETS[name])
        except LowbitError:
            continue


def _float_bytes(model: PreTrainedModel, decision: Quantize) -> int:
    return decision.weight.of(model).nbytes


def _stored_bytes(decision: Quantize) -> int:
    rows, columns = decision.weights.shape
    alike = decision.weights.experts if decision.weights.kind == "experts" else 1
    tensors = decision.scheme.layout(rows // alike).tensors(rows // alike, columns)
    return alike * sum(math.prod(shape) * dtype.itemsize for shape, dtype in tensors.values())
