"""Swapping modules: float -> packed and back, one module at a time, and the ties between them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lowbit.formats import Layout, QTensor
from lowbit.kernels import ops
from lowbit.nn import ACTIVATIONS, Packed, QuantEmbedding, QuantLinear
from lowbit.probe import Kind, differs, factor_of


@dataclass(frozen=True)
class Weights:
    """What a module does with its weight: its kind, shape [out, in], and whether it is stored
    transposed. Embeddings may multiply their rows by `embed_scale`, which those of Gemma first
    round to the dtype of the rows."""

    kind: Literal["linear", "embedding"]
    shape: tuple[int, int]
    transposed: bool = False
    embed_scale: float | None = None
    rounds_scale: bool = False


LINEAR = (
    Kind(nn.Linear, "out_features", "in_features"),
    Kind(Conv1D, "nf", "nx", transposed=True),
)
EMBEDDING = Kind(nn.Embedding, "num_embeddings", "embedding_dim")
LAYERS = tuple(kind.base for kind in (*LINEAR, EMBEDDING))


def weights_of(module: nn.Module) -> Weights | str:
    """How the module uses its weight, or why it cannot be quantized.

    A subclass counts if it computes the same (probe.py): BART's learned positions do not. Scaled
    embeddings multiply, and no more if they hold nothing but the weight. No data is needed.
    """
    name = type(module).__name__
    kind = next((k for k in (*LINEAR, EMBEDDING) if isinstance(module, k.base)), None)
    weight = module._parameters.get("weight")
    if kind is None or weight is None:
        return f"{name} is not a kind of module that can be quantized"
    others = [n for n, _ in module.named_parameters() if n not in ("weight", "bias")]
    if others:
        return f"{name} holds {', '.join(others)} beside its weight"
    if not weight.is_floating_point():
        return f"{name} has a weight of {weight.dtype}"
    if weight.shape != (kind.shape(module)[::-1] if kind.transposed else kind.shape(module)):
        return f"{name} has a weight of the shape {list(weight.shape)}"
    if kind is not EMBEDDING:
        reason = differs(module, kind)
        if reason is not None:
            return f"{name} {reason}"
        return Weights("linear", kind.shape(module), kind.transposed)
    max_norm: object = module.max_norm
    if max_norm is not None:
        return f"{name} renormalizes its rows (max_norm {max_norm})"
    factor = factor_of(module, kind)
    if isinstance(factor, str):
        return f"{name} {factor}"
    scale, rounds = factor
    return Weights("embedding", kind.shape(module), False, None if scale == 1 else scale, rounds)


def matrix(module: nn.Module, weights: Weights) -> Float[Tensor, "out in"]:
    """The weight of a float module as [out, in], detached."""
    weight = module._parameters["weight"]
    assert weight is not None
    return oriented(weight.detach(), weights)


def oriented(weight: Tensor, weights: Weights) -> Float[Tensor, "out in"]:
    """A weight as its module stores it, as [out, in]; its own inverse."""
    return weight.t().contiguous() if weights.transposed else weight


def packed_like(
    module: nn.Module, weights: Weights, layout: Layout, activations: str, compute: Tensor
) -> QuantLinear | QuantEmbedding:
    """A packed module, still without data, that stands in for a float one and keeps its bias.

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
    # Not by train(), which static activations refuse: a skeleton is in training mode until loaded.
    packed.training = module.training
    return packed


_HOOKS = tuple(name for name in vars(nn.Module()) if "hook" in name)


def hand_over_hooks(module: nn.Module, successor: nn.Module) -> None:
    """Let `successor` have the hooks of `module`, the same objects: handles still remove them."""
    for name in _HOOKS:
        vars(successor)[name] = vars(module)[name]


def swap(
    model: nn.Module,
    name: str,
    weights: Weights,
    q: QTensor,
    activations: str,
    compute: Tensor,
) -> None:
    """Put a packed module that holds q in place of the float module `name`."""
    module = model.get_submodule(name)
    packed = packed_like(module, weights, q.layout, activations, compute)
    model.set_submodule(name, packed.hold(q))


def swap_tied(model: nn.Module, name: str, weights: Weights, source: str, activations: str) -> None:
    """Let the float module `name` use the stored weight of `source`, which is packed already."""
    owner = model.get_submodule(source)
    assert isinstance(owner, Packed)
    module = model.get_submodule(name)
    packed = packed_like(module, weights, owner.layout, activations, owner.compute_dtype)
    model.set_submodule(name, packed.tie(owner))


def restore(model: nn.Module, dtype: torch.dtype | None = None) -> None:
    """Put the float modules back, in place, with decoded weights; tied weights are shared again.

    dtype: that of the weights; by default what each module computes in.
    """
    packed = {name: module for name, module in model.named_modules() if isinstance(module, Packed)}
    decoded = {
        module: nn.Parameter(_float_weight(module, dtype or module.compute_dtype.dtype))
        for module in packed.values()
        if module.tied_to is None
    }
    for name, module in packed.items():
        float_module = module.replaced
        float_module.weight = decoded[module.tied_to or module]
        if isinstance(module, QuantLinear):
            float_module.register_parameter("bias", module._parameters["bias"])
        # The packed module may have moved since it took this one's place.
        float_module.to(module.compute_dtype.device)
        hand_over_hooks(module, float_module)
        model.set_submodule(name, float_module.train(module.training))


def _float_weight(module: Packed, dtype: torch.dtype) -> Tensor:
    weight = ops.dequantize(module.weight_in_use, dtype)
    transposed = isinstance(module, QuantLinear) and module.transposed
    return weight.t().contiguous() if transposed else weight


@dataclass(frozen=True)
class TiedKeys:
    """What transformers knows of the ties of one submodule, before they were edited."""

    name: str
    own: Any
    expanded: dict[str, str]


def untie(model: nn.Module, targets: set[str]) -> tuple[TiedKeys, ...]:
    """Tell transformers that these modules, still float, will have no weight to tie any more.

    Other ties, such as that of BERT's decoder bias, stay. Returns what `retie` needs.
    """
    gone = {f"{target}.weight" for target in targets}
    before = []
    for name, module in model.named_modules():
        if not isinstance(module, PreTrainedModel):
            continue
        prefix = f"{name}." if name else ""
        # A model inside may have been built without it.
        expanded: dict[str, str] = getattr(module, "all_tied_weights_keys", {})
        before.append(TiedKeys(name, module.__dict__.get("_tied_weights_keys"), expanded))
        own = module.get_expanded_tied_weights_keys(all_submodels=False)
        module._tied_weights_keys = {k: v for k, v in own.items() if prefix + k not in gone}
        module.all_tied_weights_keys = {k: v for k, v in expanded.items() if prefix + k not in gone}
    return tuple(before)


def retie(model: nn.Module, before: tuple[TiedKeys, ...]) -> None:
    """The inverse of `untie`."""
    for keys in before:
        module = model.get_submodule(keys.name)
        assert isinstance(module, PreTrainedModel)
        module.all_tied_weights_keys = keys.expanded
        module.__dict__.pop("_tied_weights_keys", None)
        if keys.own is not None:
            module._tied_weights_keys = keys.own


def named_places(module: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The name of every place where a module stands, in the order of `named_modules`. One that
    stands in several places has several names, but what is inside it is named once."""
    seen: set[nn.Module] = set()
    pending = [(name, module)]
    while pending:
        name, module = pending.pop()
        yield name, module
        if module not in seen:
            seen.add(module)
            prefix = f"{name}." if name else ""
            children = [
                (prefix + key, child) for key, child in module._modules.items() if child is not None
            ]
            pending += reversed(children)
