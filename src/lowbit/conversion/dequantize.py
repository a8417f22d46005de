"""Write decoded weights into a float model."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import nn

from lowbit.conversion.module_weights import as_stored
from lowbit.conversion.plan import Quantize
from lowbit.formats import QTensor, decode


def put(model: nn.Module, d: Quantize, q: QTensor) -> None:
    """Write a decoded weight into a float module, and so into the modules tied to it."""
    weight = d.weight.of(model)
    weight.data = as_stored(decode(q, weight.dtype), d.weights)


@contextmanager
def rounded(model: nn.Module, stored: Iterable[tuple[Quantize, QTensor]]) -> Iterator[nn.Module]:
    """A context in which some weights of the model have their decoded values."""
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
