"""Decoding: the tokens that an encoder–decoder finds for its inputs, greedily or with beams."""

from collections.abc import Mapping

from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel


def search(
    model: PreTrainedModel, inputs: Mapping[str, Tensor], config: GenerationConfig
) -> Tensor:
    """Tokens [batch, length] for `input_ids` and `attention_mask` [batch, length], each row padded
    after its end. With a cache, so that a token costs one step of the decoder."""
    on_device = {name: tensor.to(model.device) for name, tensor in inputs.items()}
    tokens: Tensor = model.generate(**on_device, generation_config=config)
    return tokens
