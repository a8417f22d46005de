"""Quantized modules: each holds a quantized tensor and calls one operator."""

from lowbit.nn.activations import ACTIVATIONS, STATIC
from lowbit.nn.embedding import QuantEmbedding
from lowbit.nn.experts import QuantExperts
from lowbit.nn.linear import QuantLinear
from lowbit.nn.quant_module import QuantModule, is_quantized
from lowbit.nn.requantized import RequantizedLinear
from lowbit.nn.shared_input import SharedInput

__all__ = [
    "ACTIVATIONS",
    "STATIC",
    "QuantModule",
    "QuantEmbedding",
    "QuantExperts",
    "QuantLinear",
    "RequantizedLinear",
    "SharedInput",
    "is_quantized",
]
