"""Encoder–decoders from nothing: transformers' Marian or BART with sizes of one's own."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lowbit.errors import UsageError, check_choice

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Architecture:
    """The sizes of a model that is made, not loaded. `layers` are those of the encoder and again
    those of the decoder. One table embeds sources and targets, and is the output head too.

    Raises UsageError for a kind that is unknown and sizes that cannot be.
    """

    kind: str = "marian"
    layers: int = 4
    width: int = 128
    feed_forward: int = 512
    heads: int = 8
    dropout: float = 0.1

    def __post_init__(self) -> None:
        check_choice("architecture", self.kind, KINDS)
        if min(self.layers, self.width, self.feed_forward, self.heads) < 1:
            raise UsageError(
                f"{self.layers} layers of width {self.width}, feed-forward {self.feed_forward} and"
                f" {self.heads} heads: each must be at least 1"
            )
        if self.width % self.heads:
            raise UsageError(f"{self.heads} heads do not divide the width {self.width}")
        if not 0 <= self.dropout < 1:
            raise UsageError(f"dropout {self.dropout} is outside 0 … 1")


# Configuration and model by name: transformers imports a model when it is first asked for.
KINDS = {
    "marian": ("MarianConfig", "MarianMTModel"),
    "bart": ("BartConfig", "BartForConditionalGeneration"),
}


def new_model(
    sizes: Architecture, tokenizer: "PreTrainedTokenizerBase", attention_dropout: float = 0.0
) -> "PreTrainedModel":
    """A model with random weights for the tokenizer's vocabulary and longest text."""
    # Not above: help shows the defaults, and should not wait for it.
    import transformers

    config_class, model_class = (getattr(transformers, name) for name in KINDS[sizes.kind])
    config = config_class(
        vocab_size=len(tokenizer),
        d_model=sizes.width,
        encoder_layers=sizes.layers,
        decoder_layers=sizes.layers,
        encoder_attention_heads=sizes.heads,
        decoder_attention_heads=sizes.heads,
        encoder_ffn_dim=sizes.feed_forward,
        decoder_ffn_dim=sizes.feed_forward,
        max_position_embeddings=tokenizer.model_max_length,
        activation_function="relu",
        scale_embedding=True,
        dropout=sizes.dropout,
        attention_dropout=attention_dropout,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        forced_eos_token_id=None,
        # As Marian has it: nothing is ever padded on the left of a target.
        decoder_start_token_id=tokenizer.pad_token_id,
    )
    model: PreTrainedModel = model_class(config)
    return model
