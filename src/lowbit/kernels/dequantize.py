"""The operator that decodes a quantized tensor."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lowbit.formats import QTensor, decode
from lowbit.kernels.arguments import assemble, check_stored, rows_of, stored_arguments
from lowbit.kernels.checks import check_result
from lowbit.kernels.operator import operator


def _check(stored: Sequence[Tensor], layout: str, in_features: int, dtype: torch.dtype) -> None:
    check_stored(stored, layout, in_features)
    check_result(dtype)


@operator(
    "dequantize",
    check=_check,
    fake=lambda stored, layout, in_features, dtype: stored[0].new_empty(
        (rows_of(stored, layout), in_features), dtype=dtype
    ),
)
def dequantize_op(
    stored: Sequence[Tensor], layout: str, in_features: int, dtype: torch.dtype
) -> Tensor:
    return decode(assemble(stored, layout, in_features), dtype)


def dequantize(q: QTensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Decode a quantized tensor.

    Args:
        q: Any quantized tensor of a weight [out, in].
        dtype: The dtype of the result: float32, float16, bfloat16 or float64.

    Returns:
        The weight [out, in], or [experts · out, in] for the experts of a mixture. It is computed in
        float32 and then cast to `dtype`.

    Raises:
        UsageError: if a stored tensor has another shape or dtype than the layout, or if `dtype` is
            none of these.
    """
    weight: Tensor = dequantize_op(*stored_arguments(q), q.in_features, dtype)
    return weight
