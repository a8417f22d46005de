"""A model as a graph, for inputs of any batch and length.

`torch.export` traces the model. Each quantized module is one operator, which names the module. A
graph is valid for one signature (signature.py): the given arguments, their kinds, and the values of
arguments that are not tensors.
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

# Sizes of the example: torch.export would take 0 and 1 for constants.
LEAST = 2

# Operators that draw random numbers only in training.
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
    """The dtype and sizes of a tensor of a graph. sizes: as text; a size that differs between calls
    is a name."""

    dtype: torch.dtype
    sizes: tuple[str, ...]

    @property
    def floats(self) -> bool:
        return self.dtype.is_floating_point


def kind(node: fx.Node) -> Kind | None:
    """The kind of a node; None if it is not a tensor."""
    found: Kind | None = node.meta.get("kind")
    return found


@dataclass(frozen=True)
class Captured:
    """A captured graph.

    graph: its placeholders are the tensors of a call by name, its output is a tuple of results.
    structure: the structure in which the model returns these. modules: the quantized modules by
    name. owner: the object with the model as its attribute `model`; names of parameters and buffers
    start there.
    """

    module: fx.GraphModule
    structure: pytree.TreeSpec
    modules: Mapping[str, nn.Module]
    owner: nn.Module

    @property
    def graph(self) -> fx.Graph:
        return self.module.graph

    def still(self) -> bool:
        """Whether the model still has the modules and tensors that the graph reads."""
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
    lengths the second of integer tensors. Raises UnservedError if the model draws random numbers,
    and the errors of torch.export if it cannot trace the model."""
    examples = {name: _example(tensor) for name, tensor in tensors.items()}
    sizes = {name: _sizes(tensor) for name, tensor in tensors.items()}
    call = Call(model, tuple(tensors), dict(others))
    standing = _StandingIn(model)
    # The capture draws random numbers; keep the caller's generator unchanged.
    with standing, torch.no_grad(), torch.random.fork_rng(devices=()):
        exported = torch.export.export(
            call, tuple(examples.values()), dynamic_shapes=(tuple(sizes.values()),), strict=False
        )
    if any(map(_writes_elsewhere, exported.graph.nodes)):
        # Lowering follows values from producer to consumers; in-place writes have neither.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch warns about its own code
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
    """Calls the model with tensors in order and with fixed other arguments."""

    def __init__(self, model: nn.Module, names: tuple[str, ...], others: dict[str, Any]) -> None:
        super().__init__()
        self.model, self.names, self.others = model, names, others
        self.training = False  # the model is in eval mode; do not change its modules

    def forward(self, *tensors: Tensor) -> Any:
        return self.model(**dict(zip(self.names, tensors, strict=True)), **self.others)


def _writes_elsewhere(node: fx.Node) -> bool:
    """Whether a step writes in place into a value that another step may read."""
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
    """A tensor of the same kind, with sizes that torch.export does not take for constants."""
    for dim in range(_free(tensor)):
        size = tensor.shape[dim]
        if size < LEAST:
            tensor = tensor.repeat_interleave(LEAST + dim, dim)
    return tensor


def _free(tensor: Tensor) -> int:
    """The number of dimensions that differ between calls."""
    return 1 if tensor.is_floating_point() else min(2, tensor.dim())


def _sizes(tensor: Tensor) -> dict[int, Any]:
    return dict.fromkeys(range(_free(tensor)), torch.export.Dim.DYNAMIC)


def standing_for(model: nn.Module) -> dict[str, nn.Module]:
    """The quantized modules that a capture replaces by operators, by name."""
    kinds = QuantLinear, QuantEmbedding
    return {name: each for name, each in model.named_modules() if isinstance(each, kinds)}


class _StandingIn(TorchFunctionMode):
    """A context in which this thread's calls of quantized modules become operators."""

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


# By the call that a module shows to TorchFunctionModes: the operator, and its columns.
_OPERATORS: dict[Any, tuple[Any, str]] = {
    QuantLinear.forward: (LINEAR, "out_features"),
    QuantEmbedding.forward: (ROWS, "embedding_dim"),
}
