"""How far a block is from what it computed in float, with other weights in it.

error = Σ over the tokens of a batch |y − ŷ|²,   y the output that the next block reads
"""

from collections.abc import Mapping

from jaxtyping import Float, Float32
from torch import Tensor

from lowbit.convert import oriented
from lowbit.solvers.observe import tokens
from lowbit.solvers.playback import Playback
from lowbit.solvers.stages import Stage
from lowbit.solvers.trial import floating


class Block:
    """The block of a stage as it is when this is made; y is kept for every batch."""

    def __init__(self, playback: Playback, stage: Stage) -> None:
        self.playback, self.stage = playback, stage
        self.targets = [self._output(index, {}) for index in range(self.batches)]

    @property
    def batches(self) -> int:
        return len(self.playback.batches)

    def error(self, weights: Mapping[str, Float32[Tensor, "_out _in"]], index: int) -> Tensor:
        """The error on one batch with the given weights, by the names of their modules. A scalar,
        through which gradients flow to the weights where they are asked for."""
        named = {}
        for d in self.stage.decisions:
            assert d.weights is not None
            own = self.playback.model.get_submodule(d.name)._parameters["weight"]
            assert own is not None
            named[f"{d.name}.weight"] = oriented(weights[d.name], d.weights).to(own.dtype)
        return (self._output(index, named) - self.targets[index]).square().sum()

    def _output(self, index: int, named: Mapping[str, Tensor]) -> Float[Tensor, "tokens width"]:
        output = next(floating(self.playback.output(self.stage, index, named)))
        return tokens(output, self.playback.batches[index])
