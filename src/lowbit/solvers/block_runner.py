"""Run a model block by block, without repeating finished blocks.

Finished blocks return cached outputs: each returns the output of the last finished block of its
stack for the same batch. The model's own code runs around them. So a pass costs one block for any
architecture (masks, position biases, encoder states), and memory holds the outputs of one block per
stack.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_map_only

from lowbit.solvers.blocks import Stage

Batch = Mapping[str, Tensor]


class _Reached(BaseException):
    """Carries the output of a block out of the model. `except Exception` does not catch it."""

    def __init__(self, output: Any) -> None:
        self.output = output


class Playback:
    """Runs `model` on `batches`, stage by stage. weights: replacements for parameters, by name."""

    def __init__(
        self,
        model: nn.Module,
        batches: Sequence[Batch],
        weights: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.model, self.batches, self.weights = model, batches, dict(weights or {})
        self.finished: list[Stage] = []
        self.outputs: dict[nn.ModuleList, list[Any]] = {}
        self.index = 0

    def output(self, stage: Stage, index: int, weights: Mapping[str, Tensor] | None = None) -> Any:
        """The stage's output for one batch, with additional `weights`.

        For a module outside all stacks, which may be called several times, the model runs to its
        end, and the output is the model's output.
        """
        self.index = index
        with self._answering(), _reporting(stage):
            try:
                inputs = dict(self.batches[index])
                together = {**self.weights, **(weights or {})}
                return functional_call(self.model, together, kwargs=inputs)
            except _Reached as reached:
                return reached.output

    def run(self, stage: Stage, each: Callable[[Any], None]) -> None:
        """Call `each` with the stage's output for each batch."""
        for index in range(len(self.batches)):
            each(self.output(stage, index))

    def advance(self, stage: Stage) -> None:
        """Finish the stage: later stages read its current outputs."""
        if stage.stack is not None:
            outputs: list[Any] = []
            self.run(stage, outputs.append)
            self.finished.append(stage)
            self.outputs[stage.stack] = outputs

    @contextmanager
    def _answering(self) -> Iterator[None]:
        before = {stage: vars(stage.module).get("forward") for stage in self.finished}
        for stage in self.finished:
            stage.module.forward = self._answer(stage)
        try:
            yield
        finally:
            for stage, forward in before.items():
                del stage.module.forward
                if forward is not None:
                    stage.module.forward = forward

    def _answer(self, stage: Stage) -> Callable[..., Any]:
        assert stage.stack is not None
        outputs = self.outputs[stage.stack]
        # Copies: a later block may add to its input in place.
        return lambda *args, **kwargs: tree_map_only(Tensor, Tensor.clone, outputs[self.index])


@contextmanager
def _reporting(stage: Stage) -> Iterator[None]:
    """A context in which the model stops as soon as the block has its output."""

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        raise _Reached(output)

    if stage.stack is None:
        yield
        return
    hook = stage.module.register_forward_hook(leave)
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def playing(model: nn.Module) -> Iterator[None]:
    """A context without KV cache: finished blocks would leave theirs empty."""
    config: Any = getattr(model, "config", None)
    before = getattr(config, "use_cache", None)
    if before is not None:
        config.use_cache = False
    try:
        with torch.no_grad():
            yield
    finally:
        if before is not None:
            config.use_cache = before
