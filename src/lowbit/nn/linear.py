"""QuantLinear: nn.Linear, or transformers' Conv1D, over a stored weight [out, in]."""

from torch import Tensor, nn

from lowbit.formats import Layout
from lowbit.kernels import linear, ops
from lowbit.kernels.linear.native import LinearProduct
from lowbit.kernels.selection import Kernel
from lowbit.nn.packed import Packed

ACTIVATIONS = ("float", "dynamic")


class QuantLinear(Packed):
    """y = x · Wᵀ + bias; `activations` "float", or "dynamic" for int8 with scales found per call.

    `transposed` says that the float module stored its weight [in, out], as Conv1D does.
    """

    product: LinearProduct | None

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
        self.product = None
        self.register_parameter("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        packed, form = self.prepacked()
        # As `self.bias`, without the detour through __getattr__.
        bias = self._parameters["bias"]
        product = self.product
        if form is not None and (product is None or product.form is not form):
            product = self.product = linear.product(form, self.activations)
        if packed is None or product is None:
            return ops.linear(x, self.qweight, bias, self.activations)
        return ops.linear_prepacked(x, packed, bias, product)

    def choose(self) -> tuple[Kernel, str]:
        """The kernel that serves this module here, and why."""
        return linear.kernel(
            self.layout, self.in_features, self.compute_dtype.device, self.activations
        )

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
