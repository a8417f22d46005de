"""Find the weights of experts and the routers of a float model.

transformers sets attributes on every module with the decorator `use_experts_implementation`. They
are sufficient, so this file names no class. Modules of other classes run on a few tokens
(expert_probe.py).
"""

from collections.abc import Mapping

from torch import nn

from lowbit.conversion.expert_probe import transposed_by_name
from lowbit.conversion.module_weights import WeightName, Weights, weights_of
from lowbit.nn.experts import IMPLEMENTATION, QuantExperts, projections

# The attributes that the decorator sets.
DESCRIBED = ("has_gate", "has_bias", "has_post_expert_norm", "is_transposed", "is_concatenated")


def describes_itself(module: nn.Module) -> bool:
    """Whether the module has the attributes that describe experts."""
    own = vars(module)
    return all(type(own.get(name)) is bool for name in DESCRIBED) and hasattr(
        type(module).forward, "__wrapped__"
    )


def experts_weights(module: nn.Module) -> dict[str, Weights]:
    """The weights of experts of a module, by parameter; empty if it has none, or if its parameters
    contradict its attributes."""
    if not describes_itself(module):
        probed = transposed_by_name(module).items()
        own = module._parameters
        return {name: _weights(own[name], how) for name, how in probed if name in own}
    found = {}
    for name in ("gate_up_proj" if module.has_gate else "up_proj", "down_proj"):
        weight = module._parameters.get(name)
        if weight is None or weight.ndim != 3 or not weight.is_floating_point():
            continue
        if len(weight) == module.num_experts and weight.numel():
            found[name] = _weights(weight, bool(module.is_transposed))
    return found


def _weights(weight: nn.Parameter | None, transposed: bool) -> Weights:
    assert weight is not None
    experts, rows, columns = weight.shape
    if transposed:
        rows, columns = columns, rows
    return Weights("experts", (experts * rows, columns), transposed, experts=experts)


def weights_in(module: nn.Module) -> Mapping[str, Weights | str]:
    """The use of each weight of the module, by parameter, or why it cannot be quantized."""
    return experts_weights(module) or {"weight": weights_of(module)}


def weight_at(model: nn.Module, name: str) -> tuple[WeightName, Weights | str]:
    """The weight that is quantized under `name`, and its use. Raises AttributeError if there is
    none."""
    inside = WeightName.parse(name)
    around = model.get_submodule(inside.module)
    use = experts_weights(around).get(inside.parameter)
    if use is not None:
        return inside, use
    return WeightName(name), weights_of(model.get_submodule(name))


def places(model: nn.Module) -> set[str]:
    """The names that a quantized weight can have: of modules, and of weights of experts."""
    named = dict(model.named_modules())
    inside = {f"{name}.{own}" for name, module in named.items() for own in experts_weights(module)}
    return named.keys() | inside


def router_names(model: nn.Module) -> dict[str, int]:
    """The routers of a model, with their numbers of experts: layers next to an experts module, or
    in the module that contains both, with one row of weights per expert."""
    found = {}
    for name, module in model.named_modules():
        number = number_of_experts(module)
        if number is None:
            continue
        around = model.get_submodule(name.rpartition(".")[0])
        prefix = f"{name.rpartition('.')[0]}.".removeprefix(".")
        for own, inside in around.named_modules():
            weight = inside._parameters.get("weight")
            if (
                weight is not None
                and weight.ndim == 2
                and weight.shape[0] == number
                and inside is not module
                and not f"{prefix}{own}.".startswith(f"{name}.")
            ):
                found[prefix + own] = int(weight.shape[0])
    return found


def number_of_experts(module: nn.Module) -> int | None:
    """The number of experts of a module, float or quantized; None if it has none."""
    if describes_itself(module):
        return int(module.num_experts)  # type: ignore[arg-type]
    held = [weights.experts for weights in experts_weights(module).values()]
    held += [m.experts for m in module.children() if isinstance(m, QuantExperts)]
    return max(held, default=None)


def use_experts(model: nn.Module, implementation: str = IMPLEMENTATION) -> None:
    """Set transformers' implementation of experts by name, in the config of every experts module
    with quantized weights."""
    for module in model.modules():
        if describes_itself(module) and any(projections(module)):
            module.config._experts_implementation_internal = implementation  # type: ignore[union-attr]
