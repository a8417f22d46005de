"""One token through a decoder: the model itself twice, recorded, and its recorded calls from then on."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Bool, Float, Integer
from torch import Tensor
from transformers import Cache, PreTrainedModel
from transformers.cache_utils import DynamicLayer
from transformers.modeling_outputs import BaseModelOutput

from lowbit.decoding.cache import GrowingLayer
from lowbit.decoding.program import Program, program
from lowbit.decoding.recording import Recorded, Recording, recorded


@dataclass
class State:
    """What a step reads beside the token ids; None for what a model or a batch has not."""

    cache: Cache
    layers: list[GrowingLayer]
    cross: list[DynamicLayer]
    positions: Integer[Tensor, "batch 1"] | None
    mask: Bool[Tensor, "batch 1 1 tokens"] | None
    encoded: Float[Tensor, "batch source size"] | None
    encoder_mask: Bool[Tensor, "batch 1 1 source"] | None

    def inputs(self, ids: Tensor) -> dict[str, Tensor]:
        """The tensors among them by name, and the ids."""
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
        """The same as the model's forward takes it."""
        common = {"past_key_values": self.cache, "use_cache": True, "return_dict": True}
        if self.encoded is not None:
            return common | {
                "decoder_input_ids": ids,
                "decoder_attention_mask": self.mask,
                "encoder_outputs": BaseModelOutput(last_hidden_state=self.encoded),
                "attention_mask": self.encoder_mask,
            }
        positions = {} if self.positions is None else {"position_ids": self.positions}
        return common | {"input_ids": ids, "attention_mask": self.mask} | positions


@dataclass
class Step:
    """Logits [batch, 1, vocabulary] of the token after `ids`, which may be overwritten by the next
    call."""

    model: PreTrainedModel
    earlier: Recorded | None = field(default=None, repr=False)
    program: Program | None = field(default=None, repr=False)

    def __call__(self, ids: Integer[Tensor, "batch 1"], state: State) -> Tensor:
        inputs = state.inputs(ids)
        if self.program is not None:
            return self.program(state.layers, state.layers[0].length, **inputs)
        with Recording() as recording:
            logits: Tensor = self.model(**state.arguments(ids)).logits
        later = recorded(recording.calls, inputs, logits)
        if self.earlier is None:
            self.earlier = later
        else:
            self.program, self.earlier = program(self.earlier, later, state.layers), None
        return logits
