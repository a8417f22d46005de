"""QuantLinear: nn.Linear, or transformers' Conv1D, over a stored weight [out, in]."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function_unary

from lowbit.errors import UsageError
from lowbit.formats import Layout, StaticScale
from lowbit.kernels import linear, ops
from lowbit.kernels.linear.native import LinearProduct, shifted_bias
from lowbit.kernels.selection import Kernel
from lowbit.nn.packed_weight import PackedWeight
from lowbit.nn.quant_module import QuantModule


@dataclass(frozen=True, eq=False)
class PackedCall:
    """All that native code is given beside x. Made and dropped as a whole."""

    weight: PackedWeight
    product: LinearProduct
    own_bias: Tensor | None  # that of the module
    bias: Tensor | None  # as the product takes it: what a static zero point adds is off it already


class QuantLinear(QuantModule):
    """y = x · Wᵀ + bias; `activations` "float", "dynamic" for int8 with scales found per call, or
    "static" for int8 with one scale, which is stored beside the weight.

    `transposed` says that the float module stored its weight [in, out], as Conv1D does.
    `nonlinearity`, if it is not "identity", is applied to y while `in_force`; `shared` is asked for
    y first, and gives it where one call computes several layers (conversion/fuse.py).
    """

    call: PackedCall | None
    scales: tuple[StaticScale, ...] | None
    nonlinearity: str
    shared: "Callable[[QuantLinear, Tensor], Tensor | None] | None"
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
        self.call, self.scales, self.shared = None, None, None
        self.set_nonlinearity("identity")
        self.register_parameter("bias", bias)
        for name, dtype in self.own_stored().items():
            self.register_buffer(name, torch.empty((), dtype=dtype, device="meta"))

    def forward(self, x: Tensor) -> Tensor:
        if has_torch_function_unary(x):  # whoever watches calls sees one
            return handle_torch_function(QuantLinear.forward, (x,), self, x)
        if self.shared is not None:
            y = self.shared(self, x)
            if y is not None:
                return y
        call = self.packed_call()
        if call is None:
            bias, nonlinearity = self._parameters["bias"], self.nonlinearity_now()
            q, input = self.weight_in_use, self.static_input()
            return ops.linear(x, q, bias, self.activations, nonlinearity, input)
        return ops.linear_packed(x, call.weight.bytes, call.bias, call.product)

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
        self.call, self.scales = None, None

    def static_tensors(self, static: StaticScale) -> tuple[Tensor, Tensor]:
        """Scale and zero point as they are stored."""
        device = self.compute.device
        return (
            torch.tensor(static.scale, dtype=torch.float32, device=device),
            torch.tensor(static.zero_point, dtype=torch.int8, device=device),
        )

    def static_scales(self) -> tuple[StaticScale, ...]:
        """Those that are stored beside the weight as numbers, in the order of `set_static`."""
        if self.scales is None:
            numbers = [self._buffers[name].item() for name in self.own_stored()]  # type: ignore[union-attr]
            pairs = zip(numbers[::2], numbers[1::2], strict=True)
            self.scales = tuple(StaticScale(scale, int(zero_point)) for scale, zero_point in pairs)
        return self.scales

    def static_input(self) -> StaticScale | None:
        """The scale of static activations; None where they are not static."""
        return self.static_scales()[0] if self.activations == "static" else None

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self.call, self.scales = None, None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        before = self.compute.dtype
        super()._apply(fn, recurse)
        if self.compute.dtype != before:  # the bias is another
            self.call = None
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
        self.nonlinearity, self.in_force = name, in_force

    def nonlinearity_now(self) -> str:
        """What this call applies to y."""
        return self.nonlinearity if self.in_force is None or self.in_force() else "identity"

    def packed_call(self) -> PackedCall | None:
        """What native code is given in this call; None where the stored weight is used."""
        owner = self if self.tied_to is None else self.tied_to
        weight = owner.packed or owner.pack()
        if weight is None:
            return None
        call, bias = self.call, self._parameters["bias"]
        wanted = self.nonlinearity if self.in_force is None else self.nonlinearity_now()
        if (
            call is not None
            and call.weight is weight
            and call.own_bias is bias
            and call.product.nonlinearity == wanted
        ):
            return call
        return self._packed_call(weight, bias, wanted)

    def _packed_call(
        self, weight: PackedWeight, bias: Tensor | None, nonlinearity: str
    ) -> PackedCall | None:
        input = self.static_input()
        product = linear.product(weight.layout, self.activations, nonlinearity, input)
        if product is None:
            return None
        shifted = bias
        if input is not None:
            shifted = shifted_bias(weight.layout, weight.bytes, bias, input)
        self.call = PackedCall(weight, product, bias, shifted)
        return self.call

    def choose(self) -> tuple[Kernel, str]:
        """The kernel that serves this module here, and why."""
        return linear.kernel(self.layout, self.in_features, self.compute.device, self.activations)

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
