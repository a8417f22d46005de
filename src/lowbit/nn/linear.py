"""QuantLinear: nn.Linear, or transformers' Conv1D, with a quantized weight [out, in]."""

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
    """The arguments of native code except x. Created and dropped as a whole."""

    weight: PackedWeight
    product: LinearProduct
    own_bias: Tensor | None  # the bias of the module
    bias: Tensor | None  # bias, with the zero-point correction already subtracted
    state: tuple[int, int] | None  # of own_bias, if `bias` was computed from its numbers

    def holds(self, weight: PackedWeight, bias: Tensor | None, nonlinearity: str) -> bool:
        """Whether these are still the arguments."""
        return (
            self.weight is weight
            and self.own_bias is bias
            and self.product.nonlinearity == nonlinearity
            and self.current()
        )

    def current(self) -> bool:
        """Whether `bias` still follows from the numbers of own_bias."""
        return self.state is None or self.state == _state(self.own_bias)


class QuantLinear(QuantModule):
    """y = x · Wᵀ + bias. activations: "float", "dynamic" for int8 with scales per call, or "static"
    for int8 with one scale, which is saved with the weight.

    transposed: the float module stored its weight as [in, out], like Conv1D. nonlinearity: applied
    to y while `in_force`, if not "identity". shared: computes y if one call computes several layers
    (conversion/fuse.py).
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
        if has_torch_function_unary(x):  # TorchFunctionModes see one call
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
        """The decoded weight in the shape of the float module's weight."""
        weight = super().decoded()
        return weight.t().contiguous() if self.transposed else weight

    def own_stored(self) -> dict[str, torch.dtype]:
        """Names and dtypes of the tensors saved with the weight, one number each."""
        static = {"input_scale": torch.float32, "input_zero_point": torch.int8}
        return static if self.activations == "static" else {}

    def set_static(self, *scales: StaticScale) -> None:
        """Set the scale of static activations."""
        (activations,) = scales
        self.input_scale, self.input_zero_point = self.static_tensors(activations)
        self.call, self.scales = None, None

    def static_tensors(self, static: StaticScale) -> tuple[Tensor, Tensor]:
        """Scale and zero point as saved tensors."""
        device = self.compute.device
        return (
            torch.tensor(static.scale, dtype=torch.float32, device=device),
            torch.tensor(static.zero_point, dtype=torch.int8, device=device),
        )

    def static_scales(self) -> tuple[StaticScale, ...]:
        """The static scales, as numbers, in the order of `set_static`."""
        if self.scales is None:
            numbers = [self._buffers[name].item() for name in self.own_stored()]  # type: ignore[union-attr]
            pairs = zip(numbers[::2], numbers[1::2], strict=True)
            self.scales = tuple(StaticScale(scale, int(zero_point)) for scale, zero_point in pairs)
        return self.scales

    def static_input(self) -> StaticScale | None:
        """The scale of static activations; None if they are not static."""
        return self.static_scales()[0] if self.activations == "static" else None

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self.call, self.scales = None, None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        before = self.compute.dtype
        super()._apply(fn, recurse)
        if self.compute.dtype != before:  # the bias has changed
            self.call = None
        return self

    def train(self, mode: bool = True) -> Self:
        if mode and self.activations == "static":
            raise UsageError(
                "a model with static integer activations is for inference: train the float model"
            )
        return super().train(mode)

    def set_nonlinearity(self, name: str, in_force: Callable[[], bool] | None = None) -> None:
        """Set the nonlinearity of y: a name in csrc/nonlinearity.inl, or "identity".

        in_force: called at every forward pass; returns whether to apply the nonlinearity.
        """
        self.nonlinearity, self.in_force = name, in_force

    def nonlinearity_now(self) -> str:
        """The nonlinearity of this call."""
        return self.nonlinearity if self.in_force is None or self.in_force() else "identity"

    def packed_call(self) -> PackedCall | None:
        """The arguments of native code for this call; None if the reference computes it."""
        owner = self if self.tied_to is None else self.tied_to
        weight = owner.packed or owner.pack()
        if weight is None:
            return None
        call, bias = self.call, self._parameters["bias"]
        wanted = self.nonlinearity if self.in_force is None else self.nonlinearity_now()
        if call is not None and call.holds(weight, bias, wanted):
            return call
        return self._packed_call(weight, bias, wanted)

    def _packed_call(
        self, weight: PackedWeight, bias: Tensor | None, nonlinearity: str
    ) -> PackedCall | None:
        input = self.static_input()
        product = linear.product(weight.layout, self.activations, nonlinearity, input)
        if product is None:
            return None
        shifted, state = bias, _state(bias)
        if input is not None:
            shifted = shifted_bias(weight.layout, weight.bytes, bias, input)
        self.call = PackedCall(weight, product, bias, shifted, None if shifted is bias else state)
        return self.call

    def choose(self) -> tuple[Kernel, str]:
        """The kernel of this module on this machine, and the reason for its choice."""
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


def _state(bias: Tensor | None) -> tuple[int, int] | None:
    """What changes if a bias is written in place or gets another storage. torch does not count
    writes through `.data`."""
    if bias is None:
        return None
    return (0 if bias.is_inference() else bias._version), bias.data_ptr()
