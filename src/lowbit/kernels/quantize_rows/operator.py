"""The operator of quantize_rows."""

import torch
from torch import Tensor

from lowbit.kernels import quantize_rows as kernels
from lowbit.kernels.operator import operator


@operator(
    "quantize_rows",
    fake=lambda x, group_size: (
        x.new_empty(x.shape, dtype=torch.int8),
        x.new_empty((x.shape[0], -(-x.shape[1] // group_size)), dtype=torch.float32),
    ),
)
def quantize_rows(x: Tensor, group_size: int) -> tuple[Tensor, Tensor]:
    """x [rows, cols] -> int8 codes [rows, cols] and float32 scales [rows, groups]."""
    return kernels.quantize_rows(x, group_size)
