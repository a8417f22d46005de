"""Modules that hold a stored weight and call one op."""

from lowbit.nn.embedding import QuantEmbedding
from lowbit.nn.linear import ACTIVATIONS, QuantLinear
from lowbit.nn.packed import Packed
from lowbit.nn.shared_input import SharedInput

__all__ = ["ACTIVATIONS", "Packed", "QuantEmbedding", "QuantLinear", "SharedInput"]
