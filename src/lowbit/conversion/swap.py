"""Replace float modules by packed ones and back, one module at a time."""

import torch
from torch import Tensor, nn

from lowbit.conversion.module_weights import WeightName, Weights
from lowbit.errors import InputError
from lowbit.formats import ExpertsLayout, Layout, QTensor
from lowbit.kernels import ops
from lowbit.nn import ACTIVATIONS, QuantEmbedding, QuantExperts, QuantLinear, QuantModule


def packed_like(
    module: nn.Module, weights: Weights, layout: Layout, activations: str, compute: Tensor
) -> QuantLinear | QuantEmbedding:
    """A packed module without data, which replaces a float module and keeps its bias.

    It computes in the dtype and on the device of `compute`.
    """
    rows, columns = weights.shape
    packed: QuantLinear | QuantEmbedding
    if weights.kind == "linear":
        kind, activations = ACTIVATIONS[activations]
        packed = kind(
            layout, columns, rows, module._parameters["bias"], activations, weights.transposed
        )
    else:
        packed = QuantEmbedding(layout, rows, columns, weights.embed_scale, weights.rounds_scale)
    packed.stand_in_for(module, compute)
    hand_over_hooks(module, packed)
    # Not train(), which raises for static activations: a skeleton is in training mode until loaded.
    packed.training = module.training
    return packed


_HOOKS = tuple(name for name in vars(nn.Module()) if "hook" in name)


def hand_over_hooks(module: nn.Module, successor: nn.Module) -> None:
    """Give `successor` the same hook objects as `module`, so that handles still remove them."""
    for name in _HOOKS:
        vars(successor)[name] = vars(module)[name]


def replace_module(model: nn.Module, name: str, successor: nn.Module) -> None:
    """Replace the module `name` by `successor`. Also replaces it in plain lists of the parent
    module, which some forward passes use."""
    around = model.get_submodule(name.rpartition(".")[0])
    module = model.get_submodule(name)
    model.set_submodule(name, successor)
    for attribute, held in vars(around).items():
        if type(held) in (list, tuple) and any(each is module for each in held):
            # A new list, so that `unchanged_on_error` can restore the old one.
            vars(around)[attribute] = type(held)(
                successor if each is module else each for each in held
            )


def put_packed(
    model: nn.Module,
    weight: WeightName,
    weights: Weights,
    layout: Layout,
    activations: str,
    compute: Tensor,
) -> QuantModule:
    """Replace the float module of `weight` by a packed module without data; or only the parameter,
    if the module has several weights."""
    module = model.get_submodule(weight.module)
    if weights.kind == "experts":
        if not isinstance(layout, ExpertsLayout) or layout.experts != weights.experts:
            raise InputError(f"{layout} does not store {weights.experts} experts")
        experts = QuantExperts(layout, *weights.shape, activations, weights.transposed)
        experts.compute_like(compute)
        experts.training = module.training
        delattr(module, weight.parameter)
        setattr(module, weight.parameter, experts)
        return experts
    packed = packed_like(module, weights, layout, activations, compute)
    replace_module(model, weight.module, packed)
    return packed


def swap(
    model: nn.Module,
    weight: WeightName,
    weights: Weights,
    q: QTensor,
    activations: str,
    compute: Tensor,
) -> None:
    """Replace the float module by a packed module with weight q."""
    put_packed(model, weight, weights, q.layout, activations, compute).hold(q)


def swap_tied(model: nn.Module, name: str, weights: Weights, source: str, activations: str) -> None:
    """Replace the float module `name` by one that is tied to `source`, which is already packed."""
    owner = model.get_submodule(source)
    assert isinstance(owner, QuantModule)
    module = model.get_submodule(name)
    packed = packed_like(module, weights, owner.layout, activations, owner.compute)
    replace_module(model, name, packed.tie(owner))


def restore(model: nn.Module, dtype: torch.dtype | None = None) -> None:
    """Replace packed modules by float modules with decoded weights, in place, and restore ties.

    dtype: of the weights; by default the compute dtype of each module.
    """
    packed = {
        name: module for name, module in model.named_modules() if isinstance(module, QuantModule)
    }
    decoded = {
        module: nn.Parameter(_float_weight(module, dtype or module.compute.dtype))
        for module in packed.values()
        if module.tied_to is None
    }
    for name, module in packed.items():
        if isinstance(module, QuantExperts):
            around, _, own = name.rpartition(".")
            setattr(model.get_submodule(around), own, decoded[module])
            continue
        float_module = module.replaced
        assert float_module is not None
        float_module.weight = decoded[module.tied_to or module]
        if isinstance(module, QuantLinear):
            float_module.register_parameter("bias", module._parameters["bias"])
        # The packed module may have moved to another device meanwhile.
        float_module.to(module.compute.device)
        hand_over_hooks(module, float_module)
        replace_module(model, name, float_module.train(module.training))


def _float_weight(module: QuantModule, dtype: torch.dtype) -> Tensor:
    weight = ops.dequantize(module.weight_in_use, dtype)
    if isinstance(module, QuantExperts):
        return module.as_parameter(weight)
    transposed = isinstance(module, QuantLinear) and module.transposed
    return weight.t().contiguous() if transposed else weight
