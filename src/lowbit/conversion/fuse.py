"""Fuse operations of transformers models into quantized linear layers, without changes of code.

*Nonlinearities.* If the source of a block has `self.act(self.layer(x))`, and uses neither
elsewhere, the layer applies the function (the kernels do so while values are in cache), and an
identity module replaces the function.

*Shared inputs.* Q, K and V, or gate and up, are computed by one call (nn/shared_input.py).

Parameters, buffers and their names do not change. `unfuse` reverts everything.
"""

import ast
import inspect
import textwrap
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from itertools import pairwise
from types import FunctionType

from torch import Tensor, nn
from transformers.activations import (
    AccurateGELUActivation,
    FastGELUActivation,
    GELUActivation,
    GELUTanh,
    NewGELUActivation,
    QuickGELUActivation,
    SiLUActivation,
)

from lowbit.nn import QuantLinear, RequantizedLinear, SharedInput

FUNCTIONS: dict[type[nn.Module], str] = {
    GELUActivation: "gelu",
    GELUTanh: "gelu_tanh",
    NewGELUActivation: "gelu_tanh",
    FastGELUActivation: "gelu_tanh",
    AccurateGELUActivation: "gelu_tanh",
    QuickGELUActivation: "quick_gelu",
    SiLUActivation: "silu",
    nn.SiLU: "silu",
    nn.ReLU: "relu",
}
# Layers that may read the same input, in the order in which they are called.
SHARED = (
    ("query", "key", "value"),
    ("q_proj", "k_proj", "v_proj"),
    ("q_lin", "k_lin", "v_lin"),
    ("q", "k", "v"),
    ("gate_proj", "up_proj"),
    ("wi_0", "wi_1"),
)


class AppliedBefore(nn.Module):
    """Replaces `function` in `block`; the layer before it applies the function.

    This module applies the function if the layer is wrapped (an adapter adds to its output), if
    this module is replaced, or if hooks would see the value between the layer and the function.
    """

    block: nn.Module
    layer: QuantLinear

    def __init__(self, block: nn.Module, name: str, layer_name: str) -> None:
        super().__init__()
        function = block.get_submodule(name)
        self.name, self.layer_name, self.function = name, layer_name, function
        # Not registered as submodules, because they contain this module.
        object.__setattr__(self, "block", block)
        object.__setattr__(self, "layer", block.get_submodule(layer_name))
        self.train(function.training)

    def in_force(self) -> bool:
        """Whether the layer applies the function."""
        around = self.block._modules
        return (
            around.get(self.name) is self
            and around.get(self.layer_name) is self.layer
            and not (
                self.layer._forward_hooks
                or self._forward_pre_hooks
                or self._forward_hooks
                or self.function._forward_pre_hooks
                or self.function._forward_hooks
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.in_force():
            return x
        y: Tensor = self.function(x)
        return y


def fuse(model: nn.Module) -> None:
    """Fuse what can be fused, in place; what is fused already stays so."""
    uses = Counter(child for block in model.modules() for child in block.children())
    for block in list(model.modules()):
        children = dict(block.named_children())
        layers = {n: m for n, m in children.items() if isinstance(m, QuantLinear) and uses[m] == 1}
        functions = {n: m for n, m in children.items() if type(m) in FUNCTIONS}
        for name, function in functions.items() if layers else ():
            kind: type = type(block)
            layer_name = layer_before(kind, name) or ""
            layer = layers.get(layer_name)
            # Outputs are rounded to int8 before the nonlinearity.
            if layer is not None and not isinstance(layer, RequantizedLinear):
                applied = AppliedBefore(block, name, layer_name)
                setattr(block, name, applied)
                layer.set_nonlinearity(FUNCTIONS[type(function)], applied.in_force)
        for names in SHARED:
            members = tuple(layers[name] for name in names if name in layers)
            if len(members) == len(names) and all(m.shared is None for m in members):
                group = SharedInput(members)
                for member in members:
                    member.shared = group


def unfuse(model: nn.Module) -> None:
    """The inverse of `fuse`."""
    for block in list(model.modules()):
        for name, child in list(block.named_children()):
            if isinstance(child, AppliedBefore):
                setattr(block, name, child.function)
            elif isinstance(child, QuantLinear):
                child.set_nonlinearity("identity")
                child.shared = None


@lru_cache(maxsize=1024)
def layer_before(block: type, function: str) -> str | None:
    """The layer whose result is the only argument of `function` in `block`, and is used nowhere
    else; None if the source does not show one."""
    nodes = [node for method in _methods(block) for node in ast.walk(method)]
    found = [(layer, name) for node in nodes for layer, name in _applied(node) if name == function]
    used = [node.attr for node in nodes if isinstance(node, ast.Attribute) and _of_self(node.value)]
    for layer, _ in found:
        if used.count(function) == used.count(layer) == 1:
            return layer
    return None


def _methods(block: type) -> list[ast.AST]:
    """The syntax trees of all methods, except those of nn.Module and the constructor."""
    methods: dict[str, FunctionType] = {}
    for kind in block.__mro__[: block.__mro__.index(nn.Module)]:
        for name, method in vars(kind).items():
            if isinstance(method, FunctionType):
                methods.setdefault(name, inspect.unwrap(method))
    methods.pop("__init__", None)
    try:
        return [ast.parse(textwrap.dedent(inspect.getsource(m))) for m in methods.values()]
    except (OSError, SyntaxError):  # no source, or source that cannot be parsed alone
        return []


def _applied(node: ast.AST) -> Iterator[tuple[str, str]]:
    """(layer, function) of `self.function(self.layer(x))`, and of two statements in succession,
    `y = self.layer(x)` and `y = self.function(y)`."""
    match node:
        case ast.Call(ast.Attribute(outer, function), [ast.Call(ast.Attribute(inner, layer), [_])]):
            if _of_self(outer) and _of_self(inner):
                yield layer, function
    statements = getattr(node, "body", None)
    for pair in pairwise(statements if isinstance(statements, list) else []):
        match pair:
            case (
                ast.Assign([ast.Name(first)], ast.Call(ast.Attribute(inner, layer), [_])),
                ast.Assign(
                    [ast.Name(second)],
                    ast.Call(ast.Attribute(outer, function), [ast.Name(argument)]),
                ),
            ) if first == second == argument and _of_self(outer) and _of_self(inner):
                yield layer, function


def _of_self(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and node.id == "self"
