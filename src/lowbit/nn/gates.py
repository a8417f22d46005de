"""Find out, by running it, whether native code can apply the gate of an experts module.

A gate splits the output of the first projection in two halves, [gate, up] or interleaved, and joins
them. If the result is f(gate) · up for consecutive halves and a known function f, the product
computes it while the values are in cache. Otherwise the module's own code applies the gate.
"""

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from lowbit.kernels.linear.reference import NONLINEARITIES

IDENTITY = "identity"
LARGE = 100.0  # the factor of some test inputs, large enough to detect gates that clamp
_FOUND: WeakKeyDictionary[nn.Module, tuple[Any, str]] = WeakKeyDictionary()


def known_gate(module: nn.Module, size: int) -> str:
    """The name of f, a nonlinearity of the kernels, for a gate with halves of `size` numbers;
    "identity" for any other gate, and if the module of f has hooks."""
    function = getattr(module, "act_fn", None)
    if isinstance(function, nn.Module) and (function._forward_hooks or function._forward_pre_hooks):
        return IDENTITY
    found = _FOUND.get(module)
    if found is None or found[0] is not function:
        found = _FOUND[module] = function, _probed(module, size)
    return found[1]


def _probed(module: nn.Module, size: int) -> str:
    chance = torch.Generator().manual_seed(0)
    x = torch.randn(8, 2 * size, generator=chance, device="cpu")
    x[4:] *= LARGE
    given, (gate, up) = x.clone(), x.chunk(2, dim=-1)
    with torch.no_grad(), torch.device("cpu"), torch.random.fork_rng(devices=[]):
        try:
            y = module._apply_gate(given)  # type: ignore[operator]
        except Exception:
            return IDENTITY
    if not isinstance(y, torch.Tensor) or y.shape != up.shape or not torch.equal(given, x):
        return IDENTITY
    for name, function in NONLINEARITIES.items():
        if name != IDENTITY and torch.allclose(y, function(gate) * up, rtol=1e-5, atol=1e-6):
            return name
    return IDENTITY
