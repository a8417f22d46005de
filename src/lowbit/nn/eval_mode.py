"""Evaluation mode for measurements of a model, calls without a mask, and the model's maximum
length."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from lowbit.nn import QuantModule


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients. Afterwards each module's mode is restored."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes.items():
            module.training = training


# The method with which a transformers model looks for padding in ids without a mask, only to log a
# warning. It reads two ids, by which a recording would take the model for one that decides by them.
_LOOK = "warn_if_padding_and_no_attention_mask"
_UNMASKED: Counter[PreTrainedModel] = Counter()  # how many contexts each model is in
_CHANGING = Lock()


@contextmanager
def unmasked(model: nn.Module) -> Iterator[None]:
    """A context in which a model that gets no mask does not look for padding in its ids."""
    inside = [module for module in model.modules() if isinstance(module, PreTrainedModel)]
    with _CHANGING:
        _UNMASKED.update(inside)
        for module in inside:
            vars(module)[_LOOK] = _not_looking
    try:
        yield
    finally:
        with _CHANGING:
            _UNMASKED.subtract(inside)
            for module in inside:
                if not _UNMASKED[module]:
                    del _UNMASKED[module], vars(module)[_LOOK]


def _not_looking(*_: Any, **__: Any) -> None:
    pass


def positions(model: PreTrainedModel) -> int | None:
    """The longest sequence that the model declares, or None if it declares none.

    RoBERTa and similar models number positions from the padding index + 1 on, and the declared
    number includes the unused ones.
    """
    declared: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if declared is None:
        return None
    for name, module in model.named_modules():
        if name.rpartition(".")[2] == "position_embeddings":
            table = module.replaced if isinstance(module, QuantModule) else module
            padding = getattr(table, "padding_idx", None)
            return declared if padding is None else declared - padding - 1
    return declared
