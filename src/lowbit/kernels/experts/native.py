"""Linear layers of a mixture's experts by csrc/experts.h: activations are quantized, multiplied and
rounded as in linear layers (kernels/linear/native.py), so that each result has the bits which the
expert's weight gives by itself, whatever tokens come along.
"""

from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from lowbit.formats import ExpertsTensor
from lowbit.kernels import packed_layout
from lowbit.kernels.experts_packed_layout import ExpertsPackedLayout
from lowbit.kernels.linear.native import DIGITS
from lowbit.kernels.native import module, paths
from lowbit.kernels.selection import Kernel


class ExpertsProduct:
    """The product with weights packed as `form` says, on one path of the native code."""

    def __init__(self, form: ExpertsPackedLayout, activations: str, path: str) -> None:
        assert module is not None
        self.form, self.activations, self.path = form, activations, path
        self._digits = DIGITS[activations]
        self._path = module.ExpertsPath(path)
        self._layers = {
            (half, half_bias): module.Layer(
                form.each.weight,
                module.Nonlinearity.identity,
                bfloat16=half,
                bfloat16_bias=half_bias,
            )
            for half, half_bias in ((False, False), (True, False), (True, True))
        }

    def __reduce__(self) -> tuple[Any, ...]:
        """Native objects cannot be copied; they are found again."""
        return ExpertsProduct, (self.form, self.activations, self.path)

    def __call__(
        self,
        x: Float[Tensor, "tokens in"],
        ids: Int64[Tensor, "tokens slots"],
        packed: UInt8[Tensor, " bytes"],
        bias: Float[Tensor, "experts out"] | None,
    ) -> Float[Tensor, "tokens slots out"]:
        """x by the experts chosen for each token, in x's dtype; 0 where none is chosen. Raises
        RowError for ids that no expert has."""
        form, dtype = self.form, x.dtype
        half = dtype is torch.bfloat16
        x = x.contiguous() if half else x.float().contiguous()
        if bias is not None:
            wide = not half or bias.dtype is not torch.bfloat16
            bias = (bias.float() if wide else bias).contiguous()
        ids = ids.contiguous()
        y = x.new_empty(*ids.shape, form.rows)
        self._path(
            self._layers[half, half and bias is not None and bias.dtype is torch.bfloat16],
            form.layout.experts,
            form.stride,
            x.data_ptr(),
            ids.data_ptr(),
            ids.shape[0],
            ids.shape[1],
            packed.data_ptr(),
            0 if bias is None else bias.data_ptr(),
            y.data_ptr(),
            self._digits,
        )
        return y if y.dtype is dtype else y.to(dtype)


def experts_linear(
    x: Float[Tensor, "tokens in"],
    ids: Int64[Tensor, "tokens slots"],
    q: ExpertsTensor,
    bias: Float[Tensor, "experts out"] | None,
    activations: str,
    *,
    path: str,
) -> Float[Tensor, "tokens slots out"]:
    """The same from the stored form, which is packed for this one call."""
    form = ExpertsPackedLayout(q.layout, *q.shape)
    return ExpertsProduct(form, activations, path)(x, ids, form.pack(q), bias)


def kernels(activations: str) -> tuple[Kernel, ...]:
    """One for each path, best first."""
    return tuple(
        Kernel(
            path.name,
            partial(experts_linear, path=path.name),
            packed_layout.unsupported,
            path.feature,
        )
        for path in paths("experts")
    )
