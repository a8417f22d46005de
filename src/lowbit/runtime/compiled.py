"""The door: a model whose calls run as native programs.

Each signature has a program of its own, made at its first call. What a program cannot serve goes to
the model as it is, and the reason is noted (`lowbit.explain`).
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

    A program is made at the first call with arguments of a kind, which takes seconds. It serves
    calls without gradients, in eval mode, on the CPU, of any batch and length; tokens that the
    attention mask hides are not computed, and are zeros in the results. All other calls go to the
    model as it is, and `lowbit.explain` says why. Weights and modules may change
    afterwards. Float models have programs too: torch computes their linear layers in them.

    Args:
        model: a transformers model, or a module that holds some, as a SentenceTransformer does.
        programs: a folder that `save_programs` wrote to. First calls need not follow the model
            then. What was saved of another model, or by other versions, is not used, and a
            SlowPathWarning says so.

    Returns:
        The same model.

    Raises:
        UsageError: if it holds no transformers model, if somebody has replaced its forward, or if
            lowbit has no native code here.
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
    """Save what the programs of a compiled model are made of, in lowbit_programs.json.

    Args:
        model: one that `compile` has changed, and that was called with each kind of arguments that
            is to be saved.
        folder: where the file is written, as that of `save_pretrained`.

    Returns:
        The path of the file.

    Raises:
        UsageError: if there is no program yet, or one calls what a file cannot hold.
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
    """Stands for the forward of a model."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.programs = Programs.of(model)
        # Pipelines and SentenceTransformer ask which arguments a model takes.
        self.__signature__ = inspect.signature(type(model).forward.__get__(model))

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
