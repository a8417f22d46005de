"""A float model that computes with stored weights: they are decoded into its float ones."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import nn

from lowbit.conversion.module_weights import as_stored
from lowbit.conversion.plan import Quantize
from lowbit.formats import QTensor, decode


def put(model: nn.Module, d: Quantize, q: QTensor) -> None:
    """Let a float module compute with a stored weight. Those tied to it follow."""
    weight = d.weight.of(model)
    weight.data = as_stored(decode(q, weight.dtype), d.weights)


@contextmanager
def rounded(model: nn.Module, stored: Iterable[tuple[Quantize, QTensor]]) -> Iterator[nn.Module]:
    """The model with some of its weights as they are stored; floats again afterwards."""
    before = []
    try:
        for d, q in stored:
            weight = d.weight.of(model)
            before.append((weight, weight.data))
            put(model, d, q)
        yield model
    finally:
        for weight, values in before:
            weight.data = values
