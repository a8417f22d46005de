"""Change the precision of a model with nested binary codes: compute with the first planes only."""

from torch import nn

from lowbit.errors import UsageError
from lowbit.nn import QuantModule


def use_planes(model: nn.Module, planes: int) -> None:
    """Compute with the first planes of every nested binary weight.

    Results equal those of a model that was stored with this many planes. The other planes stay in
    memory and are saved; call the function with a larger number to use them again.

    Args:
        model: A model with nested binary weights (`Binary(nested=True)`).
        planes: The number of planes to use, at least 1. Weights with fewer planes use all of them.

    Raises:
        UsageError: if the model has no binary weights, `planes` is out of range, or a weight with
            more planes is not nested.

    On error, the model is left unchanged.
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
