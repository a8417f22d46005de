"""Steps that were recorded, for the next call with the same model."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lowbit.decoding.step import State, Step
from lowbit.nn import QuantLinear, QuantModule

MOST = 8  # of a model: batches of other sizes are other steps
_KEPT: WeakKeyDictionary[nn.Module, dict[Any, Step]] = WeakKeyDictionary()
_CHANGING = Lock()


@contextmanager
def borrowed(model: PreTrainedModel, ids: Tensor, state: State) -> Iterator[Step]:
    """The step for such inputs. Nobody else has it meanwhile: its memory is its own."""
    key = len(ids), *state.inputs(ids), _identity(model)
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
    """Another number when a module, a weight or how it is computed with is another.

    A step keeps the bytes and products that it was recorded with: while it is kept, nothing else
    can have their ids.
    """
    parts: list[Any] = [model.config._attn_implementation, torch.get_default_dtype()]
    parts += torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")
    for module in model.modules():
        parts.append(id(module))
        if isinstance(module, QuantModule):
            parts += module.packed and id(module.packed.bytes), module.planes_in_use
        if isinstance(module, QuantLinear):
            parts += (
                module.activations,
                module.nonlinearity,
                module.call and id(module.call.product),
            )
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is not None:
                version = 0 if tensor.is_inference() else tensor._version
                parts += id(tensor), tensor.data_ptr(), version
    return hash(tuple(parts))
