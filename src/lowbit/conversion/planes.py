"""Any precision: a model of nested binary codes computes with its first planes alone."""

from torch import nn

from lowbit.errors import UsageError
from lowbit.nn import QuantModule


def use_planes(model: nn.Module, planes: int) -> None:
    """Compute with the first planes of every nested binary weight.

    Nothing is moved, and saving stores all planes: a larger number brings them back. The result
    equals that of a model stored with so few planes.

    Args:
        model: A model with nested binary weights.
        planes: Planes to use, at least 1. Weights with fewer planes use all of theirs.

    Raises:
        UsageError: if a weight with more planes is not nested, or no weight has that many.

    On error, nothing has changed.
    """
    binary = {
        name: (module, module.layout)
        for name, module in model.named_modules()
        if isinstance(module, QuantModule) and module.tied_to is None
        if module.layout.prefixes
    }
    most = max((layout.prefixes[-1] for _, layout in binary.values()), default=0)
    if not most:
        raise UsageError(f"this {type(model).__name__} has no binary codes, so it has no planes")
    if not 1 <= planes <= most:
        raise UsageError(f"planes must be between 1 and {most} for this model, not {planes}")
    for name, (_, layout) in binary.items():
        if min(planes, layout.prefixes[-1]) not in layout.prefixes:
            raise UsageError(
                f"{name} is not nested, so {planes} of its {layout.prefixes[-1]} planes cannot be"
                " used alone: quantize with nested=True"
            )
    for module, layout in binary.values():
        module.use_planes(min(planes, layout.prefixes[-1]))
