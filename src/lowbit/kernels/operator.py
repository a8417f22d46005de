"""Declare an operator: its function, whose annotations give the schema, its fake version and its
gradient.

Fake versions and gradients write `*_` for arguments that they do not need. A weight is `stored`,
the tensors of a quantized tensor in the order of its layout, or `packed`, the bytes in the packed
layout. `layout` is the layout as a Python literal, so that one operator serves all formats and bit
widths (kernels/arguments.py).

In eager inference, modules skip the dispatcher, because it costs more than a small product. Tracing
and autograd use it.
"""

from collections.abc import Callable
from functools import wraps
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import TransformType, get_interpreter_stack, peek_interpreter_stack
from torch._library.custom_ops import CustomOpDef
from torch.autograd import forward_ad
from torch.library import custom_op
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from lowbit.errors import UsageError
from lowbit.kernels.checks import check_given, check_memory


def operator(
    name: str,
    check: Callable[..., None],
    fake: Callable[..., Any],
    gradient: Callable[..., tuple[Tensor | None, ...]] | None = None,
    reads: Callable[..., tuple[Any, ...]] | None = None,
    schema: str | None = None,
) -> Callable[[Callable[..., Any]], CustomOpDef]:
    """Declare a function as the operator lowbit::name.

    check: (*inputs) -> None. Raises UsageError for invalid inputs. It reads only shapes, dtypes and
    plain numbers, so that the fake version can call it too.
    fake: (*inputs) -> empty outputs. gradient: (gradient of the output, *inputs) -> gradients of
    the first inputs; the others have none. reads: (*inputs) -> inputs to save for the gradient. For
    an input of which the gradient reads only the shape, it returns `shape_alone`, which needs no
    memory. schema: needed if the annotations of the function are not enough.
    """

    def declare(function: Callable[..., Any]) -> CustomOpDef:
        @wraps(function)  # keeps the annotations, which give the schema
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
    """A tensor with the shape of x that stores only one number."""
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


# Looked up once, because every call needs them.
_compiling, _tracing = torch.compiler.is_compiling, torch._C._get_tracing_state


def dispatched(x: Tensor, bias: Tensor | None) -> bool:
    """Whether autograd, a compiler, a tracer or torch.func.vmap must see the call.

    Raises UsageError for forward-mode differentiation and for torch.func.grad: torch's custom
    operators would lose the derivative without a word.
    """
    if traced():
        return True
    if forward_ad._current_level >= 0 or peek_interpreter_stack() is not None:
        _check_derivative(x)
        return True
    return torch.is_grad_enabled() and (
        x.requires_grad or (bias is not None and bias.requires_grad)
    )


def differentiated() -> bool:
    """Whether torch.func differentiates this call."""
    if peek_interpreter_stack() is None:
        return False
    return any(each.key() != TransformType.Vmap for each in get_interpreter_stack())


def _check_derivative(x: Tensor) -> None:
    # vmap cannot tell whether x has a derivative in forward mode.
    dual = forward_ad._current_level >= 0 and (
        peek_interpreter_stack() is not None or forward_ad.unpack_dual(x).tangent is not None
    )
    if dual or differentiated():
        raise UsageError(
            "quantized layers have gradients of torch.autograd only, none of torch.func and of"
            " forward-mode differentiation: use torch.autograd.grad, or model.dequantize()"
        )


def traced() -> bool:
    """Whether this call is traced, to be repeated with other numbers."""
    return _compiling() or _tracing() is not None
