"""The stages of a model: the parts that are solved one after the other, in the order of execution.

A stage is a block of a stack (the layers of an encoder or of a decoder), or a module outside all
stacks: an embedding, a projection between stacks, a head. A stack is an outermost list of modules
that all have weights to solve and are called once.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from lowbit.conversion.plan import Quantize


@dataclass(frozen=True)
class Stage:
    """A stage. module: has the weights of `decisions`. stack: the list of the module, if any."""

    name: str
    module: nn.Module
    decisions: tuple[Quantize, ...]
    stack: nn.ModuleList | None = None


def find_stages(
    model: nn.Module, owners: Sequence[Quantize], inputs: Mapping[str, Tensor]
) -> list[Stage]:
    """All stages; every owner of a weight is in exactly one. Runs the model once, on `inputs`.

    Stages that no data reaches come last.
    """
    modules = dict(model.named_modules())
    first, calls = _calls(model, inputs)
    stages = []
    left = {d.name: d for d in owners}
    for list_name, stack in modules.items():
        if not isinstance(stack, nn.ModuleList):
            continue
        parts = {f"{list_name}.{i}": block for i, block in enumerate(stack)}
        inside = {
            p: tuple(d for d in left.values() if d.weight.module.startswith(f"{p}.")) for p in parts
        }
        if all(calls[block] == 1 for block in stack) and any(inside.values()):
            stages += [Stage(p, block, inside[p], stack) for p, block in parts.items()]
            outside = f"{list_name}."
            left = {n: d for n, d in left.items() if not d.weight.module.startswith(outside)}
    stages += [Stage(name, modules[d.weight.module], (d,)) for name, d in left.items()]
    return sorted(stages, key=lambda s: min(first[m] for m in _users(model, s)))


def _users(model: nn.Module, stage: Stage) -> list[nn.Module]:
    """The modules whose call needs the stage: its own, and those that share a single weight."""
    if stage.stack is not None:
        return [stage.module]
    shared = {id(d.weight.of(model)) for d in stage.decisions}
    return [m for m in model.modules() if not shared.isdisjoint(map(id, m._parameters.values()))]


def _calls(
    model: nn.Module, inputs: Mapping[str, Tensor]
) -> tuple[Mapping[nn.Module, float], Counter[nn.Module]]:
    """The order of the first call of each module (infinity: never), and the number of calls."""
    calls: Counter[nn.Module] = Counter()
    first: dict[nn.Module, float] = dict.fromkeys(model.modules(), float("inf"))

    def note(module: nn.Module, args: object) -> None:
        first[module] = min(first[module], calls.total())
        calls[module] += 1

    hooks = [module.register_forward_pre_hook(note) for module in first]
    try:
        model(**inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return first, calls
