"""`lowbit.compile`: run the calls of a model as native programs.

Each signature has its own program, built at its first call. The model itself runs all calls that no
program serves, and lowbit records the reason (`lowbit.explain`).
"""

import inspect
from pathlib import Path
from typing import Any, TypeGuard, TypeVar

from torch import Tensor, nn
from transformers import PreTrainedModel

from lowbit import fallbacks
from lowbit.errors import UsageError
from lowbit.kernels import native
from lowbit.runtime import saved
from lowbit.runtime.programs import Compiled, Programs
from lowbit.runtime.signature import bound

M = TypeVar("M", bound=nn.Module)


def compile(model: M, programs: str | Path | None = None) -> M:
    """Run the transformers models in `model` as native programs from now on, in place.

    lowbit builds a program at the first call with a new kind of arguments, which takes seconds.
    Programs serve calls without gradients, in evaluation mode, on the CPU, with any batch size and
    length. They skip tokens that the attention mask hides; the results of these tokens are zeros.
    The model itself runs all other calls, and `lowbit.explain` gives the reasons. Weights and
    modules may change after this call. In programs of float models, torch computes the linear
    layers.

    Args:
        model: A transformers model, or a module that contains some, such as a SentenceTransformer.
        programs: A folder with the file of `save_programs`. Then first calls need not trace the
            model. If the file is from another model or other versions, lowbit does not use it and
            issues a SlowPathWarning.

    Returns:
        The same model.

    Raises:
        UsageError: if `model` contains no transformers model, if its forward was already replaced,
            or if native code is not available on this machine.
        InputError: if the saved programs are missing or damaged.
    """
    if not native.available():
        raise UsageError(f"programs are native code, and {native.reason()}")
    found = _held(model)
    for each in found.values():
        if not isinstance(each.__dict__.get("forward"), CompiledForward | None):
            raise UsageError(
                f"the forward of {type(each).__name__} has been replaced already, as accelerate"
                " does: compile the model before that"
            )
    for name, each in found.items():
        if programs is not None:
            graphs = saved.read(Path(programs) / saved.FILE, name, each)
            if isinstance(graphs, str):
                fallbacks.note(each, graphs)
            else:
                Programs.of(each).saved = graphs
        each.forward = CompiledForward(each)
    return model


def save_programs(model: nn.Module, folder: str | Path) -> Path:
    """Save the graphs of a compiled model's programs to lowbit_programs.json.

    Another process can then build the programs without tracing the model.

    Args:
        model: A model that `compile` changed. It must have been called once with each kind of
            arguments to save.
        folder: The folder of the file, such as the model's folder.

    Returns:
        The path of the file.

    Raises:
        UsageError: if `model` contains no transformers model or has no program yet, or if a graph
            cannot be written as JSON.
        InputError: if the file cannot be written.
    """
    held = {name: (each, Programs.held_by(each)) for name, each in _held(model).items()}
    graphs = {
        name: (each, {s: p.captured for s, p in programs.made.items() if _is_made(p)})
        for name, (each, programs) in held.items()
        if programs is not None
    }
    if not any(made for _, made in graphs.values()):
        raise UsageError("there is no program to save: call the compiled model first")
    file = Path(folder) / saved.FILE
    saved.write(file, graphs)
    return file


def _is_made(made: Compiled | str) -> TypeGuard[Compiled]:
    return isinstance(made, Compiled)


def _held(model: nn.Module) -> dict[str, Any]:
    """The outermost transformers models, by name. Raises UsageError if there is none."""
    if isinstance(model, PreTrainedModel):
        return {"": model}
    found = {name: m for name, m in model.named_modules() if isinstance(m, PreTrainedModel)}
    outermost = {
        name: each
        for name, each in found.items()
        if not any(name.startswith(f"{other}.") for other in found)
    }
    if not outermost:
        raise UsageError(f"{type(model).__name__} holds no transformers model to compile")
    return outermost


class CompiledForward:
    """Replaces the forward of a model: runs a program, or else the model's own forward."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        # Pipelines and SentenceTransformer inspect the arguments of a model.
        self.__signature__ = inspect.signature(type(model).forward.__get__(model))

    @property
    def programs(self) -> Programs:
        # Not kept here: a copy of a model gets its programs after its forward.
        return Programs.of(self.model)

    def __deepcopy__(self, memo: dict[int, Any]) -> "CompiledForward":
        return CompiledForward(memo[id(self.model)])

    def __reduce__(self) -> tuple[Any, ...]:
        return CompiledForward, (self.model,)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        forward = type(self.model).forward
        arguments = bound(forward.__get__(self.model), args, kwargs)
        compiled = self.programs.served(arguments)
        if isinstance(compiled, str):
            fallbacks.note(self.model, compiled)
            return forward(self.model, *args, **kwargs)
        return compiled({n: v for n, v in arguments.items() if isinstance(v, Tensor)})
