"""What a decoder reads at a token, except the token itself."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer
from transformers.modeling_outputs import BaseModelOutput, ModelOutput

from lowbit.decoding.adapters import CACHE
from lowbit.decoding.cache import GrowingLayer


@dataclass
class State:
    """The inputs of a step except the token ids; None if the model or the batch has no such
    input."""

    cache: Cache
    layers: list[GrowingLayer]
    cross: list[DynamicLayer]
    positions: Integer[Tensor, "batch 1"] | None
    mask: Bool[Tensor, "batch 1 1 tokens"] | None
    encoded: Float[Tensor, "batch source size"] | None
    encoder_mask: Bool[Tensor, "batch 1 1 source"] | None
    encoded_as: type[ModelOutput] = BaseModelOutput  # the class of the encoder's output

    def after(self, ids: Integer[Tensor, "batch 1"]) -> "State":
        """The state in which the model reads `ids`: one token further, with the same cache."""
        positions, mask = self.positions, self.mask
        if positions is not None:
            positions = positions + 1
        if mask is not None:
            mask = torch.cat([mask, mask.new_ones(len(ids), 1, 1, 1)], 3)
        return replace(self, positions=positions, mask=mask)

    def first_inputs(self, ids: Tensor) -> dict[str, Tensor]:
        """The ids and the tensors that the state has before the first token, by name."""
        named = {
            "ids": ids,
            "positions": self.positions,
            "mask": self.mask,
            "encoded": self.encoded,
            "encoder_mask": self.encoder_mask,
        }
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    def inputs(self, ids: Tensor) -> dict[str, Tensor]:
        """The ids and all tensors of the state, by name."""
        named = self.first_inputs(ids)
        for i, layer in enumerate(self.cross):
            if layer.is_initialized:
                named[f"cross_keys_{i}"], named[f"cross_values_{i}"] = layer.keys, layer.values
        return named

    def arguments(self, ids: Tensor) -> Mapping[str, Any]:
        """The ids and the state as arguments of the model's forward."""
        common = {CACHE: self.cache, "use_cache": True, "return_dict": True}
        if self.encoded is not None:
            return common | {
                "decoder_input_ids": ids,
                "decoder_attention_mask": self.mask,
                "encoder_outputs": self.encoded_as(last_hidden_state=self.encoded),
                "attention_mask": self.encoder_mask,
            }
        positions = {} if self.positions is None else {"position_ids": self.positions}
        return common | {"input_ids": ids, "attention_mask": self.mask} | positions
