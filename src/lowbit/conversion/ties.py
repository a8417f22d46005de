"""Tied weights: weights that several modules share, and their declaration in transformers.

A place is a name of a module; one module may have several.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from lowbit.conversion.module_weights import WeightName


def named_places(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every name of every module, in the order of `named_modules`. A shared module has several
    names, but its submodules are named once."""
    seen: set[nn.Module] = set()
    pending = [("", module)]
    while pending:
        name, module = pending.pop()
        yield name, module
        if module not in seen:
            seen.add(module)
            prefix = f"{name}." if name else ""
            children = [
                (prefix + key, child) for key, child in module._modules.items() if child is not None
            ]
            pending += reversed(children)


def tied_weights(model: nn.Module) -> dict[WeightName, WeightName]:
    """Target -> source for every place that shares the weight of another place.

    Actual sharing counts, not the declaration. Only for a model on the meta device, whose weights
    are not tied before loading, the declaration counts.
    """
    declared = {
        WeightName.parse(prefix + target): WeightName.parse(prefix + source)
        for prefix, inner in transformers_inside(model)
        for target, source in getattr(inner, "all_tied_weights_keys", {}).items()
    }
    weights = {
        WeightName(name): weight
        for name, module in named_places(model)
        if (weight := module._parameters.get("weight")) is not None
    }
    sources = set(declared.values())
    owner: dict[int, WeightName] = {}
    ties: dict[WeightName, WeightName] = {}
    # Declared sources first, so that they own the shared weight.
    for name in sorted(weights, key=lambda name: name not in sources):
        first = owner.setdefault(id(weights[name]), name)
        if first != name:
            ties[name] = first
        elif weights[name].is_meta and declared.get(name) in weights:
            ties[name] = declared[name]
    return ties


def transformers_inside(model: nn.Module) -> list[tuple[str, PreTrainedModel]]:
    """The outermost transformers models in a module, with the prefix of their names; for a
    transformers model, itself and ""."""
    found: list[tuple[str, PreTrainedModel]] = []
    for name, module in model.named_modules():
        prefix = f"{name}." if name else ""
        inside = any(prefix.startswith(outer) for outer, _ in found)
        if isinstance(module, PreTrainedModel) and not inside:
            found.append((prefix, module))
    return found


@dataclass(frozen=True)
class TiedKeys:
    """transformers' declaration of the ties of one submodule, before it was edited."""

    name: str
    own: Any
    expanded: dict[str, str]


def untie(model: nn.Module, targets: set[WeightName]) -> tuple[TiedKeys, ...]:
    """Remove the ties of these weights, which are still float, from transformers' declaration.

    Other ties, such as the bias of BERT's decoder, stay. Returns the former ties, for `retie`.
    """
    gone = set(map(str, targets))
    before = []
    for name, module in model.named_modules():
        if not isinstance(module, PreTrainedModel):
            continue
        prefix = f"{name}." if name else ""
        # An inner model may have been built without it.
        expanded: dict[str, str] = getattr(module, "all_tied_weights_keys", {})
        before.append(TiedKeys(name, module.__dict__.get("_tied_weights_keys"), expanded))
        own = module.get_expanded_tied_weights_keys(all_submodels=False)
        module._tied_weights_keys = {k: v for k, v in own.items() if prefix + k not in gone}
        module.all_tied_weights_keys = {k: v for k, v in expanded.items() if prefix + k not in gone}
    return tuple(before)


def retie(model: nn.Module, before: tuple[TiedKeys, ...]) -> None:
    """The inverse of `untie`."""
    for keys in before:
        module = model.get_submodule(keys.name)
        assert isinstance(module, PreTrainedModel)
        module.all_tied_weights_keys = keys.expanded
        module.__dict__.pop("_tied_weights_keys", None)
        if keys.own is not None:
            module._tied_weights_keys = keys.own


def part_head(model: PreTrainedModel) -> None:
    """Give the head its own weight if it shares that of the embedding, but the config denies it.

    transformers saves a shared weight once. A model with such a config would load a random head.
    """
    head = model.get_output_embeddings()
    if head is None or head.weight is not model.get_input_embeddings().weight:
        return
    declared = model.get_expanded_tied_weights_keys(all_submodels=True)
    names = {f"{name}.weight" for name, module in model.named_modules() if module is head}
    if names.isdisjoint({*declared, *declared.values()}):
        head.weight = nn.Parameter(head.weight.detach().clone(), head.weight.requires_grad)
        model.all_tied_weights_keys = declared
