"""`torch.compile(model, backend="lowbit")`: programs as a backend of torch's compiler.

Dynamo traces a call and passes its graph. In this graph sizes may be constants, masks are opaque
and quantized layers are separate tensors, so it cannot become a program. Dynamo also knows which
model it traces, so the model's own program (programs.py) runs instead of the graph. The graph is
the reference: at the first call both run. If the results differ, the program is dropped.
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

# The largest accepted difference of two results, relative to the norm: codes that round the other
# way at a half cause 2 % after 12 random layers.
SAME = 0.1


def lowbit(graph: fx.GraphModule, examples: Sequence[Any]) -> Callable[..., Any]:
    """A backend of torch.compile, registered under the name "lowbit" by the package's entry point.

    Calls that no program serves run Dynamo's graph in eager mode, and `lowbit.explain` gives the
    reason.

    Args:
        graph: the graph that Dynamo traced.
        examples: the inputs of the graph: tensors, parameters of modules, and sizes.

    Returns:
        A function from these inputs to the outputs of the graph.
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
    """The transformers model that Dynamo traces, and the arguments of the call by name."""
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
    """The index of each tensor argument among the graph's inputs, by name."""
    at = {id(example): place for place, example in enumerate(examples)}
    tensors = {name: id(value) for name, value in arguments.items() if isinstance(value, Tensor)}
    return {n: at[i] for n, i in tensors.items()} if at.keys() >= set(tensors.values()) else None


class _Instead:
    """Runs a program instead of Dynamo's graph.

    order: for each output of the graph, its index among the program's results; None before the
    first call. refused: why the program's results differ from those of the graph.
    """

    def __init__(
        self,
        graph: fx.GraphModule,
        programs: Programs,
        others: dict[str, Any],
        places: dict[str, int],
    ) -> None:
        self.graph, self.others, self.places = graph, others, places
        # Only a weak reference: programs refer to the model, and Dynamo may keep this object
        # longer.
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
        """The order of results, from running graph and program on the same tokens without
        padding."""
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
    """The difference of two results, relative to the norm of the first; infinite if the shapes
    differ."""
    if not isinstance(wanted, Tensor) or wanted.shape != result.shape:
        return torch.inf
    difference = (wanted.double() - result.double()).norm() / wanted.double().norm()
    return 0.0 if torch.equal(wanted, result) else difference.nan_to_num(torch.inf).item()
