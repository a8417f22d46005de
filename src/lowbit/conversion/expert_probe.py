"""Find the parameters of a module that are weights of experts, by running its `forward`.

For classes without the attributes that describe experts. A copy of the module runs with stand-ins
for the parameters [experts, …, …]. Stand-ins have shapes but no numbers, and record their uses. If
a parameter is used only as the weight of products, by one expert at a time or by all at once, it is
accepted. QuantExperts serves these uses. For any other use it returns the decoded weight, so a use
that the run missed costs time but does not change results.
"""

import copy
from collections.abc import Callable, Mapping
from itertools import product
from typing import Any, Self, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lowbit.nn.experts import QuantExperts

TOKENS = 4
_ASKED = ("shape", "dtype", "device", "ndim", "size", "dim", "is_meta", "requires_grad")


def transposed_by_name(module: nn.Module) -> dict[str, bool]:
    """For each parameter of experts, whether it is [experts, in, out] instead of [experts, out,
    in]. Empty if the module has other parameters, or the run shows no product with one of them.
    Quantized parameters count in their float shape.

    A parameter named "weight" does not count: it is the only weight of its module.
    """
    shapes = _shapes(module)
    sizes = {size for shape in shapes.values() for size in shape[1:]}
    for call, size in product(_CALLS, sorted(sizes)):
        seen: dict[str, bool] = {}
        twin = copy.copy(module)
        twin._parameters = {name: _StandIn(shape, name, seen) for name, shape in shapes.items()}  # type: ignore[misc]
        twin._modules = {n: m for n, m in module._modules.items() if n not in shapes}
        twin.training = False
        with torch.no_grad(), torch.device("cpu"), torch.random.fork_rng(devices=[]):
            try:
                y = type(module).forward(twin, *call(min(s[0] for s in shapes.values()), size))
            except Exception:  # the module's code may need other arguments
                continue
        if isinstance(y, Tensor) and y.shape[-1] == size and seen.keys() == shapes.keys():
            return seen
    return {}


def _shapes(module: nn.Module) -> dict[str, torch.Size]:
    """The shapes of all parameters, if each may be weights of experts."""
    shapes = {n: torch.Size(m.float_shape) for n, m in module._modules.items() if _stored(m)}
    for name, p in module._parameters.items():
        if p is None:
            continue
        if name == "weight" or p.ndim != 3 or not p.is_floating_point() or 0 in p.shape:
            return {}
        shapes[name] = p.shape
    return shapes if all(shape[0] > 1 for shape in shapes.values()) else {}


def _stored(module: nn.Module | None) -> TypeGuard[QuantExperts]:
    return isinstance(module, QuantExperts)


def _routed(experts: int, size: int) -> tuple[Tensor, ...]:
    """Tokens, the ids of their experts, and the routing weights."""
    ids = torch.arange(2 * TOKENS).reshape(TOKENS, 2) % experts
    return torch.zeros(TOKENS, size), ids, torch.ones(TOKENS, 2)


def _sorted(experts: int, size: int) -> tuple[Tensor, ...]:
    """Tokens sorted by expert, the same number for each."""
    return (torch.zeros(experts, size),)


_CALLS: tuple[Callable[[int, int], tuple[Tensor, ...]], ...] = (_routed, _sorted)


class _StandIn(Tensor):
    """A parameter, or the part of one expert, without numbers. `seen` records the products with it;
    any other use raises an error."""

    parameter: str
    seen: dict[str, bool]

    @staticmethod
    def __new__(cls, shape: torch.Size, name: str, seen: dict[str, bool]) -> Self:
        made: Self = torch.Tensor._make_wrapper_subclass(cls, shape, device=torch.device("cpu"))
        made.parameter, made.seen = name, seen
        return made

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        match func, args:
            case Tensor.__getitem__, (_StandIn() as whole, number) if whole.ndim == 3:
                int(number)  # one expert, or an error
                return _StandIn(whole.shape[1:], whole.parameter, whole.seen)
            case F.linear, (Tensor() as x, _StandIn() as one) if one.ndim == 2 and not kwargs:
                return one._multiplies(x, one.shape[0], one.shape[1], transposed=False)
            case torch.bmm, (Tensor() as x, _StandIn() as whole) if len(x) == whole.shape[0]:
                return whole._multiplies(x, whole.shape[2], whole.shape[1], transposed=True)
        name = getattr(func, "__name__", "")
        asked = getattr(getattr(func, "__self__", None), "__name__", name)  # of an attribute
        if asked not in _ASKED:
            raise TypeError(f"{name} is asked of the weights of experts")
        return super().__torch_function__(func, types, args, kwargs or {})

    def _multiplies(self, x: Tensor, outputs: int, inputs: int, *, transposed: bool) -> Tensor:
        if x.shape[-1] != inputs or self.seen.setdefault(self.parameter, transposed) != transposed:
            raise ValueError(f"x {list(x.shape)} does not fit {list(self.shape)}")
        return x.new_zeros(*x.shape[:-1], outputs)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        raise TypeError(f"{func} is asked of the weights of experts")
