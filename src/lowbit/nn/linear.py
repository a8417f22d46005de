"""QuantLinear: nn.Linear, or transformers' Conv1D, over a stored weight [out, in]."""

import torch
from torch import Tensor, nn

from lowbit.formats import Layout, QTensor
from lowbit.kernels import linear, ops
from lowbit.kernels.linear.native import Int8Linear
from lowbit.nn.packed import Packed

ACTIVATIONS = ("float", "dynamic")


class QuantLinear(Packed):
    """y = x · Wᵀ + bias; `activations` "float", or "dynamic" for int8 with scales found per call.

    `transposed` says that the float module stored its weight [in, out], as Conv1D does.
    """

    def __init__(
        self,
        layout: Layout,
        in_features: int,
        out_features: int,
        bias: nn.Parameter | None,
        activations: str = "float",
        transposed: bool = False,
    ) -> None:
        shape = (in_features, out_features) if transposed else (out_features, in_features)
        super().__init__(layout, out_features, in_features, shape)
        self.in_features, self.out_features = in_features, out_features
        self.activations, self.transposed = activations, transposed
        self.register_parameter("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        packed = self.prepacked
        if packed is None and not self.product_chosen and not torch.compiler.is_compiling():
            # A tied weight stays as it is stored, which is how the other module reads it.
            packed = None if self.tied_to else self.prepack(self._choose)
        if packed is None or self.product is None:
            return ops.linear(x, self.qweight, self._parameters["bias"], self.activations)
        # As `self.bias`, without the detour through __getattr__.
        return ops.linear_prepacked(x, packed, self._parameters["bias"], self.product)

    def _choose(self, q: QTensor) -> Int8Linear | None:
        return linear.prepacked(q, self.activations)

    def kernel(self) -> str:
        """Which kernel serves this module here, and why."""
        return ops.linear_kernel(self.qweight, self.activations, self.compute_dtype.device)

    def describe(self) -> str:
        activations = (
            "" if self.activations == "float" else f", {self.activations} int8 activations"
        )
        return super().describe() + activations

    def extra_repr(self) -> str:
        return (
            f"{self.in_features}, {self.out_features}, {self.describe()},"
            f" bias={self.bias is not None}"
        )
