"""Stand-ins for float modules while a model is trained towards integers.

They keep the float module's parameters under their names, so that optimizers, ties, checkpoints
and save_pretrained see the model they know.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lowbit.calibration.observers import Observer
from lowbit.conversion.module_weights import Weights, oriented
from lowbit.kernels import ops
from lowbit.nn.embedding import scaled
from lowbit.nn.estimators import straight_through
from lowbit.qat.passes import Pass, Passes, recomputing, trains
from lowbit.qat.weights import StraightThrough


class TokenRange(nn.Module):
    """int8 activations with a scale found per token (and group), as `dynamic` kernels have them.

    Nothing is clipped, so that gradients pass as they are.
    """

    def __init__(self, group_size: int) -> None:
        super().__init__()
        self.group_size = group_size

    def observe(self, x: Tensor) -> None:
        """There is nothing to learn from a batch."""

    def forward(self, x: Tensor) -> Tensor:
        rows = x.detach().reshape(-1, x.shape[-1]).float()
        codes, scales = ops.quantize_rows(rows, self.group_size)
        spread = scales.repeat_interleave(self.group_size, 1)[:, : rows.shape[1]]
        rounded = (codes.float() * spread).view(x.shape).to(x.dtype)
        return straight_through(x, rounded)


class FakeQuantized(nn.Module):
    """Holds the float module's parameters. In the first `start` training passes it computes in
    float, and only observes. tied: the quantizer is that of another module, with the weight."""

    steps: Tensor
    weight: nn.Parameter
    weight_quantizer: StraightThrough

    def __init__(
        self,
        module: nn.Module,
        weights: Weights,
        quantizer: StraightThrough,
        start: int,
        tied: bool,
    ) -> None:
        super().__init__()
        self.weights, self.start = weights, start
        self.replaced = [module]  # in a list: its parameters are ours, and counted once
        weight = module._parameters["weight"]
        assert weight is not None
        self.weight = weight
        if tied:  # registered once, so that it is counted and saved once
            object.__setattr__(self, "weight_quantizer", quantizer)
        else:
            self.weight_quantizer = quantizer
        self.tied = tied
        self.passes = Passes()
        self.observing = False  # whether to compute in float, and observe, in evaluation too
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def matrix(self) -> Tensor:
        """The float weight [out, in], with its gradient."""
        return oriented(self.weight, self.weights)

    def moves(self) -> bool:
        """Whether what is computed depends on the passes before."""
        return self.start > 0

    def enter(self, x: Tensor) -> Pass:
        """The pass that begins with the input x; counts the passes of training."""
        if self.training and recomputing():
            known = self.passes.repeated(x) if self.moves() else None
            return known or Pass(self._active(), counts=False)
        trained = self.training and trains()
        if trained:
            self.steps += 1
        now = Pass(self._active())
        if trained and self.moves():
            self.passes.remember(x, now)
        return now

    def restored(self) -> nn.Module:
        """The float module, with the parameters that were computed with here."""
        (module,) = self.replaced
        for name, parameter in self._parameters.items():
            module.register_parameter(name, parameter)
        return module.train(self.training)

    def _active(self) -> bool:
        return not self.observing and (int(self.steps) > self.start or self.start == 0)


class FakeQuantLinear(FakeQuantized):
    """x̂ · Ŵᵀ + bias, rounded again where outputs are requantized; the bias stays in 32 bits."""

    def __init__(
        self,
        module: nn.Module,
        weights: Weights,
        quantizer: StraightThrough,
        start: int,
        tied: bool,
        inputs: Observer | TokenRange | None,
        outputs: Observer | None = None,
    ) -> None:
        super().__init__(module, weights, quantizer, start, tied)
        self.register_parameter("bias", module._parameters["bias"])
        self.bias: nn.Parameter | None
        self.input_quantizer, self.output_quantizer = inputs, outputs
        self.in_features, self.out_features = weights.shape[1], weights.shape[0]

    def moves(self) -> bool:
        return super().moves() or isinstance(self.input_quantizer, Observer)

    def forward(self, x: Tensor) -> Tensor:
        now, weight = self.enter(x), self.matrix()
        x = self._rounded(self.input_quantizer, x, now)
        if now.active:
            weight = self.weight_quantizer(weight)
        return self._rounded(self.output_quantizer, F.linear(x, weight, self.bias), now)

    def _rounded(self, quantizer: Observer | TokenRange | None, x: Tensor, now: Pass) -> Tensor:
        if quantizer is None:
            return x
        if now.counts and (self.training or self.observing):
            quantizer.observe(x)
        if not now.active:
            return x
        if isinstance(quantizer, Observer):
            return quantizer(x, now.scale_of(quantizer))
        return quantizer(x)


class FakeQuantEmbedding(FakeQuantized):
    """Rows of the fake-quantized table, times the module's own scale where it has one."""

    def __init__(
        self,
        module: nn.Module,
        weights: Weights,
        quantizer: StraightThrough,
        start: int,
        tied: bool,
    ) -> None:
        super().__init__(module, weights, quantizer, start, tied)
        self.padding_idx: int | None = getattr(module, "padding_idx", None)

    def forward(self, ids: Tensor) -> Tensor:
        active = self.enter(ids).active
        table = self.weight_quantizer(self.weight) if active else self.weight
        rows = F.embedding(ids, table, self.padding_idx)
        return scaled(rows, self.weights.embed_scale, self.weights.rounds_scale)
