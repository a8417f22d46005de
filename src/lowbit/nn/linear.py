"""QuantLinear: nn.Linear, or transformers' Conv1D, over a stored weight [out, in]."""

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function_unary

from lowbit.errors import UsageError
from lowbit.formats import Layout, StaticScale
from lowbit.kernels import linear, ops
from lowbit.kernels.linear.native import LinearProduct, shifted_bias
from lowbit.kernels.selection import Kernel
from lowbit.nn.quant_module import QuantModule
from lowbit.nn.shared_input import SharedInput


class QuantLinear(QuantModule):
    """y = x · Wᵀ + bias; `activations` "float", "dynamic" for int8 with scales found per call, or
    "static" for int8 with one scale, which is stored beside the weight.

    `transposed` says that the float module stored its weight [in, out], as Conv1D does.
    `nonlinearity`, if it is not "identity", is applied to y while `in_force` (conversion/fuse.py).
    """

    product: LinearProduct | None
    nonlinearity: str
    shared: SharedInput | None
    input_scale: Tensor
    input_zero_point: Tensor

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
        self.product, self.shared = None, None
        self.set_nonlinearity("identity")
        self.register_parameter("bias", bias)
        self.input: StaticScale | None = None
        self.shifted_bias: Tensor | None = None
        for name, dtype in self.own_stored().items():
            self.register_buffer(name, torch.empty((), dtype=dtype, device="meta"))

    def forward(self, x: Tensor) -> Tensor:
        if has_torch_function_unary(x):  # whoever watches calls sees one
            return handle_torch_function(QuantLinear.forward, (x,), self, x)
        if self.shared is not None:
            y = self.shared.result(self, x)
            if y is not None:
                return y
        packed, product = self.prepacked_product()
        bias: Tensor | None = self._parameters[
            "bias"
        ]  # as `self.bias`, without the detour through __getattr__
        if packed is None or product is None:
            return ops.linear(
                x,
                self.weight_in_use,
                bias,
                self.activations,
                self.nonlinearity_now(),
                self.static_input(),
            )
        if self.shifted_bias is not None:
            bias = self.shifted_bias
        return ops.linear_packed(x, packed, bias, product)

    def decoded(self) -> Tensor:
        """The float weight as the float module stored it."""
        weight = super().decoded()
        return weight.t().contiguous() if self.transposed else weight

    def own_stored(self) -> dict[str, torch.dtype]:
        """What is stored beside the weight: one number each."""
        static = {"input_scale": torch.float32, "input_zero_point": torch.int8}
        return static if self.activations == "static" else {}

    def set_static(self, *scales: StaticScale) -> None:
        """The scale of static activations."""
        (activations,) = scales
        self.input_scale, self.input_zero_point = self.static_tensors(activations)
        self.forget()

    def static_tensors(self, static: StaticScale) -> tuple[Tensor, Tensor]:
        """Scale and zero point as they are stored."""
        device = self.compute_dtype.device
        return (
            torch.tensor(static.scale, dtype=torch.float32, device=device),
            torch.tensor(static.zero_point, dtype=torch.int8, device=device),
        )

    def static_input(self) -> StaticScale | None:
        """The same as numbers; None where activations are not static."""
        if self.input is None and self.activations == "static":
            self.input = StaticScale(self.input_scale.item(), int(self.input_zero_point))
        return self.input

    def forget(self) -> None:
        """Look again, at the next call, at what is stored beside the weight."""
        self.input, self.product, self.shifted_bias = None, None, None

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self.forget()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        before = self.compute_dtype.dtype
        super()._apply(fn, recurse)
        if self.compute_dtype.dtype != before:  # the bias is another
            self.forget()
        return self

    def train(self, mode: bool = True) -> Self:
        if mode and self.activations == "static":
            raise UsageError(
                "a model with static integer activations is for inference: train the float model"
            )
        return super().train(mode)

    def set_nonlinearity(self, name: str, in_force: Callable[[], bool] | None = None) -> None:
        """What to apply to y from now on: a name in csrc/nonlinearity.inl, or "identity".

        in_force: asked at every call whether to apply it.
        """
        self.nonlinearity, self.in_force, self.product = name, in_force, None

    def nonlinearity_now(self) -> str:
        """What this call applies to y."""
        return self.nonlinearity if self.in_force is None or self.in_force() else "identity"

    def prepacked_product(self) -> tuple[Tensor | None, LinearProduct | None]:
        """The prepacked weight and its product, or nothing where the stored one is used."""
        packed, form = self.prepacked()
        product = self.product
        wanted = self.nonlinearity if self.in_force is None else self.nonlinearity_now()
        if form is not None and (
            product is None or product.form is not form or product.nonlinearity != wanted
        ):
            product = linear.product(form, self.activations, wanted, self.static_input())
            static = None if product is None else product.input
            if packed is not None and static is not None and static.zero_point:
                bias = self._parameters["bias"]
                self.shifted_bias = shifted_bias(form, packed, bias, static)
            self.product = product  # last: another thread that sees it takes the bias beside it
        return packed, product

    def product_bias(self) -> Tensor | None:
        """The bias as the product takes it: what a static zero point adds is off it already."""
        return self._parameters["bias"] if self.shifted_bias is None else self.shifted_bias

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
