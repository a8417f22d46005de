"""Record one step of a model as a flat list of torch calls.

A TorchFunctionMode sees every call of torch's public API with arguments and result. The calls that
compute the output from the inputs are the step. All other work of the model's Python (unused masks,
reading shapes, calling modules) is left out.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lowbit.decoding.cache import Position, append
from lowbit.errors import UsageError

# Calls with which Python branches on the values of a tensor.
READS = {"item", "tolist", "numpy", "nonzero", "unique", "masked_select", "__bool__", "__int__"}
READS |= {"__float__", "__index__", "__contains__", "equal", "allclose", "is_nonzero"}
# Calls that write in place, in addition to methods with a name that ends in "_".
WRITES = {"__setitem__", "__iadd__", "__isub__", "__imul__", "__itruediv__", "__ifloordiv__"}
WRITES |= {"__imod__", "__ipow__", "__iand__", "__ior__", "__ixor__"}


@dataclass(frozen=True, eq=False)
class Call:
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    result: Any

    @property
    def name(self) -> str:
        return getattr(self.function, "__name__", str(self.function))

    @property
    def written(self) -> Any:
        """The existing tensor that the call changes, or None."""
        method = self.name.endswith("_") and not self.name.endswith("__")
        return self.args[0] if method or self.name in WRITES else self.kwargs.get("out")

    @property
    def inputs(self) -> list[Tensor]:
        return list(tensors((self.args, self.kwargs)))

    @property
    def outputs(self) -> list[Tensor]:
        return list(tensors(self.result))


def leaves(tree: Any) -> Iterator[Any]:
    """The leaves of nested tuples, lists and dicts."""
    if isinstance(tree, (tuple, list)):
        for item in tree:
            yield from leaves(item)
    elif isinstance(tree, Mapping):
        yield from leaves(list(tree.values()))
    else:
        yield tree


def tensors(tree: Any) -> Iterator[Tensor]:
    return (leaf for leaf in leaves(tree) if isinstance(leaf, Tensor))


class Recording(TorchFunctionMode):
    """A context that records every call. It keeps all tensors, so that no id is reused."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self.calls.append(Call(func, args, kwargs or {}, result))
        return result


@dataclass(frozen=True, eq=False)
class Recorded:
    """The calls that the tensors of `output` depend on. varying: the ids of tensors that differ
    between steps, the inputs and all tensors computed from them. The others are constants."""

    calls: tuple[Call, ...]
    varying: set[int]
    inputs: Mapping[str, Tensor]
    output: Tensor | tuple[Tensor, ...]

    def text(self) -> list[Any]:
        """A text that is equal for two steps if they differ only in their inputs."""
        numbers: dict[int, Any] = {id(tensor): name for name, tensor in self.inputs.items()}

        def told(leaf: Any) -> Any:
            if isinstance(leaf, Position):
                return Position
            return numbers.get(id(leaf), id(leaf)) if isinstance(leaf, Tensor) else leaf

        lines = []
        for call in self.calls:
            lines.append((call.function, mapped(told, (call.args, dict(call.kwargs)))))
            for out in call.outputs:
                numbers.setdefault(id(out), len(numbers))
        return lines


def mapped(function: Callable[[Any], Any], tree: Any) -> Any:
    """Nested tuples, lists and dicts with mapped leaves."""
    if isinstance(tree, (tuple, list)):
        items = (mapped(function, item) for item in tree)
        return tuple(items) if isinstance(tree, tuple) else list(items)
    if isinstance(tree, dict):
        return {name: mapped(function, item) for name, item in tree.items()}
    return function(tree)


def varies(call: Call, varying: set[int]) -> bool:
    """Whether the result of a call differs between steps."""
    return call.function is append or any(
        isinstance(leaf, Position) or id(leaf) in varying
        for leaf in leaves((call.args, call.kwargs))
    )


def recorded(
    calls: Iterable[Call],
    inputs: Mapping[str, Tensor],
    output: Tensor | tuple[Tensor, ...],
    appends: bool = True,
) -> Recorded:
    """The part of `calls` that computes `output` from `inputs`. appends: with what it adds to the
    cache.

    Raises UsageError if Python reads values that differ between steps (another step might take
    another branch), if such values are written to existing memory, or if weights are computed from
    other weights.
    """
    calls = list(calls)
    varying = {id(tensor) for tensor in inputs.values()}
    for call in calls:
        if not varies(call, varying):
            continue
        if call.name in READS:
            raise UsageError(
                f"the model's Python reads values of tensors ({call.name}) at every token and may"
                " decide by them"
            )
        if call.written is not None and id(call.written) not in varying:
            raise UsageError(
                f"the model writes at every token to memory that it keeps ({call.name})"
            )
        varying |= {id(out) for out in call.outputs}
    needed, kept = {id(tensor) for tensor in tensors(output)}, []
    for call in reversed(calls):
        writes = call.written is not None and varies(call, varying)
        effect = writes or (appends and call.function is append)
        if effect or any(id(out) in needed for out in call.outputs):
            needed |= {id(tensor) for tensor in call.inputs}
            kept.append(call)
    _check_weights(call for call in calls if not varies(call, varying))
    return Recorded(tuple(reversed(kept)), varying, inputs, output)


def _check_weights(steady: Iterable[Call]) -> None:
    """Raises UsageError if a model computes a tensor from its weights alone. The recording would
    keep it, and could not detect a change of the weights."""
    weights: set[int] = set()
    for call in steady:
        if not call.outputs:
            continue  # A dtype or a shape is not a weight.
        read = {memory(t) for t in call.inputs if isinstance(t, nn.Parameter)}
        read |= {memory(t) for t in call.inputs if memory(t) in weights}
        if read and any(memory(out) not in read for out in call.outputs):
            raise UsageError(f"the model makes a weight from another at every token ({call.name})")
        weights |= read


def memory(tensor: Tensor) -> int:
    """The same number for a tensor and its views."""
    return tensor.untyped_storage().data_ptr()
