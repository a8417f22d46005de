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
        step = kept.pop(key, None) or Step()
    yield step
    if step.is_settled:
        with _CHANGING:
            kept[key] = step
            if len(kept) > MOST:
                del kept[next(iter(kept))]


def _identity(model: PreTrainedModel) -> int:
    """A number that changes if a module, a weight or a product changes.

    A step keeps references to the bytes and products of its recording, so that their ids are not
    reused.
    """
    parts: list[Any] = [model.config._attn_implementation, torch.get_default_dtype()]
    parts += torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")
    for module in modules(model):
        parts.append(id(module))
        if isinstance(module, QuantModule):
            parts += module.packed and id(module.packed.bytes), module.planes_in_use
            if isinstance(module, QuantLinear):
                parts += (
                    module.activations,
                    module.nonlinearity,
                    module.call and id(module.call.product),
                )
        for tensors in (module._parameters, module._buffers):
            for tensor in tensors.values():
                if tensor is not None:
                    version = 0 if tensor.is_inference() else tensor._version
                    parts += id(tensor), tensor.data_ptr(), version
    return hash(tuple(parts))
