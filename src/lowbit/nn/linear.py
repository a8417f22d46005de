"""QuantLinear: nn.Linear, or transformers' Conv1D, over a stored weight [out, in]."""

from torch import Tensor, nn

from lowbit.formats import Layout
from lowbit.kernels import ops
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
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        return ops.linear(x, self.qweight, self.bias, self.activations)

    def kernel(self) -> str:
        """Which kernel serves this module here, and why."""
        return ops.linear_kernel(self.qweight, self.activations, self.compute_dtype.device)

    def extra_repr(self) -> str:
        return (
            f"{self.in_features}, {self.out_features}, {self.describe()},"
            f" {self.activations} activations, bias={self.bias is not None}"
        )
