"""The operators that modules call. Each is declared in the operator.py next to its kernels."""

from lowbit.kernels.arguments import layout_text
from lowbit.kernels.attention.operator import attention
from lowbit.kernels.dequantize import dequantize
from lowbit.kernels.embedding.operator import embedding, embedding_packed
from lowbit.kernels.experts.operator import experts_linear, experts_linear_packed
from lowbit.kernels.linear.operator import linear, linear_packed
from lowbit.kernels.operator import dispatched
from lowbit.kernels.quantize_rows.operator import quantize_rows

__all__ = [
    "attention",
    "dequantize",
    "dispatched",
    "embedding",
    "embedding_packed",
    "experts_linear",
    "experts_linear_packed",
    "layout_text",
    "linear",
    "linear_packed",
    "quantize_rows",
]
