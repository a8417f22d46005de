"""All modules of a model, in half of the time of `Module.named_modules`, which makes names and has
a generator for each level."""

from collections.abc import Iterator

from torch import nn


def modules(model: nn.Module) -> Iterator[nn.Module]:
    """The model and the modules in it. A module that is in it twice is yielded twice."""
    waiting = [model]
    while waiting:
        module = waiting.pop()
        yield module
        waiting += [child for child in module._modules.values() if child is not None]


def name_of(module: nn.Module, model: nn.Module) -> str:
    names = (name for name, own in model.named_modules() if own is module)
    return next(names) or "the model"
