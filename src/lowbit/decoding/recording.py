"""What one step of a model asks of torch: a flat list of calls.

A mode of torch sees every function and method of the public API that the model's Python calls,
with arguments and result. What those calls compute from a step's inputs is the step; everything
else the Python did (building masks that are not needed, reading shapes, passing modules by) is
left out.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lowbit.decoding.cache import Position, append
from lowbit.errors import UsageError

# Where Python decides by the values of a tensor.
READS = {"item", "tolist", "numpy", "nonzero", "unique", "masked_select", "__bool__", "__int__"}
READS |= {"__float__", "__index__", "__contains__", "equal", "allclose", "is_nonzero"}
# Beside methods whose name ends in "_".
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
        """What the call changes that is there already, or None."""
        method = self.name.endswith("_") and not self.name.endswith("__")
        return self.args[0] if method or self.name in WRITES else self.kwargs.get("out")

    @property
    def inputs(self) -> list[Tensor]:
        return list(tensors((self.args, self.kwargs)))

    @property
    def outputs(self) -> list[Tensor]:
        return list(tensors(self.result))


def leaves(tree: Any) -> Iterator[Any]:
    """What nested tuples, lists and dicts hold."""
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
    """Within it, every call is kept. Tensors are kept too, so that none takes another's id."""

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
    """The calls that `output` depends on, and `varying`, the ids of tensors that differ from step
    to step: inputs and whatever is computed from them. The others are constants by now."""

    calls: tuple[Call, ...]
    varying: set[int]
    inputs: Mapping[str, Tensor]
    output: Tensor

    def text(self) -> list[Any]:
        """The same for two steps that differ in their inputs only."""
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
    """The same nested tuples, lists and dicts with other leaves."""
    if isinstance(tree, (tuple, list)):
        items = (mapped(function, item) for item in tree)
        return tuple(items) if isinstance(tree, tuple) else list(items)
    if isinstance(tree, dict):
        return {name: mapped(function, item) for name, item in tree.items()}
    return function(tree)


def varies(call: Call, varying: set[int]) -> bool:
    """Whether a call gives something else in another step."""
    return call.function is append or any(
        isinstance(leaf, Position) or id(leaf) in varying
        for leaf in leaves((call.args, call.kwargs))
    )


def recorded(calls: Iterable[Call], inputs: Mapping[str, Tensor], output: Tensor) -> Recorded:
    """What of `calls` makes `output` from `inputs`.

    Raises UsageError where Python looked at values that differ from step to step, as another step
    might take another way, where such values went to memory that was there before, and where
    weights are made from others.
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
    needed, kept = {id(output)}, []
    for call in reversed(calls):
        effect = call.function is append or (call.written is not None and varies(call, varying))
        if effect or any(id(out) in needed for out in call.outputs):
            needed |= {id(tensor) for tensor in call.inputs}
            kept.append(call)
    _check_weights(call for call in calls if not varies(call, varying))
    return Recorded(tuple(reversed(kept)), varying, inputs, output)


def _check_weights(steady: Iterable[Call]) -> None:
    """Raises UsageError where a model makes something from its weights alone: a recording keeps
    it, and training need not leave a trace by which to see that weights changed."""
    weights: set[int] = set()
    for call in steady:
        if not call.outputs:
            continue  # A dtype or a shape is no weight.
        read = {memory(t) for t in call.inputs if isinstance(t, nn.Parameter)}
        read |= {memory(t) for t in call.inputs if memory(t) in weights}
        if read and any(memory(out) not in read for out in call.outputs):
            raise UsageError(f"the model makes a weight from another at every token ({call.name})")
        weights |= read


def memory(tensor: Tensor) -> int:
    """The same number for a tensor and its views."""
    return tensor.untyped_storage().data_ptr()
