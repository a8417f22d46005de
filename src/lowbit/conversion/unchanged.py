"""All or nothing: a model whose change fails is what it was before."""

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def unchanged_on_error(model: nn.Module) -> Iterator[None]:
    """If anything is raised inside, every module of `model` has its attributes back: parameters,
    buffers, submodules, hooks, configs. What tensors and config objects hold is not looked after:
    replace them inside, do not write to them."""
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
