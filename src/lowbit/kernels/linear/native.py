"""Linear layers over 8-bit weights with int8 activations, by csrc/linear_int8.h.

Activations are quantized inside the same call. All paths give the bits of the reference.
"""

from functools import partial

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from lowbit.formats import QTensor
from lowbit.kernels.linear.interleaved import Interleaved
from lowbit.kernels.native import module
from lowbit.kernels.selection import Kernel

# Beyond this many inputs a sum of |activation| ≤ 127 times |q − z| ≤ 255 may leave int32.
MAX_INPUTS = (2**31 - 1) // (127 * 255)


def unsupported(x: Tensor, q: QTensor) -> str | None:
    layout = q.layout
    if layout.format != "affine" or layout.bits != 8:
        return f"{layout.format} weights of {layout.bits} bits, not affine of 8"
    if layout.granularity.kind == "group":
        return f"a scale per {layout.granularity}, not per channel or tensor"
    if not 1 <= q.in_features <= MAX_INPUTS:
        return f"{q.in_features} inputs are outside 1 … {MAX_INPUTS}"
    device = next(iter(q.tensors().values())).device
    if not (x.is_cpu and device.type == "cpu"):
        return f"x is on {x.device} and the weight on {device}, not both on the CPU"
    return None


class Int8Linear:
    """The product with a weight prepacked as `form` says, on one path of the native code.

    Everything that does not change between calls is found here once.
    """

    def __init__(self, form: Interleaved, path: str) -> None:
        self.form, self.path = form, path
        self.out_features, self.in_features = form.out_features, form.in_features
        self.scale_at = form.places["scale"].start
        self.zero_point_at = form.places["zero_point"].start if form.layout.zero_point else 0
        self.half_scale = form.layout.scale_dtype == torch.float16
        self.one_scale = form.layout.granularity.kind == "tensor"

    def __call__(
        self,
        x: Float[Tensor, "*tokens in"],
        packed: UInt8[Tensor, " bytes"],
        bias: Float[Tensor, " out"] | None,
    ) -> Float[Tensor, "*tokens out"]:
        """x · Wᵀ + bias in x's dtype. Raises ValueError for an x that does not fit."""
        shape, dtype = x.shape, x.dtype
        if shape[-1] != self.in_features or not x.is_cpu:
            raise ValueError(
                f"x {list(shape)} on {x.device} does not fit a weight"
                f" {[self.out_features, self.in_features]} prepacked on the CPU"
            )
        if dtype is not torch.float32 or not x.is_contiguous():
            x = x.float().contiguous()
        if bias is not None and bias.dtype is not torch.float32:
            bias = bias.float()
        y = x.new_empty(*shape[:-1], self.out_features)
        weight = packed.data_ptr()
        module.linear_int8(  # type: ignore[union-attr]
            x.data_ptr(),
            weight,
            weight + self.scale_at,
            weight + self.zero_point_at if self.zero_point_at else 0,
            0 if bias is None else bias.data_ptr(),
            y.data_ptr(),
            x.numel() // self.in_features,
            self.in_features,
            self.out_features,
            self.half_scale,
            self.one_scale,
            self.path,
        )
        return y if dtype is torch.float32 else y.to(dtype)


def linear_dynamic(
    x: Float[Tensor, "*tokens in"],
    q: QTensor,
    bias: Float[Tensor, " out"] | None,
    *,
    path: str,
) -> Float[Tensor, "*tokens out"]:
    """The same from the stored form, which is prepacked for this one call."""
    form = Interleaved.of(q.layout, *q.shape)
    return Int8Linear(form, path)(x, form.pack(q), bias)


KERNELS = tuple(
    Kernel(name, partial(linear_dynamic, path=name), unsupported, isa=isa)
    for name, isa in (
        ("amx", "amx"),
        ("avx512", "avx512vnni"),
        ("avxvnni", "avxvnni"),
        ("avx2", "avx2"),
        ("scalar", "scalar"),
    )
)
