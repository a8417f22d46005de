"""A cache of recorded steps, for the next call with the same model."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lowbit.decoding.modules import modules
from lowbit.decoding.state import State
from lowbit.decoding.step import Step
from lowbit.nn import QuantLinear, QuantModule
from lowbit.nn.plain_attributes import PlainAttributes

MOST = 8  # steps per model; batches of other sizes need other steps
_KEPT: WeakKeyDictionary[nn.Module, dict[Any, Step]] = WeakKeyDictionary()
_CHANGING = Lock()


@contextmanager
def borrowed(model: PreTrainedModel, ids: Tensor, state: State) -> Iterator[Step]:
    """A context with the step for these inputs, before or after the prompt is read. No other thread
    gets it meanwhile, because a step has its own buffers."""
    key = len(ids), *state.first_inputs(ids), _identity(model)
    with _CHANGING:
        kept = _KEPT.setdefault(model, {})
        step = kept.pop(key, None)
        if step is None or step.attributes is None or not step.attributes.same():
            step = Step()
    yield step
    if step.is_settled:
        if step.attributes is None:
            step.attributes = PlainAttributes(modules(model))
        with _CHANGING:
            kept[key] = step
            if len(kept) > MOST:
                del kept[next(iter(kept))]


def _identity(model: PreTrainedModel) -> int:
    """A number that changes if a module, a weight or a product changes.

    A step keeps references to the bytes and products of its recording, so that their ids are not
    reused.
    """
    found = list(modules(model))
    tensors = [
        tensor
        for module in found
        for held in (module._parameters, module._buffers)
        for tensor in held.values()
        if tensor is not None
    ]
    quantized = [module for module in found if isinstance(module, QuantModule)]
    return hash(
        (
            model.config._attn_implementation,
            torch.get_default_dtype(),
            torch.is_inference_mode_enabled(),
            torch.is_autocast_enabled("cpu"),
            *map(id, found),
            *map(id, tensors),
            *map(Tensor.data_ptr, tensors),
            *[0 if tensor.is_inference() else tensor._version for tensor in tensors],
            *[module.packed and id(module.packed.bytes) for module in quantized],
            *[module.planes_in_use for module in quantized],
            *[_product(module) for module in quantized if isinstance(module, QuantLinear)],
        )
    )


def _product(layer: QuantLinear) -> tuple[Any, ...]:
    return layer.activations, layer.nonlinearity, layer.call and id(layer.call.product)
