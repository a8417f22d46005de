"""What the layers of a stage see: one pass of the data, and the moments of their inputs."""

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
    """The inputs that layers saw. Layers that read one and the same tensor (Q, K and V) share
    them: `reads` names the first of them."""

    inputs: dict[str, Inputs] = field(default_factory=dict)
    reads: dict[str, str] = field(default_factory=dict)

    def of(self, name: str) -> Inputs | None:
        """None for a layer that no token reached."""
        return self.inputs.get(self.reads.get(name, ""))

    def shared(self) -> list[list[str]]:
        """The names of layers, those together that read the same tensor."""
        together: dict[str, list[str]] = {}
        for name, first in self.reads.items():
            together.setdefault(first, []).append(name)
        return list(together.values())


def observe(playback: Playback, stage: Stage, users: Mapping[str, nn.Module]) -> Observed:
    """Run all batches through the stage and watch the linear layers `users`."""
    found = Observed()
    seen: dict[int, tuple[Tensor, str]] = {}

    def watch(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            x = args[0]
            # The tensor is kept with the name, so that its id stays its own.
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
    """By the name of the owner of a weight, the linear layer that uses it: itself, or for an
    embedding the head that is tied to it."""
    modules = dict(playback.model.named_modules())
    users: dict[str, nn.Module] = {}
    for d in decisions:
        weight = d.weight.of(playback.model)
        for module in (modules[d.weight.module], *modules.values()):
            if module._parameters.get("weight") is weight and not isinstance(module, nn.Embedding):
                users.setdefault(d.name, module)
    return users


def tokens(x: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    """[tokens, in], without padding where a mask of the batch tells which tokens are."""
    masks = [batch[name] for name in MASKS if name in batch and batch[name].shape == x.shape[:-1]]
    if masks:
        return x[torch.stack([mask.bool() for mask in masks]).any(0)]
    return x.flatten(0, -2)
