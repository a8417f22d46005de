"""How large the inputs of linear layers are, which importance matrices are made of."""

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from lowbit.conversion.plan import make_plan
from lowbit.conversion.recipe import load_recipe


@torch.no_grad()
def mean_squares(model: nn.Module, batches: list[dict[str, torch.Tensor]]) -> dict[str, np.ndarray]:
    """Mean x² of every input of the linear layers."""
    names = [decision.name for decision in make_plan(model, load_recipe("int4")).quantized]
    found = {name: torch.zeros(()) for name in names}

    def hook(name: str) -> Callable[..., None]:
        def add(module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            found[name] = found[name] + args[0].flatten(0, -2).square().mean(0) / len(batches)

        return add

    hooks = [model.get_submodule(name).register_forward_pre_hook(hook(name)) for name in names]
    for batch in batches:
        model(**batch)
    for each in hooks:
        each.remove()
    return {name: x.numpy() for name, x in found.items()}
