"""`torch.compile(model, backend="lowbit")`: programs behind torch's own compiler.

Dynamo follows a call and hands over its graph, in which sizes may be constants, masks are opaque
and quantized layers are loose tensors. A program cannot be made of it. Dynamo also knows whose call
it follows, so the model's own program (programs.py) runs in place of the graph. The graph is the
oracle: at its first call both run, and the program stays only if it returns what the graph does.
"""

import inspect
import warnings
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch._dynamo.symbolic_convert import InstructionTranslator
from torch.utils import _pytree as pytree
from transformers import PreTrainedModel

from lowbit import fallbacks
from lowbit.kernels import native
from lowbit.runtime.programs import Programs
from lowbit.runtime.signature import MASK, bound

# The most that a result differs from itself, relative to its norm: codes that flip at a half make
# 2 % after 12 random layers.
SAME = 0.1


def lowbit(graph: fx.GraphModule, examples: Sequence[Any]) -> Callable[..., Any]:
    """A backend of torch.compile, registered under the name "lowbit" by the package's entry point.

    Calls that a program cannot serve run the graph as Dynamo hands it over, in eager mode, and
    `lowbit.explain` says why.

    Args:
        graph: what Dynamo followed.
        examples: its inputs: tensors, modules' parameters and sizes.

    Returns:
        A function of such inputs that returns the graph's outputs.
    """
    followed = _followed()
    if followed is None:
        warnings.warn(
            'The backend "lowbit" runs whole calls of transformers models. This graph is not one,'
            " so it runs in eager mode. Compile the transformers model itself.",
            fallbacks.SlowPathWarning,
            stacklevel=2,
        )
        return graph
    model, arguments = followed
    if not native.available():
        fallbacks.note(model, f"Programs are native code, and {native.reason()}.")
        return graph
    places = _places(arguments, examples)
    if places is None:
        fallbacks.note(model, "Dynamo's graph does not hold all tensors of the call.")
        return graph
    others = {n: v for n, v in arguments.items() if not isinstance(v, Tensor)}
    return _Instead(graph, Programs.of(model), others, places)


def _followed() -> tuple[PreTrainedModel, dict[str, Any]] | None:
    """The transformers model whose call Dynamo follows, and the arguments by name."""
    root: Any = InstructionTranslator.current_tx().output.root_tx
    code, values = root.f_code, root.f_locals
    names = code.co_varnames
    plain = code.co_argcount + code.co_kwonlyargcount
    args = [values[name] for name in names[: code.co_argcount] if name in values]
    kwargs = {name: values[name] for name in names[code.co_argcount : plain] if name in values}
    if code.co_flags & inspect.CO_VARARGS:
        args += values.get(names[plain], ())
        plain += 1
    if code.co_flags & inspect.CO_VARKEYWORDS:
        kwargs |= values.get(names[plain], {})
    if not args or not isinstance(args[0], PreTrainedModel):
        return None
    model = args[0]
    try:
        return model, bound(type(model).forward.__get__(model), args[1:], kwargs)
    except TypeError:  # another method's frame
        return None


def _places(arguments: dict[str, Any], examples: Sequence[Any]) -> dict[str, int] | None:
    """By name of a tensor its place among the graph's inputs."""
    at = {id(example): place for place, example in enumerate(examples)}
    tensors = {name: id(value) for name, value in arguments.items() if isinstance(value, Tensor)}
    return {n: at[i] for n, i in tensors.items()} if at.keys() >= set(tensors.values()) else None


class _Instead:
    """Runs the program of a call where Dynamo runs its graph.

    order: by output of the graph the place among the program's results; None before the first call.
    refused: why the program does not return what the graph does.
    """

    def __init__(
        self,
        graph: fx.GraphModule,
        programs: Programs,
        others: dict[str, Any],
        places: dict[str, int],
    ) -> None:
        self.graph, self.others, self.places = graph, others, places
        # Dynamo may hold this object longer than anybody holds the model; programs hold the model.
        self.programs = weakref.ref(programs)
        self.order: list[int] | None = None
        self.refused = ""

    def __call__(self, *inputs: Any) -> Any:
        programs = self.programs()
        assert programs is not None  # a model that is called exists
        tensors = {name: inputs[place] for name, place in self.places.items()}
        made = programs.served(self.others | tensors)
        if not isinstance(made, str) and self.order is None and not self.refused:
            found = self._matched(made, inputs)
            if isinstance(found, str):
                self.refused = found
            else:
                self.order = found
        reason = made if isinstance(made, str) else self.refused
        if reason:
            fallbacks.note(programs.model, reason)
            return self.graph(*inputs)
        assert not isinstance(made, str) and self.order is not None
        results = _tensors(made(tensors))
        return tuple(results[place] for place in self.order)

    def _matched(self, made: Callable[..., Any], inputs: Sequence[Any]) -> list[int] | str:
        """The order of results, as both sides return them for the same tokens without padding."""
        full = list(inputs)
        if MASK in self.places:
            full[self.places[MASK]] = torch.ones_like(inputs[self.places[MASK]])
        wanted = self.graph(*full)
        results = _tensors(made({name: full[place] for name, place in self.places.items()}))
        order = []
        for each in wanted:
            differences = [_difference(each, result) for result in results]
            least = min(differences, default=torch.inf)
            if not least <= SAME:
                return "Dynamo's graph returns something else than the model's program."
            order.append(differences.index(least))
        return order


def _tensors(value: Any) -> list[Tensor]:
    return [each for each in pytree.tree_leaves(value) if isinstance(each, Tensor)]


def _difference(wanted: Any, result: Tensor) -> float:
    """Of two results, relative to the norm of the first; infinite if they cannot be the same."""
    if not isinstance(wanted, Tensor) or wanted.shape != result.shape:
        return torch.inf
    difference = (wanted.double() - result.double()).norm() / wanted.double().norm()
    return 0.0 if torch.equal(wanted, result) else difference.nan_to_num(torch.inf).item()
