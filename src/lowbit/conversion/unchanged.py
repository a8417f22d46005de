"""Restore a model if a change of it fails."""

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def unchanged_on_error(model: nn.Module) -> Iterator[None]:
    """A context that restores the attributes of all modules of `model` if an exception is raised:
    parameters, buffers, submodules, hooks, configs. It does not restore the contents of tensors and
    config objects: inside, replace them, and do not write to them."""
    before = [(module, dict(vars(module))) for module in model.modules()]
    contents = [
        (held, held.copy())
        for _, attributes in before
        for held in attributes.values()
        if type(held) in (dict, OrderedDict)
    ]
    sets = [(held, held.copy()) for _, a in before for held in a.values() if type(held) is set]
    try:
        yield
    except BaseException:
        for held, content in (*contents, *sets):
            held.clear()
            held.update(content)
        for module, attributes in before:
            vars(module).clear()
            vars(module).update(attributes)
        raise
