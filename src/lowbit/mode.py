"""What every measurement of a model needs: no gradients, no dropout, no trace left behind; and how
far the model reads."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from transformers import PreTrainedModel


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
    """The longest sequence the model declares that it can take, or None where it declares none."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)
