"""Evaluation mode for measurements of a model, and the model's maximum length."""

from collections.abc import Iterator
from contextlib import contextmanager

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
