"""QuantLinear: nn.Linear, or transformers' Conv1D, over a stored weight [out, in]."""

from torch import Tensor, nn

from lowbit.formats import Layout
from lowbit.kernels import linear, ops
from lowbit.kernels.linear.native import LinearProduct
from lowbit.kernels.selection import Kernel
from lowbit.nn.packed import Packed
from lowbit.nn.shared_input import SharedInput

ACTIVATIONS = ("float", "dynamic")


class QuantLinear(Packed):
    """y = x · Wᵀ + bias; `activations` "float", or "dynamic" for int8 with scales found per call.

    `transposed` says that the float module stored its weight [in, out], as Conv1D does.
    `nonlinearity`, if it is not "identity", is applied to y (fusion.py).
    """

    product: LinearProduct | None
    nonlinearity: str
    shared: SharedInput | None

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
        self.product, self.nonlinearity, self.shared = None, "identity", None
        self.register_parameter("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        if self.shared is not None:
            y = self.shared.result(self, x)
            if y is not None:
                return y
        packed, product = self.prepacked_product()
        # As `self.bias`, without the detour through __getattr__.
        bias = self._parameters["bias"]
        if packed is None or product is None:
            return ops.linear(x, self.weight_in_use, bias, self.activations, self.nonlinearity)
        return ops.linear_prepacked(x, packed, bias, product)

    def set_nonlinearity(self, name: str) -> None:
        """What to apply to y from now on: a name in csrc/nonlinearity.inl, or "identity"."""
        self.nonlinearity, self.product = name, None

    def prepacked_product(self) -> tuple[Tensor | None, LinearProduct | None]:
        """The prepacked weight and its product, or nothing where the stored one is used."""
        packed, form = self.prepacked()
        product = self.product
        if form is not None and (product is None or product.form is not form):
            product = linear.product(form, self.activations, self.nonlinearity)
            self.product = product
        return packed, product

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
        then = "" if self.nonlinearity == "identity" else f", then {self.nonlinearity}"
        return (
            f"{self.in_features}, {self.out_features}, {self.describe()},"
            f" bias={self.bias is not None}{then}"
        )
