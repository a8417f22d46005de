"""A decoder step for one token. The model itself computes the first two steps, which are recorded.
Later steps run the recording, or the model itself if it cannot be recorded."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor
from transformers import Cache, PreTrainedModel
from transformers.cache_utils import DynamicLayer
from transformers.modeling_outputs import BaseModelOutput, ModelOutput

from lowbit.decoding.adapters import CACHE
from lowbit.decoding.cache import GrowingLayer
from lowbit.decoding.program import Program, program
from lowbit.decoding.recording import Recorded, Recording, recorded
from lowbit.errors import UsageError
from lowbit.fallbacks import note


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

    def inputs(self, ids: Tensor) -> dict[str, Tensor]:
        """The ids and all tensors of the state, by name."""
        named = {
            "ids": ids,
            "positions": self.positions,
            "mask": self.mask,
            "encoded": self.encoded,
            "encoder_mask": self.encoder_mask,
        }
        for i, layer in enumerate(self.cross):
            named[f"cross_keys_{i}"], named[f"cross_values_{i}"] = layer.keys, layer.values
        return {name: tensor for name, tensor in named.items() if tensor is not None}

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


class Step:
    """A step for one model, number of rows and kind of state."""

    def __init__(self) -> None:
        self.earlier: Recorded | None = None
        self.program: Program | None = None
        self.is_plain = False  # the model itself computes it, because it cannot be recorded

    @property
    def is_new(self) -> bool:
        return self.earlier is None and not self.is_settled

    @property
    def is_settled(self) -> bool:
        """Whether the way to compute the next tokens is decided."""
        return self.program is not None or self.is_plain

    def __call__(
        self, model: PreTrainedModel, ids: Integer[Tensor, "batch 1"], state: State
    ) -> Float[Tensor, "batch 1 vocabulary"]:
        """The logits of the token after `ids`. The next call may overwrite them."""
        inputs = state.inputs(ids)
        if self.program is not None:
            return self.program(state.layers, state.layers[0].length, **inputs)
        if self.is_plain:
            return _logits(model, ids, state)
        with Recording() as recording:
            logits = _logits(model, ids, state)
        try:
            later = recorded(recording.calls, inputs, logits)
            if self.earlier is None:
                self.earlier = later
            else:
                self.program = program(self.earlier, later, state.layers)
                self.earlier = None
        except UsageError as why:
            self.earlier, self.is_plain = None, True
            note(model, f"lowbit.generate computes tokens as model.generate does: {why}.")
        return logits


def _logits(model: PreTrainedModel, ids: Tensor, state: State) -> Tensor:
    logits: Tensor = model(**state.arguments(ids)).logits
    return logits
