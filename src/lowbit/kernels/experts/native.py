"""Linear layers of a mixture's experts by csrc/experts.h. Activations are quantized, multiplied and
rounded as in linear layers (kernels/linear/native.py), so each result has the bits of a linear
layer with the expert's weight, independent of other tokens.
"""

from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from lowbit.errors import RowError, UsageError
from lowbit.formats import ExpertsTensor
from lowbit.kernels import packed_layout
from lowbit.kernels.checks import check_choices
from lowbit.kernels.experts_packed_layout import ExpertsPackedLayout
from lowbit.kernels.linear import families
from lowbit.kernels.native import module, targets
from lowbit.kernels.packed_layout import PANEL_ROWS
from lowbit.kernels.selection import Kernel

IDENTITY = "identity"
SUMMED = frozenset((torch.float32, torch.bfloat16))


class ExpertsProduct:
    """The product with weights packed as `form`, on one target of the native code. family: of float
    activations; by default the family of the target."""

    form: ExpertsPackedLayout

    def __init__(
        self,
        form: ExpertsPackedLayout,
        activations: str,
        target: str,
        family: str | None = None,
    ) -> None:
        assert module is not None
        self.form, self.activations, self.target = form, activations, target
        self.family = family or families.family(activations, target)
        self._limbs = families.limbs(self.family)
        self._target = module.ExpertsTarget(target, self.family == "fma")
        self._layers: dict[tuple[str, bool, bool], Any] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        """Native objects cannot be copied; a copy creates new ones."""
        return ExpertsProduct, (self.form, self.activations, self.target, self.family)

    def gates(self, nonlinearity: str) -> bool:
        """Whether the product can apply this gate: halves of the outputs must be whole panels."""
        return nonlinearity != IDENTITY and self.form.rows % (2 * PANEL_ROWS) == 0

    def sums(self, x: Tensor, weights: Tensor) -> bool:
        """Whether the product can sum results of these dtypes."""
        return x.dtype in SUMMED and weights.dtype in SUMMED

    def _layer(self, *how: Any) -> Any:
        """The native description of an expert's layer, cached by gate and dtypes."""
        assert module is not None
        if how not in self._layers:
            gate, half, half_bias = how
            self._layers[how] = module.Layer(
                self.form.each.weight,
                getattr(module.Nonlinearity, gate),
                bfloat16=half,
                bfloat16_bias=half_bias,
            )
        return self._layers[how]

    def __call__(
        self,
        x: Float[Tensor, "tokens in"],
        ids: Int64[Tensor, "tokens slots"],
        packed: UInt8[Tensor, " bytes"],
        bias: Float[Tensor, "experts out"] | None,
        gate: str = IDENTITY,
        weights: Float[Tensor, "tokens slots"] | None = None,
    ) -> Float[Tensor, "tokens slots _out"] | Float[Tensor, "tokens out"]:
        """Multiply x by the experts of each token, in x's dtype; 0 if no expert is chosen. Raises
        RowError if an id is out of range, UsageError if sizes do not match or tensors are not on
        the CPU, because native code gets only their addresses.

        gate: a nonlinearity f other than "identity". The result is f(first half) · second half of
        the outputs. `gates` must allow it.
        weights: x is [tokens · slots, in], a row per slot; the results of a token, times the
        weights, are summed in the order of the slots. There is no gate in this case.
        """
        self._check(x, ids, bias, weights)
        form, dtype = self.form, x.dtype
        half = dtype is torch.bfloat16
        x = x.contiguous() if half else x.float().contiguous()
        if bias is not None:
            wide = not half or bias.dtype is not torch.bfloat16
            bias = (bias.float() if wide else bias).contiguous()
        ids = ids.contiguous()
        gated = gate != IDENTITY
        if weights is None:
            y = x.new_empty(*ids.shape, form.rows // 2 if gated else form.rows)
            summed: tuple[Any, ...] = ()
        else:
            half_weights = weights.dtype is torch.bfloat16
            weights = (weights if half_weights else weights.float()).contiguous()
            # Without slots, native code does not write y.
            y = (x.new_empty if ids.shape[1] else x.new_zeros)(len(ids), form.rows)
            summed = weights.data_ptr(), half_weights
        half_bias = half and bias is not None and bias.dtype is torch.bfloat16
        call = (
            self._layer(gate, half, half_bias),
            gated,
            form.layout.experts,
            form.stride,
            x.data_ptr(),
            ids.data_ptr(),
            ids.shape[0],
            ids.shape[1],
            packed.data_ptr(),
            0 if bias is None else bias.data_ptr(),
            y.data_ptr(),
            self._limbs,
            *summed,
        )
        try:
            self._target(*call)
        except IndexError as error:
            raise RowError(str(error)) from None
        return y if y.dtype is dtype else y.to(dtype)

    def _check(self, x: Tensor, ids: Tensor, bias: Tensor | None, weights: Tensor | None) -> None:
        form = self.form
        check_choices(x, ids, weights)
        if x.dim() != 2 or x.shape[1] != form.in_features or not x.is_floating_point():
            raise UsageError(
                f"x {list(x.shape)} of {x.dtype} is not rows of {form.in_features} floats"
            )
        if bias is not None and tuple(bias.shape) != (form.layout.experts, form.rows):
            raise UsageError(
                f"bias is {list(bias.shape)}, expected {[form.layout.experts, form.rows]}"
            )
        for t in (x, ids, bias, weights):
            if t is not None and not t.is_cpu:
                raise UsageError(f"a tensor {list(t.shape)} is on {t.device}, the experts on cpu")


def experts_linear(
    x: Float[Tensor, "tokens in"],
    ids: Int64[Tensor, "tokens slots"],
    q: ExpertsTensor,
    bias: Float[Tensor, "experts out"] | None,
    activations: str,
    *,
    target: str,
) -> Float[Tensor, "tokens slots out"]:
    """Multiply by stored weights, which are packed for this call only."""
    form = ExpertsPackedLayout(q.layout, *q.shape)
    return ExpertsProduct(form, activations, target)(x, ids, form.pack(q), bias)


def kernels(activations: str) -> tuple[Kernel, ...]:
    """The kernels of all targets, best first."""
    return tuple(
        Kernel(
            target.name,
            partial(experts_linear, target=target.name),
            packed_layout.unsupported,
            target.feature,
        )
        for target in targets("experts")
    )
