"""Adapters merged into quantized weights: added in float32, and quantized again by the scheme that
the model's recipe has for the weight. All other weights stay as they are, bit for bit."""

from collections.abc import Iterator

import torch
from torch import nn

from lowbit.conversion.attach import config_of
from lowbit.conversion.module_weights import Weights, oriented
from lowbit.conversion.plan import scheme_for
from lowbit.errors import UsageError, naming
from lowbit.formats import QTensor
from lowbit.formats.error import WeightError
from lowbit.nn import QuantLinear, QuantModule
from lowbit.peft.layers import OnQuantized


@torch.no_grad()
def prepare(model: nn.Module, names: list[str] | None) -> None:
    """Give each adapted quantized layer of `model` the weight that `merge` takes over.

    names: the adapters; None for the active ones. If anything raises, nothing has changed.

    Raises UsageError for a weight that another module shares, is used in part, or is stored
    otherwise than its recipe says.
    """
    adapted = dict(_adapted(model, names))
    if not adapted:
        return
    config = config_of(model)
    shared = {m.owner for m in model.modules() if isinstance(m, QuantModule) and m.tied_to}
    found: dict[str, tuple[QTensor, WeightError]] = {}
    for name, layer in adapted.items():
        base = layer.get_base_layer()
        with naming(name):
            if base.owner in shared:
                raise UsageError(
                    "its weight is stored once for several modules, of which the adapter changes"
                    " one: unload the adapter, or merge it into a float model without ties"
                )
            if base.owner.planes_in_use is not None:
                raise UsageError("only some of its planes are in use: use_planes all of them first")
            weights = _weights(base)
            scheme = scheme_for(model, name, weights, config.recipe)
            matrix = oriented(layer.summed(layer.own_names(names)), weights)
            q = None if scheme is None else scheme.quantize(matrix)
            if q is None or q.layout != base.layout:
                raise UsageError(
                    f"it is stored as {base.layout}, but recipe {config.recipe.name} does not store"
                    " the sum so (other bits or groups, or scales beyond float16): merge the"
                    " adapter into the float model, and quantize that"
                )
            found[name] = q, WeightError.of(matrix, q)
    for name, (q, error) in found.items():
        adapted[name].merged_weight = q
        config.errors[name] = error


def _adapted(model: nn.Module, names: list[str] | None) -> Iterator[tuple[str, OnQuantized]]:
    for name, module in model.named_modules():
        if isinstance(module, OnQuantized) and module.own_names(names):
            yield name, module


def _weights(base: QuantModule) -> Weights:
    """What the float module did with its weight."""
    if isinstance(base, QuantLinear):
        return Weights("linear", (base.rows, base.columns), base.transposed)
    return Weights("embedding", (base.rows, base.columns))
