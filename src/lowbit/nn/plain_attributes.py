"""Plain attributes of modules and configs: numbers, texts, functions, and containers of them.

A model multiplies by them and branches on them. PEFT, for example, keeps there which adapters are
active. What was recorded of a model holds only as long as they stay as they are.
"""

from collections.abc import Iterable
from copy import deepcopy
from operator import itemgetter
from types import BuiltinFunctionType, FunctionType, NoneType
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig

from lowbit.nn.quant_module import QuantModule

OF_TORCH = frozenset(vars(nn.Module()))  # parameters, children, hooks, mode
SCALARS = (NoneType, bool, int, float, complex, str, torch.dtype)
FUNCTIONS = (FunctionType, BuiltinFunctionType)


class PlainAttributes:
    """What the attributes of some modules, and of their configs, are now. Quantized modules are
    left out: their attributes change when they pack a weight."""

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        holders: dict[int, tuple[Any, list[str]]] = {}
        for module in modules:
            if isinstance(module, QuantModule):
                continue
            values = list(vars(module).values())  # another thread may add one meanwhile
            configs = [value for value in values if isinstance(value, PreTrainedConfig)]
            for holder in (module, *configs):
                plain = [name for name in vars(holder).keys() - OF_TORCH if _is_plain(holder, name)]
                if plain:
                    holders[id(holder)] = vars(holder), plain
        self._seen = [
            (held, get := itemgetter(*names), deepcopy(get(held)))
            for held, names in holders.values()
        ]

    def same(self) -> bool:
        """Whether they are still what they were."""
        try:
            return all(get(held) == seen for held, get, seen in self._seen)
        except KeyError:  # one is gone
            return False


def _is_plain(holder: Any, name: str) -> bool:
    value = vars(holder).get(name, holder)  # another thread may have removed it
    # A function in place of a method, such as `forward`, is put there for a while.
    return _is_data(value) or (isinstance(value, FUNCTIONS) and not hasattr(type(holder), name))


def _is_data(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_is_data, value)) and all(map(_is_data, value.values()))
    if isinstance(value, list | tuple | set | frozenset):
        return all(map(_is_data, value))
    return isinstance(value, SCALARS)
