"""Observe the inputs of the layers of a stage in one pass over the data."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lowbit.conversion.plan import Quantize
from lowbit.solvers.block_runner import Playback
from lowbit.solvers.blocks import Stage
from lowbit.solvers.hessian import Inputs

MASKS = ("attention_mask", "decoder_attention_mask")


@dataclass
class Observed:
    """The statistics of inputs. Layers that read the same tensor (Q, K and V) share them: `reads`
    has the name of the first."""

    inputs: dict[str, Inputs] = field(default_factory=dict)
    reads: dict[str, str] = field(default_factory=dict)

    def of(self, name: str) -> Inputs | None:
        """The statistics of a layer; None if no token reached it."""
        return self.inputs.get(self.reads.get(name, ""))

    def shared(self) -> list[list[str]]:
        """The names of layers, grouped by the tensor that they read."""
        together: dict[str, list[str]] = {}
        for name, first in self.reads.items():
            together.setdefault(first, []).append(name)
        return list(together.values())


def observe(playback: Playback, stage: Stage, users: Mapping[str, nn.Module]) -> Observed:
    """Run all batches through the stage and observe the linear layers `users`."""
    found = Observed()
    seen: dict[int, tuple[Tensor, str]] = {}

    def watch(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            x = args[0]
            # Keep a reference to the tensor, so that its id is not reused.
            _, first = seen.setdefault(id(x), (x, name))
            if found.reads.setdefault(name, first) == name:
                mine = found.inputs.setdefault(name, Inputs.none_yet(x.shape[-1], x.device))
                mine.add(tokens(x, playback.batches[playback.index]))

        return hook

    hooks = [module.register_forward_pre_hook(watch(name)) for name, module in users.items()]
    try:
        playback.run(stage, lambda _: seen.clear())
    finally:
        for hook in hooks:
            hook.remove()
    return found


def linear_users(playback: Playback, decisions: tuple[Quantize, ...]) -> dict[str, nn.Module]:
    """The linear layer that uses each weight, by the name of the owner: the owner itself, or the
    head tied to an embedding."""
    modules = dict(playback.model.named_modules())
    users: dict[str, nn.Module] = {}
    for d in decisions:
        weight = d.weight.of(playback.model)
        for module in (modules[d.weight.module], *modules.values()):
            if module._parameters.get("weight") is weight and not isinstance(module, nn.Embedding):
                users.setdefault(d.name, module)
    return users


def tokens(x: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    """The tokens [tokens, in], without padding if the batch has a mask."""
    masks = [batch[name] for name in MASKS if name in batch and batch[name].shape == x.shape[:-1]]
    if masks:
        return x[torch.stack([mask.bool() for mask in masks]).any(0)]
    return x.flatten(0, -2)
