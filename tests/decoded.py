"""A quantized model against the float models that it comes from and stands for."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lowbit.nn import QuantModule
from tests.models import make, output

# Their biases add one number to all scores of a query, which softmax ignores.
KEYS = ("key", "k_proj", "k_lin")


def relative(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


def layers(model: PreTrainedModel) -> dict[str, QuantModule]:
    return {name: m for name, m in model.named_modules() if isinstance(m, QuantModule)}


def decoded_model(quantized: PreTrainedModel, name: str) -> PreTrainedModel:
    """The float model `name` with the decoded weights and the biases of `quantized`."""
    model = make(name)
    for layer, module in layers(quantized).items():
        owner = model.get_submodule(layer)
        owner.weight.data = module.weight.detach().clone()
        if getattr(module, "bias", None) is not None:
            owner.bias.data = module.bias.detach().clone()
    return model


def changes(model: PreTrainedModel, name: str) -> Iterator[tuple[str, float]]:
    """The relative difference of each parameter from that of the float model `name`."""
    before = dict(make(name).named_parameters())
    for parameter, value in model.named_parameters():
        yield parameter, relative(value, before[parameter])


def errors_without_a_layer(model: PreTrainedModel, expected: Tensor) -> Iterator[tuple[str, float]]:
    """The error of `output` when one quantized layer gives zeros, for each layer."""
    for layer in layers(model):
        if "pooler" not in layer:  # `output` does not depend on it
            yield layer, _error(model, layer, torch.zeros_like, expected)


def errors_without_a_bias(model: PreTrainedModel, expected: Tensor) -> Iterator[tuple[str, float]]:
    """The error of `output` when one quantized layer does not add its bias, for each layer."""
    for layer, module in layers(model).items():
        bias = getattr(module, "bias", None)
        if bias is not None and "pooler" not in layer and not layer.endswith(KEYS):
            yield layer, _error(model, layer, lambda y, bias=bias: y - bias, expected)


def _error(
    model: PreTrainedModel, layer: str, spoil: Callable[[Tensor], Tensor], expected: Tensor
) -> float:
    hook = model.get_submodule(layer).register_forward_hook(lambda module, args, y: spoil(y))
    try:
        return relative(output(model), expected)
    finally:
        hook.remove()
