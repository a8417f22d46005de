"""Check by running it whether a block computes the same after a change of its parameters.

Whether a change of one module can be undone in another depends on all operations between them and
on other consumers of the result. This is not guessed from names, but tested on data.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lowbit.solvers.block_runner import Playback
from lowbit.solvers.blocks import Stage

TOLERANCE = 1e-5


class Equivalence:
    """A block, and its output for the first batch.

    order: its modules that hold parameters, as they are first called.
    """

    def __init__(self, playback: Playback, stage: Stage) -> None:
        self.playback, self.stage = playback, stage
        self.order: list[nn.Module] = []
        modules = [m for m in stage.module.modules() if m._parameters]
        hooks = [m.register_forward_pre_hook(self._note) for m in modules]
        try:
            self.expected = self._outputs()
        finally:
            for hook in hooks:
                hook.remove()

    def holds(self, modules: Sequence[nn.Module], change: Callable[[], None]) -> bool:
        """Whether the block's output stays the same after a change of parameters of `modules`.

        The change must assign new tensors, not write into the old ones; it is undone."""
        with _restored(modules):
            change()
            return _close(self._outputs(), self.expected)

    def _note(self, module: nn.Module, args: Any) -> None:
        if module not in self.order:
            self.order.append(module)

    def _outputs(self) -> list[Tensor]:
        return list(floating(self.playback.output(self.stage, 0)))


def floating(output: Any) -> Iterator[Tensor]:
    """The floating-point tensors of a block's output, as float32. The input of the next block comes
    first."""
    return (
        x.float() for x in tree_leaves(output) if isinstance(x, Tensor) and x.is_floating_point()
    )


def parameter_names(model: nn.Module, modules: Sequence[nn.Module]) -> set[str]:
    """The names of the parameters that these modules hold themselves."""
    own = {id(p) for m in modules for p in m.parameters(recurse=False)}
    return {name for name, p in model.named_parameters() if id(p) in own}


def _close(found: Sequence[Tensor], expected: Sequence[Tensor]) -> bool:
    return all(
        bool((a - b).norm() <= TOLERANCE * b.norm()) for a, b in zip(found, expected, strict=True)
    )


@contextmanager
def _restored(modules: Sequence[nn.Module]) -> Iterator[None]:
    """A context after which the parameters of these modules are restored, bit for bit."""
    before = {p: p.data for m in modules for p in m.parameters(recurse=False)}
    try:
        yield
    finally:
        for p, values in before.items():
            p.data = values
