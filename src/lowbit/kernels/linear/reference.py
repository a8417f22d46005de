"""Linear layers with stored weights, in PyTorch: y = f(x · Wᵀ + bias), f the identity or one of
`NONLINEARITIES`.

*float* activations: the weight is decoded for the product. *dynamic*: activations become int8
per token, or per token and group if the weight has groups. With x ≈ sx · cx:

    affine   y = Σ_g sx s Σ_k cx (q − z)           the inner sum over the group in integers
             y = Σ_g sx (s Σ_k cx q + o Σ_k cx)
    binary   y = Σ_g sx (Σ_i αᵢ Σ_k cx bᵢ + o Σ_k cx)

Integer sums are exact on every machine; everything after them is float32.
"""

from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor
from torch.nn import functional as F

from lowbit.formats import (
    AffineTensor,
    BinaryTensor,
    ExpertsTensor,
    QTensor,
    StackedTensor,
    StaticScale,
    decode,
)
from lowbit.formats.affine import centred_codes
from lowbit.formats.binary import signs
from lowbit.kernels.quantize_rows.reference import quantize_rows

# Products of codes are at most 255 · 255 with zero points on both sides. Sums of this many of them
# are exact in float32.
EXACT_TERMS = 2**24 // (255 * 255)


NONLINEARITIES: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda x: x,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": F.relu,
    "silu": F.silu,
}


def linear_float(
    x: Float[Tensor, "*tokens in"],
    q: QTensor,
    bias: Float[Tensor, " out"] | None,
    nonlinearity: str = "identity",
) -> Float[Tensor, "*tokens out"]:
    """Float activations: exact products with the decoded weight, in x's dtype."""
    weight = decode(q, x.dtype)
    # Contiguous: for a transposed view a BLAS may add in another order.
    y = F.linear(x.contiguous(), weight, None if bias is None else bias.to(x.dtype))
    return NONLINEARITIES[nonlinearity](y)


def integer_matmul(a: Float32[Tensor, "m k"], b: Float32[Tensor, "n k"]) -> Int64[Tensor, "m n"]:
    """a · bᵀ with exact sums, for integers stored as float32, |a| ≤ 255 and |b| ≤ 255."""
    total = torch.zeros(a.shape[0], b.shape[0], dtype=torch.int64, device=a.device)
    for left, right in zip(a.split(EXACT_TERMS, 1), b.split(EXACT_TERMS, 1), strict=True):
        total += (left @ right.T).to(torch.int64)
    return total


def linear_dynamic(
    x: Float[Tensor, "*tokens in"],
    q: QTensor,
    bias: Float[Tensor, " out"] | None,
    nonlinearity: str = "identity",
) -> Float[Tensor, "*tokens out"]:
    """int8 activations with scales computed at run time; the result in x's dtype."""
    width = q.granularity.width(q.in_features)
    codes, scales = quantize_rows(x.reshape(-1, q.in_features).float(), width)
    y = _SUMS[type(q)](codes.float().split(width, 1), scales, q)
    if bias is not None:
        y += bias.float()
    return NONLINEARITIES[nonlinearity](y).to(x.dtype).reshape(*x.shape[:-1], q.shape[0])


def linear_static(
    x: Float[Tensor, "*tokens in"],
    q: QTensor,
    bias: Float[Tensor, " out"] | None,
    nonlinearity: str,
    input: StaticScale,
) -> Float[Tensor, "*tokens out"]:
    """int8 activations with one fixed scale; the result in x's dtype."""
    width = q.granularity.width(q.in_features)
    codes, scales = quantize_static(x.reshape(-1, q.in_features).float(), width, input)
    # Codes minus their zero point exceed int8; float32 sums are exact for fewer terms.
    y = _SUMS[type(q)]((codes - input.zero_point).split(width, 1), scales, q)
    if bias is not None:
        y += bias.float()
    return NONLINEARITIES[nonlinearity](y).to(x.dtype).reshape(*x.shape[:-1], q.shape[0])


def quantize_static(
    x: Float32[Tensor, "m in"], width: int, input: StaticScale
) -> tuple[Float32[Tensor, "m in"], Float32[Tensor, "m groups"]]:
    """Codes as floats, and a scale per row and group: NaN if a value in the group is not finite."""
    scale = torch.tensor(input.scale, dtype=torch.float32, device=x.device)
    inv = torch.ones_like(scale) / scale  # a float32 division
    low, high = input.lowest - input.zero_point, 127 - input.zero_point
    codes = (x * inv.item()).clamp(low, high).round() + input.zero_point
    finite = [part.isfinite().all(1) for part in x.split(width, 1)]
    usable = torch.stack(finite, 1)
    spread = usable.repeat_interleave(width, 1)[:, : x.shape[1]]
    scales = torch.where(usable, scale, torch.nan)
    return torch.where(spread, codes, 0.0), scales


def _affine_sum(
    codes: tuple[Tensor, ...], scales: Float32[Tensor, "m groups"], q: AffineTensor
) -> Float32[Tensor, "m out"]:
    y = torch.zeros(len(scales), q.shape[0], dtype=torch.float32, device=scales.device)
    width = q.granularity.width(q.in_features)
    weight, scale = centred_codes(q).split(width, 1), q.scale.float()
    offset = None if q.offset is None else q.offset.float()
    for g, (a, b) in enumerate(zip(codes, weight, strict=True)):
        sums = integer_matmul(a, b).float()
        if offset is None:
            y += sums * (scales[:, g, None] * scale[:, g])
        else:
            y += (sums * scale[:, g] + _code_sums(a) * offset[:, g]) * scales[:, g, None]
    return y


def _code_sums(codes: Float32[Tensor, "m k"]) -> Float32[Tensor, "m 1"]:
    """Sums of codes. A float32 sum of more than 132,104 codes may not be exact."""
    return codes.sum(1, keepdim=True, dtype=torch.float64).float()


def _binary_sum(
    codes: tuple[Tensor, ...], scales: Float32[Tensor, "m groups"], q: BinaryTensor
) -> Float32[Tensor, "m out"]:
    y = torch.zeros(len(scales), q.shape[0], dtype=torch.float32, device=scales.device)
    width = q.granularity.width(q.in_features)
    planes = signs(q).split(width, 2)
    alpha = q.alpha.float()
    for g, (a, plane) in enumerate(zip(codes, planes, strict=True)):
        group = torch.zeros_like(y)
        for i, b in enumerate(plane):
            group += integer_matmul(a, b).float() * alpha[g, i]
        if q.offset is not None:
            group += _code_sums(a) * q.offset[g].float()
        y += group * scales[:, g, None]
    return y


def _stacked_sum(
    codes: tuple[Tensor, ...], scales: Float32[Tensor, "m groups"], q: StackedTensor
) -> Float32[Tensor, "m out"]:
    return torch.cat([_SUMS[type(part)](codes, scales, part) for part in q.parts], 1)


def _experts_sum(
    codes: tuple[Tensor, ...], scales: Float32[Tensor, "m groups"], q: ExpertsTensor
) -> Float32[Tensor, "m out"]:
    parts = [q.expert(i) for i in range(q.experts)]
    return torch.cat([_SUMS[type(part)](codes, scales, part) for part in parts], 1)


_SUMS: dict[type, Callable[..., Tensor]] = {
    AffineTensor: _affine_sum,
    BinaryTensor: _binary_sum,
    StackedTensor: _stacked_sum,
    ExpertsTensor: _experts_sum,
}
