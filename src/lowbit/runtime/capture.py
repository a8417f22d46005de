"""A model as a graph, for inputs of any batch and length.

`torch.export` follows the model with its quantized modules as single operators, which stand for the
modules by name. What is captured holds for one signature (signature.py): which arguments are given,
their kinds, and the values of those that are no tensors.
"""

import operator
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from lowbit.nn import QuantEmbedding, QuantLinear
from lowbit.runtime.values import UnservedError

# The example's sizes: 0 and 1 would be taken for constants.
LEAST = 2

# What draws random numbers in training alone.
DROPPING = frozenset(
    {
        torch.ops.aten.alpha_dropout.default,
        torch.ops.aten.dropout.default,
        torch.ops.aten.feature_dropout.default,
        torch.ops.aten.scaled_dot_product_attention.default,
    }
)

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
class Kind:
    """What a tensor of a graph is. sizes: as they are written; one that differs from call to call
    has a name."""

    dtype: torch.dtype
    sizes: tuple[str, ...]

    @property
    def floats(self) -> bool:
        return self.dtype.is_floating_point


def kind(node: fx.Node) -> Kind | None:
    """That of a node, None if it is no tensor."""
    found: Kind | None = node.meta.get("kind")
    return found


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

    def still(self) -> bool:
        """Whether the model has the modules and tensors that the graph reads."""
        modules = standing_for(self.owner.model)  # type: ignore[arg-type]
        if modules.keys() != self.modules.keys():
            return False
        own = dict(self.owner.named_parameters()) | dict(self.owner.named_buffers())
        return all(modules[name] is module for name, module in self.modules.items()) and all(
            own[name] is operator.attrgetter(name)(self.module)
            for name in self.tensors
            if name in own
        )

    @property
    def arguments(self) -> tuple[str, ...]:
        """Names of the tensors of a call, in order."""
        places = (node for node in self.graph.nodes if node.op == "placeholder")
        return tuple(node.meta["argument"] for node in places)

    @property
    def tensors(self) -> list[str]:
        """Names of the parameters, buffers and constants that the graph reads."""
        named = (node.target for node in self.graph.nodes if node.op == "get_attr" and node.users)
        return list(dict.fromkeys(map(str, named)))


def capture(model: nn.Module, tensors: Mapping[str, Tensor], others: Mapping[str, Any]) -> Captured:
    """The graph of model(**tensors, **others). Batches are the first dimension of every tensor,
    lengths the second of those of integers. Raises UnservedError for a model that draws random
    numbers, and whatever torch.export does for one that it cannot follow."""
    examples = {name: _example(tensor) for name, tensor in tensors.items()}
    sizes = {name: _sizes(tensor) for name, tensor in tensors.items()}
    call = Call(model, tuple(tensors), dict(others))
    standing = _StandingIn(model)
    # The capture draws random numbers; the caller's stay as they are.
    with standing, torch.no_grad(), torch.random.fork_rng(devices=()):
        exported = torch.export.export(
            call, tuple(examples.values()), dynamic_shapes=(tuple(sizes.values()),), strict=False
        )
    if any(map(_writes_elsewhere, exported.graph.nodes)):
        # Values are followed from who makes them to who reads them; writing in place is neither.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch's, of itself
            exported = exported.run_decompositions({})
    module = exported.module(check_guards=False)
    assert isinstance(module, fx.GraphModule)
    for node in module.graph.nodes:
        if _draws(node):
            raise UnservedError(f"{node.target} draws random numbers")
        if _writes_elsewhere(node):
            raise UnservedError(f"{node.target} writes into what the model is given or holds")
    names = iter(tensors)
    for node in module.graph.nodes:
        value = node.meta.get("val")
        if isinstance(value, Tensor):
            node.meta["kind"] = Kind(value.dtype, tuple(map(str, value.shape)))
        if node.op == "placeholder":
            node.meta["argument"] = next(names)
    structure = exported.call_spec.out_spec
    assert structure is not None
    return Captured(module, structure, standing.modules, call)


class Call(nn.Module):
    """The model with its tensors in order, and its other arguments as they are."""

    def __init__(self, model: nn.Module, names: tuple[str, ...], others: dict[str, Any]) -> None:
        super().__init__()
        self.model, self.names, self.others = model, names, others
        self.training = False  # the model is in eval mode, and its modules stay as they are

    def forward(self, *tensors: Tensor) -> Any:
        return self.model(**dict(zip(self.names, tensors, strict=True)), **self.others)


def _writes_elsewhere(node: fx.Node) -> bool:
    """Whether a step writes into a value that somebody else may read."""
    schema = getattr(node.target, "_schema", None)
    if schema is None or not schema.is_mutable:
        return False
    into = node.args[0] if node.args else None
    source = getattr(getattr(into, "target", None), "_schema", None)
    if not isinstance(into, fx.Node) or source is None:
        return True
    fresh = not any(each.alias_info for each in source.returns)
    return not (fresh and node.users and set(into.users) == {node})


def _draws(node: fx.Node) -> bool:
    if torch.Tag.nondeterministic_seeded not in getattr(node.target, "tags", ()):
        return False
    return node.target not in DROPPING


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


def standing_for(model: nn.Module) -> dict[str, nn.Module]:
    """The modules that are operators, by name."""
    kinds = QuantLinear, QuantEmbedding
    return {name: each for name, each in model.named_modules() if isinstance(each, kinds)}


class _StandingIn(TorchFunctionMode):
    """Quantized modules are operators for calls of this thread while this lasts."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.modules = standing_for(model)
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
