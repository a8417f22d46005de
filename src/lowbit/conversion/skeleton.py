"""Build a quantized model without data from config.json, and check it after loading."""

import re
from collections.abc import Iterator, Set

import torch
from torch import nn
from transformers import PreTrainedModel

from lowbit.conversion.config import LowbitConfig
from lowbit.conversion.experts import places, use_experts, weight_at
from lowbit.conversion.module_weights import WeightName, Weights, weights_of
from lowbit.conversion.numbers import check_numbers
from lowbit.conversion.swap import put_packed, swap_tied
from lowbit.conversion.ties import TiedKeys, untie
from lowbit.errors import InputError, check_choice, naming
from lowbit.formats import layout_from_dict
from lowbit.nn import ACTIVATIONS, QuantEmbedding, QuantModule

# The alignment of torch's own allocations, in bytes.
ALIGNMENT = 64


def build(model: PreTrainedModel, config: LowbitConfig, dtype: torch.dtype) -> tuple[TiedKeys, ...]:
    """Replace the modules in the map of config.json by packed modules without data. Raises
    InputError if the map does not describe this model. Returns the former ties, for `retie`.

    Removes entries that this model lacks from the map, for example those of another head, and
    changes names to those of this model.
    """
    there = places(model)
    found = {name: resolve(there, model.base_model_prefix, name) for name in config.modules}
    same_class = type(model).__name__ in (model.config.architectures or ())
    absent = [name for name, module in found.items() if module is None]
    if absent and (same_class or len(absent) == len(found)):
        raise InputError(
            f"config.json lists {absent[0]}, which {type(model).__name__} does not have"
            f" ({len(absent)} of {len(found)} modules absent)"
        )
    float32 = [
        re.compile(rf"(^|\.){part}(\.|$)")
        for part, kept in model._get_dtype_plan(dtype).items()
        if kept == torch.float32
    ]
    tied_names = {found[name] for name, entry in config.modules.items() if "tied_to" in entry}
    ties = untie(model, {WeightName(name) for name in tied_names if name is not None})
    tied = {}
    for stored_name, name in found.items():
        if name is None:
            continue
        weight, weights = weight_at(model, name)
        if isinstance(weights, str):
            raise InputError(f"config.json lists {stored_name}, but {weights}")
        entry = config.modules[stored_name]
        activations = entry.get("activations", "float")
        check_choice(f"{stored_name}: activations", activations, ACTIVATIONS, error=InputError)
        if "tied_to" in entry:
            tied[name] = (weights, entry["tied_to"], activations)
            continue
        exact = any(pattern.search(name) for pattern in float32)
        compute = torch.empty(0, dtype=torch.float32 if exact else dtype, device="meta")
        with naming(stored_name):
            put_packed(model, weight, weights, layout_from_dict(entry), activations, compute)
    for name, (weights, stored_source, activations) in tied.items():
        source = found.get(stored_source)
        if source is None or not isinstance(model.get_submodule(source), QuantModule):
            raise InputError(f"config.json ties {name} to {stored_source}, which is not stored")
        swap_tied(model, name, weights, source, activations)
    config.modules = {
        name: entry | ({"tied_to": found[entry["tied_to"]]} if "tied_to" in entry else {})
        for stored_name, entry in config.modules.items()
        if (name := found[stored_name]) is not None
    }
    config.errors = {
        name: error
        for stored_name, error in config.errors.items()
        if (name := found.get(stored_name)) is not None
    }
    use_experts(model)
    return ties


def resolve(there: Set[str], base_model_prefix: str, name: str) -> str | None:
    """The name of a stored module among the modules `there`. A model with a head may be loaded as
    its base model, or the other way round, which removes or adds the base model's prefix.
    """
    prefix = f"{base_model_prefix}."
    return next((n for n in (name, name.removeprefix(prefix), prefix + name) if n in there), None)


def stored_buffers(model: nn.Module) -> Iterator[tuple[str, QuantModule, str]]:
    """(full name, module, its own name) of every stored tensor."""
    for name, module in model.named_modules():
        if isinstance(module, QuantModule):
            for stored in module.saved():
                yield f"{name}.{stored}", module, stored


def align(model: PreTrainedModel) -> None:
    """Copy unaligned float tensors to aligned memory. On unaligned tensors of a mapped file,
    torch's convolutions and products differ in the last bit."""
    for tensor in (*model.parameters(), *model.buffers()):
        on_cpu = tensor.device.type == "cpu"
        if on_cpu and tensor.is_floating_point() and tensor.data_ptr() % ALIGNMENT:
            tensor.data = tensor.data.clone()


def fill_replaced(model: PreTrainedModel) -> None:
    """Compute the non-persistent buffers of float modules that packed modules replace. These were
    built without data, and transformers does not see them."""
    for name, module in model.named_modules():
        if not isinstance(module, QuantModule) or module.replaced is None:
            continue
        buffers = module.replaced._buffers
        empty = {own: b for own, b in buffers.items() if b is not None and b.is_meta}
        for own, buffer in empty.items():
            buffers[own] = torch.empty_like(buffer, device=module.compute.device)
        if empty:
            _innermost(model, name)._init_weights(module.replaced)
        if isinstance(module, QuantEmbedding):
            # The scale of its rows may be in such a buffer.
            weights = weights_of(module.replaced)
            assert isinstance(weights, Weights)
            module.embed_scale, module.rounds_scale = weights.embed_scale, weights.rounds_scale


def _innermost(model: PreTrainedModel, name: str) -> PreTrainedModel:
    """The transformers model that the module `name` belongs to, which can initialize it."""
    while (name := name.rpartition(".")[0]) and not isinstance(
        model.get_submodule(name), PreTrainedModel
    ):
        pass
    inner = model.get_submodule(name)
    assert isinstance(inner, PreTrainedModel)
    return inner


def check_loaded(model: PreTrainedModel) -> None:
    """Raises InputError if a stored tensor or a bias was not in the checkpoint, has another shape
    or dtype, or has an invalid number.

    transformers would only warn and leave uninitialized memory.
    """
    for name, module in model.named_modules():
        bias = module._parameters.get("bias") if isinstance(module, QuantModule) else None
        if bias is not None and not getattr(bias, "_is_hf_initialized", False):
            raise InputError(f"the checkpoint lacks {name}.bias")
    for name, module, stored in stored_buffers(model):
        tensor = module._buffers[stored]
        shape, dtype = module.saved()[stored]
        if tensor is None or not getattr(tensor, "_is_hf_initialized", False):
            raise InputError(f"the checkpoint lacks the stored tensor {name}")
        if tensor.dtype != dtype or tuple(tensor.shape) != shape:
            raise InputError(
                f"stored tensor {name} is {tensor.dtype} {list(tensor.shape)},"
                f" expected {dtype} {list(shape)}"
            )
    check_numbers(model)
