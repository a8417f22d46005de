"""The operator of quantize_rows."""

import torch
from torch import Tensor

from lowbit.errors import check_at_least
from lowbit.kernels import quantize_rows as kernels
from lowbit.kernels.checks import check_dimensions
from lowbit.kernels.operator import operator


def _check(x: Tensor, group_size: int) -> None:
    check_dimensions("x", x, 2)
    check_at_least("group_size", group_size, 1)


@operator(
    "quantize_rows",
    check=_check,
    fake=lambda x, group_size: (
        x.new_empty(x.shape, dtype=torch.int8),
        x.new_empty((x.shape[0], -(-x.shape[1] // group_size)), dtype=torch.float32),
    ),
)
def quantize_rows(x: Tensor, group_size: int) -> tuple[Tensor, Tensor]:
    """x [rows, cols] -> int8 codes [rows, cols] and float32 scales [rows, groups]."""
    return kernels.quantize_rows(x, group_size)
