"""Compile a recorded step to straight-line Python.

All shapes of a step are known, and so is most of its memory. Therefore

- results go to preallocated buffers if the operation has an `out` argument; a view of a buffer is
  created once, here, and costs nothing in a step;
- quantized layers are calls of native code with fixed addresses; layers with the same input are one
  call; so is lowbit's attention (kernels/attention/hf_attention.py);
- consecutive operations on a few thousand numbers are one call of native code
  (kernels/elementwise.py, kernels/layer_norm.py);
- calls that return their argument (dropout, `contiguous`, `to`) are left out.

The result is one line per operation, with the model's arithmetic in its order, so that all bits are
the same.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from lowbit.decoding.cache import GrowingLayer, Position, append
from lowbit.decoding.recording import Call, Recorded, leaves, mapped, tensors, varies
from lowbit.errors import UsageError
from lowbit.kernels import elementwise, layer_norm, ops
from lowbit.kernels.attention import native as attention
from lowbit.kernels.embedding import native as embedding
from lowbit.kernels.linear import native as linear
from lowbit.kernels.packed_layout import PackedLayout
from lowbit.kernels.sequence import SmallOperation, sequence
from lowbit.nn import QuantEmbedding, QuantLinear
from lowbit.nn.linear import PackedCall

# By the name of a call: the same function with an argument `out`.
INTO: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(("add", "__add__", "__radd__"), torch.add),
    **dict.fromkeys(("mul", "__mul__", "__rmul__"), torch.mul),
    **dict.fromkeys(("neg", "__neg__"), torch.neg),
    **dict.fromkeys(("pow", "__pow__"), torch.pow),
    "cat": torch.cat,
    "mean": torch.mean,
    "rsqrt": torch.rsqrt,
    "cos": torch.cos,
    "sin": torch.sin,
    "tanh": torch.tanh,
    "sub": torch.sub,
    "__sub__": torch.sub,
}
# By a Python function: the torch function that it calls with the same arguments.
DIRECT: dict[Callable[..., Any], Callable[..., Any]] = {functional.layer_norm: torch.layer_norm}
# (layers, position, **inputs) -> the recorded output: a tensor, or a tuple of tensors.
Program = Callable[..., Any]


def program(earlier: Recorded, later: Recorded, layers: Sequence[GrowingLayer]) -> Program:
    """step(layers, position, **inputs) -> output, from two recordings with different numbers of
    tokens. position: what a Position in the recordings stands for.

    The next step overwrites the output. Raises UsageError if the steps differ in more than their
    inputs.
    """
    if earlier.text() != later.text():
        raise UsageError("what the model calls changes with the number of tokens that it has read")
    return _Writer(earlier, later, layers).program()


class _Writer:
    def __init__(self, earlier: Recorded, later: Recorded, layers: Sequence[GrowingLayer]) -> None:
        self.recorded = later
        self.layers = {id(layer): i for i, layer in enumerate(layers)}
        self.lines: list[str] = []
        self.small: list[SmallOperation] = []  # operations that become one line
        self.known: dict[str, Any] = {}  # the constants of the program, by name
        self.names: dict[int, str] = {}  # names of tensors that are new in each step
        # By id of a recorded tensor: its fixed replacement; the call that makes it a view, with the
        # base tensor; the tensor itself.
        self.fixed: dict[int, Tensor] = {}
        self.views: dict[int, tuple[Call, Tensor]] = {}
        self.aliases: dict[int, Tensor] = {}
        self.appended: dict[int, Call] = {}  # by ids of keys that only attention reads
        self.done: set[int] = set()  # ids of calls that an earlier line computes
        # Shapes that do not change between steps.
        self.steady = {
            id(new)
            for a, b in zip(earlier.calls, later.calls, strict=True)
            for old, new in zip(a.outputs, b.outputs, strict=True)
            if old.shape == new.shape and old.stride() == new.stride()
        }
        self.pure = not any(call.written is not None for call in later.calls)

    def program(self) -> Program:
        recorded = self.recorded
        self.names.update((id(tensor), name) for name, tensor in recorded.inputs.items())
        for call in recorded.calls:
            if varies(call, recorded.varying) and id(call) not in self.done:
                self.write(call)
        self.line(f"return {self.text(recorded.output)}")
        body = "\n    ".join(self.lines)
        header = ", ".join(["layers", "position", *recorded.inputs])
        source = f"def step({header}):\n    {body}\n"
        exec(compile(source, "<recorded step>", "exec"), self.known)
        step: Program = self.known["step"]
        return step

    def write(self, call: Call) -> None:
        if call.function is append:
            if self.attended_only(call):
                return
            layer, keys, values = call.args
            extended = f"layers[{self.layers[id(layer)]}].extended"
            self.emit(call, f"{extended}({self.text(keys)}, {self.text(values)})")
            return
        shortcuts = [self.normalized, self.into_buffer, self.attended, self.looked_up]
        if not any(isinstance(leaf, Position) for leaf in leaves((call.args, call.kwargs))):
            shortcuts += [self.same, self.view, self.quantized, self.postponed]
        if not any(shortcut(call) for shortcut in shortcuts):
            function = DIRECT.get(call.function, call.function)
            self.emit(call, f"{self.constant(function)}({self.arguments(call)})")

    def line(self, text: str) -> None:
        """Append a line."""
        if self.small:
            run = self.constant(sequence(self.small))
            self.small = []
            self.lines.append(f"{run}()")
        self.lines.append(text)

    def emit(self, call: Call, expression: str) -> None:
        outputs = call.outputs
        if call.written is not None or not outputs:
            self.line(expression)
            return
        for out in outputs:
            self.names.setdefault(id(out), f"t{len(self.names)}")
        target = mapped(lambda leaf: self.names.get(id(leaf), "_"), call.result)
        self.line(f"{_target(target)} = {expression}")

    def same(self, call: Call) -> bool:
        """Leave out a call that returns one of its inputs, or the same memory in the same shape."""
        out = call.result
        if call.written is not None or not isinstance(out, Tensor):
            return False
        for source in call.inputs:
            if id(source) in self.recorded.varying and (source is out or _alike(source, out)):
                if source is not out:
                    self.aliases[id(out)] = self.original(source)
                return True
        return False

    def original(self, leaf: Any) -> Any:
        """The input of a call that changes nothing."""
        return self.aliases.get(id(leaf), leaf)

    def view(self, call: Call) -> bool:
        """A view of a fixed tensor, which is fixed too."""
        varying = [self.original(t) for t in call.inputs if id(t) in self.recorded.varying]
        outputs = call.outputs
        if call.written is not None or not outputs or not all(id(t) in self.fixed for t in varying):
            return False
        memory = {t.untyped_storage().data_ptr() for t in varying}
        if not all(out.untyped_storage().data_ptr() in memory for out in outputs):
            return False
        made = call.function(*self.standing(call.args), **self.standing(dict(call.kwargs)))
        self.fixed.update((id(out), view) for out, view in zip(outputs, tensors(made), strict=True))
        return True

    def quantized(self, call: Call) -> bool:
        """A quantized layer by native code, with all layers that read the same input."""
        if call.function is not QuantLinear.forward or id(call.result) not in self.steady:
            return False
        if not self.pure:
            return False
        x = self.original(call.args[1])
        own = _packed_call(call)
        if own is None or x.dtype is not torch.float32 or not x.is_contiguous():
            return False
        group, products, weights = [], [], []
        for other in self.recorded.calls:
            if other.function is QuantLinear.forward and self.original(other.args[1]) is x:
                packed = _packed_call(other)
                if packed is not None and packed.product.input_form == own.product.input_form:
                    group.append(other)
                    products.append(packed.product)
                    weights.append((packed.weight.bytes, packed.bias))
        ys = [torch.empty_like(other.result) for other in group]
        run = self.constant(linear.in_place(products, weights, ys))
        self.line(f"{run}({self.address(x)})")
        self.fixed.update((id(other.result), y) for other, y in zip(group, ys, strict=True))
        self.done |= {id(other) for other in group}
        return True

    def looked_up(self, call: Call) -> bool:
        """Rows of a table with one part, by native code."""
        if call.function is not QuantEmbedding.forward or id(call.result) not in self.steady:
            return False
        layer, ids = call.args
        packed = layer.pack()
        if packed is None or not isinstance(packed.layout, PackedLayout) or layer.rounds_scale:
            return False
        if ids.dtype is not torch.int64 or call.result.dtype is not torch.float32:
            return False
        y = torch.empty_like(call.result, memory_format=torch.contiguous_format)
        rows = self.constant(embedding.in_place(packed.bytes, packed.layout, y))
        self.line(f"{rows}({self.text(ids)})")
        if layer.embed_scale is not None:
            self.line(f"{self.constant(y)}.mul_({layer.embed_scale!r})")
        self.fixed[id(call.result)] = y
        return True

    def into_buffer(self, call: Call) -> bool:
        """A function that writes to a preallocated buffer."""
        out, into = call.result, INTO.get(call.name)
        if (
            into is None
            or call.written is not None
            or id(out) not in self.steady
            or "dtype" in call.kwargs
        ):
            return False
        buffer = torch.empty_like(out)
        self.fixed[id(out)] = buffer
        small = self.small_operations(call, into, buffer)
        if small:
            self.small += small
            return True
        arguments = f"{self.arguments(call)}, out={self.constant(buffer)}"
        self.line(f"{self.constant(into)}({arguments})")
        return True

    def normalized(self, call: Call) -> bool:
        """torch's layer norm by native code with the same bits."""
        function, out = DIRECT.get(call.function, call.function), call.result
        if function is not torch.layer_norm or id(out) not in self.steady:
            return False
        if not self.is_fixed(call):
            return False
        buffer = torch.empty_like(out)
        arguments = self.standing(call.args), self.standing(dict(call.kwargs))
        made = layer_norm.operation(buffer, *arguments[0], **arguments[1])
        if made is None:
            return False
        self.fixed[id(out)] = buffer
        self.small.append(made)
        return True

    def small_operations(
        self, call: Call, into: Callable[..., Any], buffer: Tensor
    ) -> Sequence[SmallOperation]:
        """The native operations for a call, if all operands are fixed."""
        if not self.is_fixed(call):
            return []
        return elementwise.operations(
            into, self.standing(call.args), self.standing(dict(call.kwargs)), buffer
        )

    def attended(self, call: Call) -> bool:
        """lowbit's attention, which writes to a preallocated buffer."""
        out = call.result
        if call.function is not ops.attention or id(out) not in self.steady:
            return False
        query, key, value, mask, *how = call.args
        y = torch.empty_like(out)
        if id(key) in self.appended:
            layer, key, value = self.appended[id(key)].args
            run = self.constant(attention.appending(y, query, key, value, *how))
            places = ", ".join(map(self.address, (query, key, value)))
            attended = f"layers[{self.layers[id(layer)]}].attended"
            self.line(f"{attended}({run}, {key.shape[2]}, {places}, {self.text(mask)})")
        else:
            run = self.constant(attention.in_place(y, query, key, *how))
            self.line(f"{run}({', '.join(map(self.text, (query, key, value, mask)))})")
        self.fixed[id(out)] = y
        return True

    def attended_only(self, appended: Call) -> bool:
        """Keys and values of new tokens that only lowbit's attention reads. The line of the
        attention appends them."""
        keys, values = appended.outputs
        readers = [
            call
            for call in self.recorded.calls
            if any(read is keys or read is values for read in call.inputs)
        ]
        if len(readers) != 1 or readers[0].function is not ops.attention or not self.pure:
            return False
        reader = readers[0]
        query, key, value, *_ = reader.args
        rows = (self.original(t) for t in (query, *appended.args[1:]))
        if (
            id(reader.result) not in self.steady
            or key is not keys
            or value is not values
            or not all(id(t) in self.steady and t.stride(-1) == 1 for t in rows)
        ):
            return False
        self.appended[id(keys)] = appended
        return True

    def postponed(self, call: Call) -> bool:
        """A view of a tensor that is new in each step, created only if it is read. A quantized
        layer reads only its address."""
        out = call.result
        if call.written is not None or not isinstance(out, Tensor) or id(out) not in self.steady:
            return False
        memory = out.untyped_storage().data_ptr()
        for source in map(self.original, call.inputs):
            if self.is_variable(source) and source.untyped_storage().data_ptr() == memory:
                self.views[id(out)] = call, source
                return True
        return False

    def standing(self, tree: Any) -> Any:
        """Arguments with recorded tensors replaced by fixed ones."""

        def standing(leaf: Any) -> Any:
            leaf = self.original(leaf)
            return self.fixed.get(id(leaf), leaf)

        return mapped(standing, tree)

    def address(self, x: Tensor) -> str:
        if id(x) in self.fixed:
            return str(self.fixed[id(x)].data_ptr())
        root = x
        while id(root) in self.views and id(root) not in self.names:
            _, root = self.views[id(root)]
        return f"{self.text(root)}.data_ptr() + {x.data_ptr() - root.data_ptr()}"

    def arguments(self, call: Call) -> str:
        named = [f"{name}={self.text(arg)}" for name, arg in call.kwargs.items()]
        return ", ".join([*(self.text(arg) for arg in call.args), *named])

    def text(self, tree: Any) -> str:
        """An argument as source code."""
        if isinstance(tree, (tuple, list)) and any(self.is_variable(leaf) for leaf in leaves(tree)):
            items = "".join(f"{self.text(item)}, " for item in tree)
            return f"({items})" if isinstance(tree, tuple) else f"[{items}]"
        if self.is_variable(tree):
            tree = self.original(tree)
            if id(tree) in self.views and id(tree) not in self.names:
                call, _ = self.views[id(tree)]
                self.emit(call, f"{self.constant(call.function)}({self.arguments(call)})")
            return "position" if isinstance(tree, Position) else self.names[id(tree)]
        return self.constant(self.standing(tree))

    def is_fixed(self, call: Call) -> bool:
        """Whether all arguments are constants or in buffers."""
        return not any(self.is_variable(leaf) for leaf in leaves((call.args, call.kwargs)))

    def is_variable(self, leaf: Any) -> bool:
        known = id(self.original(leaf))
        return isinstance(leaf, Position) or known in self.names or known in self.views

    def constant(self, value: Any) -> str:
        name = f"c{len(self.known)}"
        self.known[name] = value
        return name


def _target(names: Any) -> str:
    if isinstance(names, str):
        return names
    return "(" + "".join(f"{_target(name)}, " for name in names) + ")"


def _alike(a: Tensor, b: Tensor) -> bool:
    return (
        a.data_ptr() == b.data_ptr()
        and a.shape == b.shape
        and a.stride() == b.stride()
        and a.dtype == b.dtype
    )


def _packed_call(call: Call) -> PackedCall | None:
    """The arguments of native code in a recorded call of a quantized layer."""
    layer: QuantLinear = call.args[0]
    return layer.packed_call()
