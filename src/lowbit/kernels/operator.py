"""How an operator is declared: its schema, which is that of the function, its fake version and its
gradient side by side.

Arguments that a fake version or a gradient does not need are `*_` there. A weight is `stored`, the
tensors of a quantized tensor in the order of its layout, or `packed`, the bytes in the packed
layout; `layout` is the layout as a Python literal, so that one operator serves all formats and bit
widths (kernels/arguments.py).

In eager inference modules skip the dispatcher, which costs more than a small product; tracing and
autograd go through it.
"""

from collections.abc import Callable
from functools import wraps
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor
from torch._library.custom_ops import CustomOpDef
from torch.library import custom_op
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from lowbit.kernels.checks import check_given, check_memory


def operator(
    name: str,
    check: Callable[..., None],
    fake: Callable[..., Any],
    gradient: Callable[..., tuple[Tensor | None, ...]] | None = None,
    reads: Callable[..., tuple[Any, ...]] | None = None,
    schema: str | None = None,
) -> Callable[[Callable[..., Any]], CustomOpDef]:
    """Makes a function the operator lowbit::name.

    check: (*inputs) -> None, or UsageError for inputs that the operator does not take; it reads
    shapes, dtypes and numbers beside tensors, for the operator and for its fake version.
    fake: (*inputs) -> empty outputs. gradient: (gradient of the output, *inputs) -> those of the
    first inputs; others have none. reads: (*inputs) -> them as the gradient is given them: of those
    whose shape alone it reads `shape_alone`, which keeps no memory from the forward pass to the
    backward pass. schema: where the annotations of the function do not tell it.
    """

    def declare(function: Callable[..., Any]) -> CustomOpDef:
        @wraps(function)  # whose annotations tell the schema
        def checked(*inputs: Any) -> Any:
            check_inputs(*inputs)
            for leaf in tree_leaves(inputs):
                if isinstance(leaf, Tensor):
                    check_memory(leaf)
            return function(*inputs)

        def checked_fake(*inputs: Any) -> Any:
            check_inputs(*inputs)
            return fake(*inputs)

        def check_inputs(*inputs: Any) -> None:
            for place, argument in tensors:
                check_given(argument, inputs[place])
            check(*inputs)

        made: CustomOpDef = custom_op(f"lowbit::{name}", checked, mutates_args=(), schema=schema)
        made.register_fake(checked_fake)
        arguments = made._opoverload._schema.arguments
        tensors = [(i, a.name) for i, a in enumerate(arguments) if str(a.type) == "Tensor"]
        if gradient is not None:

            def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
                inputs = _kept(ctx)
                own = gradient(grad, *inputs)
                return tuple(
                    [None] * len(value) if isinstance(value, list | tuple) else found
                    for value, found in zip_longest(inputs, own)
                )

            def keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
                _keep(ctx, inputs if reads is None else reads(*inputs))

            made.register_autograd(backward, setup_context=keep)
        return made

    return declare


def shape_alone(x: Tensor) -> Tensor:
    """A tensor like x whose numbers are one number, whichever."""
    return x.new_empty(()).expand(x.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...]) -> None:
    leaves, ctx.structure = tree_flatten(inputs)
    ctx.leaves = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
    ctx.save_for_backward(*(leaf if isinstance(leaf, Tensor) else None for leaf in leaves))


def _kept(ctx: Any) -> tuple[Any, ...]:
    pairs = zip(ctx.saved_tensors, ctx.leaves, strict=True)
    inputs: tuple[Any, ...] = tree_unflatten(
        [leaf if tensor is None else tensor for tensor, leaf in pairs], ctx.structure
    )
    return inputs


# Found here once: they are asked at every call.
_compiling, _tracing = torch.compiler.is_compiling, torch._C._get_tracing_state


def dispatched(x: Tensor, bias: Tensor | None) -> bool:
    """Whether the call must be seen by autograd, a compiler or a tracer."""
    if torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad)):
        return True
    return _compiling() or _tracing() is not None


def traced() -> bool:
    """Whether what is called now is written down, to be called again with other numbers."""
    return _compiling() or _tracing() is not None
