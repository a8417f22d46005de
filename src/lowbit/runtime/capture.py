"""A model as a graph, for inputs of any batch and length.

`torch.export` follows the model with its quantized modules as single operators, which stand for the
modules by name. What is captured holds for one signature (signature.py): which arguments are given,
their kinds, and the values of those that are no tensors.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from lowbit.nn import QuantEmbedding, QuantLinear

# The example's sizes: 0 and 1 would be taken for constants.
LEAST = 2

_LIBRARY = torch.library.Library("lowbit_runtime", "DEF")
_LIBRARY.define("linear(Tensor x, str name, int columns) -> Tensor")
_LIBRARY.define("rows(Tensor ids, str name, int columns) -> Tensor")
LINEAR = torch.ops.lowbit_runtime.linear.default
ROWS = torch.ops.lowbit_runtime.rows.default


def _like_linear(x: Tensor, name: str, columns: int) -> Tensor:
    return x.new_empty(*x.shape[:-1], columns)


def _like_rows(ids: Tensor, name: str, columns: int) -> Tensor:
    return ids.new_empty(*ids.shape, columns, dtype=torch.float32)


torch.library.register_fake("lowbit_runtime::linear", _like_linear, lib=_LIBRARY)
torch.library.register_fake("lowbit_runtime::rows", _like_rows, lib=_LIBRARY)


@dataclass(frozen=True)
class Captured:
    """graph: its placeholders are the tensors of a call by name, its output their results in one
    tuple; `structure` says what the model returns them in. modules: quantized ones by name. owner:
    what has the model as its attribute `model`, under which parameters and buffers are named."""

    module: fx.GraphModule
    structure: pytree.TreeSpec
    modules: Mapping[str, nn.Module]
    owner: nn.Module

    @property
    def graph(self) -> fx.Graph:
        return self.module.graph

    @property
    def tensors(self) -> list[str]:
        """Names of the parameters, buffers and constants that the graph reads."""
        named = (node.target for node in self.graph.nodes if node.op == "get_attr" and node.users)
        return list(dict.fromkeys(map(str, named)))


def capture(model: nn.Module, tensors: Mapping[str, Tensor], others: Mapping[str, Any]) -> Captured:
    """The graph of model(**tensors, **others). Batches are the first dimension of every tensor,
    lengths the second of those of integers. Raises whatever torch.export does for a model that it
    cannot follow."""
    examples = {name: _example(tensor) for name, tensor in tensors.items()}
    sizes = {name: _sizes(tensor) for name, tensor in tensors.items()}
    call = _Call(model, tuple(tensors), dict(others))
    standing = _StandingIn(model)
    with standing, torch.no_grad():
        exported = torch.export.export(
            call, tuple(examples.values()), dynamic_shapes=(tuple(sizes.values()),), strict=False
        )
    module = exported.module(check_guards=False)
    assert isinstance(module, fx.GraphModule)
    names = iter(tensors)
    for node in module.graph.nodes:
        if node.op == "placeholder":
            node.meta["argument"] = next(names)
    structure = exported.call_spec.out_spec
    assert structure is not None
    return Captured(module, structure, standing.modules, call)


class _Call(nn.Module):
    """The model with its tensors in order, and its other arguments as they are."""

    def __init__(self, model: nn.Module, names: tuple[str, ...], others: dict[str, Any]) -> None:
        super().__init__()
        self.model, self.names, self.others = model, names, others
        self.training = False  # the model is in eval mode, and its modules stay as they are

    def forward(self, *tensors: Tensor) -> Any:
        return self.model(**dict(zip(self.names, tensors, strict=True)), **self.others)


def _example(tensor: Tensor) -> Tensor:
    """The same with sizes that are not taken for constants."""
    for dim in range(_free(tensor)):
        size = tensor.shape[dim]
        if size < LEAST:
            tensor = tensor.repeat_interleave(LEAST + dim, dim)
    return tensor


def _free(tensor: Tensor) -> int:
    """How many dimensions differ from call to call."""
    return 1 if tensor.is_floating_point() else min(2, tensor.dim())


def _sizes(tensor: Tensor) -> dict[int, Any]:
    return dict.fromkeys(range(_free(tensor)), torch.export.Dim.DYNAMIC)


class _StandingIn(TorchFunctionMode):
    """Quantized modules are operators for calls of this thread while this lasts."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        kinds = QuantLinear, QuantEmbedding
        self.modules = {n: m for n, m in model.named_modules() if isinstance(m, kinds)}
        self.names = {id(module): name for name, module in self.modules.items()}

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        operator, columns = _OPERATORS.get(func, (None, ""))
        if operator is None or id(args[0]) not in self.names:
            return func(*args, **(kwargs or {}))
        module, x = args
        return operator(x, self.names[id(module)], getattr(module, columns))


# By the call that a module shows to who watches: the operator, and what says its columns.
_OPERATORS: dict[Any, tuple[Any, str]] = {
    QuantLinear.forward: (LINEAR, "out_features"),
    QuantEmbedding.forward: (ROWS, "embedding_dim"),
}
