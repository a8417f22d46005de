"""Swapping modules: float -> packed and back, one module at a time, and the ties between them."""

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


def weights_of(module: nn.Module) -> Weights | str:
    """How the module uses its weight, or why it cannot be quantized.

    Exact types only: a subclass may do something else with the same weight, as BART's learned
    positions do. The scaled word embeddings of many models are known to multiply, and no more
    where they hold nothing but the weight.
    """
    kind = type(module)
    if isinstance(module, nn.Linear) and kind is nn.Linear:
        return Weights("linear", (module.out_features, module.in_features))
    if isinstance(module, Conv1D) and kind is Conv1D:
        return Weights("linear", (module.nf, module.nx), transposed=True)
    scaled = kind.__name__.endswith("ScaledWordEmbedding")
    if isinstance(module, nn.Embedding) and (kind is nn.Embedding or scaled):
        others = [name for name, _ in module.named_parameters() if name != "weight"]
        if others:
            return f"{kind.__name__} holds {', '.join(others)} beside its weight"
        if module.max_norm is not None:
            return f"{kind.__name__} renormalizes its rows (max_norm {module.max_norm})"
        rounds = hasattr(module, "scalar_embed_scale")
        scale = getattr(module, "scalar_embed_scale" if rounds else "embed_scale", None)
        shape = (module.num_embeddings, module.embedding_dim)
        return Weights(
            "embedding",
            shape,
            embed_scale=None if scale is None else float(scale),
            rounds_scale=rounds,
        )
    return f"{kind.__name__} is not a kind of module that can be quantized"


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
    # Not by train(), which static activations refuse: a skeleton is in training mode until loaded.
    packed.training = module.training
    return packed


def swap(
    model: PreTrainedModel,
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


def swap_tied(
    model: PreTrainedModel, name: str, weights: Weights, source: str, activations: str
) -> None:
    """Let the float module `name` use the stored weight of `source`, which is packed already."""
    owner = model.get_submodule(source)
    assert isinstance(owner, Packed)
    module = model.get_submodule(name)
    packed = packed_like(module, weights, owner.layout, activations, owner.compute_dtype)
    model.set_submodule(name, packed.tie(owner))


def restore(model: PreTrainedModel, dtype: torch.dtype | None = None) -> None:
    """Put the float modules back, in place, with decoded weights; tied weights are shared again.

    dtype: that of the weights; by default what each module computes in.
    """
    packed = {name: module for name, module in model.named_modules() if isinstance(module, Packed)}
    # Owners first: those tied to them take over the same parameter.
    for name, module in sorted(packed.items(), key=lambda item: item[1].tied_to is not None):
        float_module = module.replaced
        if module.tied_to is None:
            weight = ops.dequantize(module.weight_in_use, dtype or module.compute_dtype.dtype)
            transposed = isinstance(module, QuantLinear) and module.transposed
            weight = weight.t().contiguous() if transposed else weight
            float_module.weight = nn.Parameter(weight)
        else:
            float_module.weight = module.tied_to.replaced.weight
        if isinstance(module, QuantLinear):
            float_module.register_parameter("bias", module._parameters["bias"])
        # The packed module may have moved since it took this one's place.
        float_module.to(module.compute_dtype.device)
        model.set_submodule(name, float_module.train(module.training))


@dataclass(frozen=True)
class TiedKeys:
    """What transformers knows of the ties of one submodule, before they were edited."""

    name: str
    own: Any
    expanded: dict[str, str]


def untie(model: PreTrainedModel, targets: set[str]) -> tuple[TiedKeys, ...]:
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


def retie(model: PreTrainedModel, before: tuple[TiedKeys, ...]) -> None:
    """The inverse of `untie`."""
    for keys in before:
        module = model.get_submodule(keys.name)
        assert isinstance(module, PreTrainedModel)
        module.all_tied_weights_keys = keys.expanded
        module.__dict__.pop("_tied_weights_keys", None)
        if keys.own is not None:
            module._tied_weights_keys = keys.own
