"""What every measurement of a model needs: no gradients, no dropout, no trace left behind; and how
far the model reads."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from transformers import PreTrainedModel

from lowbit.nn import QuantModule


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; each module's own mode is restored afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes.items():
            module.training = training


def positions(model: PreTrainedModel) -> int | None:
    """The longest sequence the model declares that it can take, or None where it declares none.

    RoBERTa and its kin count positions from the one after the padding's, and declare these too.
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
