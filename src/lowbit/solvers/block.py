"""The output error of a block with quantized weights, relative to the float model.

    error = Σ over the tokens of a batch |y − ŷ|²,   y the output that the next block reads

ŷ is computed from the outputs of the quantized earlier blocks, y from the outputs of the float
ones. So a block can compensate the errors of earlier blocks.
"""

from collections.abc import Mapping
from typing import Any

from jaxtyping import Float, Float32
from torch import Tensor

from lowbit.conversion.module_weights import oriented
from lowbit.solvers.block_runner import Playback
from lowbit.solvers.blocks import Stage
from lowbit.solvers.equivalence import floating
from lowbit.solvers.observe import tokens


class Block:
    """The block of a stage. playback: at this block, with earlier blocks quantized. reference: past
    this block, with all blocks float."""

    def __init__(self, playback: Playback, reference: Playback, stage: Stage) -> None:
        assert stage.stack is not None
        self.playback, self.stage = playback, stage
        self.expected = reference.outputs[stage.stack]

    @property
    def batches(self) -> int:
        return len(self.playback.batches)

    def error(self, weights: Mapping[str, Float32[Tensor, "_out _in"]], index: int) -> Tensor:
        """The error on one batch with the given weights, by module name: a scalar with gradients to
        the weights if enabled. Excludes tokens that are not finite in the float model."""
        named = {}
        for d in self.stage.decisions:
            own = d.weight.of(self.playback.model)
            named[str(d.weight)] = oriented(weights[d.name], d.weights).to(own.dtype)
        found = self._read(self.playback.output(self.stage, index, named), index)
        expected = self._read(self.expected[index], index)
        return (found - expected)[expected.isfinite().all(1)].square().sum()

    def _read(self, output: Any, index: int) -> Float[Tensor, "tokens width"]:
        """The output that the next block reads, without padding."""
        return tokens(next(floating(output)), self.playback.batches[index])
