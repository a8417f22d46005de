"""A continuation of a text, by a decoder."""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from transformers import PreTrainedModel

from lowbit.decoding import generate
from lowbit.errors import UsageError, check_at_least
from lowbit.fallbacks import note
from lowbit.nn.eval_mode import positions
from lowbit.pipelines.pipeline import Item, Row, TokenPipeline

NEW_TOKENS = 64  # of a continuation, unless something else is asked for


class Generation(TokenPipeline):
    """The likeliest token at a time, up to `max_new_tokens`: by default 64, or half of the model's
    positions if that is less. A prompt is cut on the right to leave them room. chat: each text is
    what a user says, in the form of the tokenizer's chat template.

    Raises UsageError for a model that does not continue texts, and for more new tokens than it has
    positions for.
    """

    kind = "generation"

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: Any,
        max_new_tokens: int | None = None,
        chat: bool = False,
        max_length: int | None = None,
    ) -> None:
        if not model.can_generate() or model.config.is_encoder_decoder:
            raise UsageError(f"{type(model).__name__} does not continue texts")
        super().__init__(model, tokenizer, max_length)
        if chat and not getattr(tokenizer, "chat_template", None):
            raise UsageError("the tokenizer has no chat template: leave --chat out")
        room = positions(model)
        if max_new_tokens is None:
            max_new_tokens = NEW_TOKENS if room is None else max(1, min(NEW_TOKENS, room // 2))
        check_at_least("max_new_tokens", max_new_tokens, 1)
        if room is not None:
            if max_new_tokens >= room:
                raise UsageError(
                    f"max_new_tokens must be less than {room}, the positions of the model, not"
                    f" {max_new_tokens}"
                )
            self.most = min(self.most or room, room - max_new_tokens)
        self.chat = chat
        self.config = deepcopy(model.generation_config)
        self.config.update(
            do_sample=False,
            num_beams=1,
            num_return_sequences=1,
            return_dict_in_generate=False,
            max_new_tokens=max_new_tokens,
            max_length=None,
            use_cache=True,
        )
        if self.config.pad_token_id is None:
            self.config.pad_token_id = tokenizer.pad_token_id or tokenizer.eos_token_id or 0
        self.search: Any = generate

    def encode(self, rows: Sequence[Row], **options: Any) -> list[Item]:
        if not self.chat:
            return super().encode(rows)
        told = [
            self.tokenizer.apply_chat_template(
                [{"role": "user", "content": text}], add_generation_prompt=True, tokenize=False
            )
            for (text,) in rows
        ]
        # The template holds the special tokens.
        return super().encode([(text,) for text in told], add_special_tokens=False)

    def compute(self, items: Sequence[Item]) -> Sequence[str]:
        padded = self.padded(items, "left")
        inputs = {name: padded[name] for name in ("input_ids", "attention_mask")}
        with torch.no_grad():
            try:
                tokens = self.search(self.model, **inputs, generation_config=self.config)
            except UsageError as error:
                if self.search is not generate:
                    raise
                # The same tokens from now on, but slower.
                note(self.model, f"Texts are continued by model.generate: {error}.")
                self.search = type(self.model).generate
                tokens = self.search(self.model, **inputs, generation_config=self.config)
        new = tokens[:, inputs["input_ids"].shape[1] :]
        texts: list[str] = self.tokenizer.batch_decode(new, skip_special_tokens=True)
        return texts
