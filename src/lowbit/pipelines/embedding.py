"""A vector for a text."""

from collections.abc import Sequence
from inspect import signature
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32
from torch import nn
from transformers import PreTrainedModel

from lowbit.errors import UsageError, check_choice
from lowbit.pipelines.pipeline import Item, Row, TokenPipeline, accelerated
from lowbit.pipelines.pooling import POOLINGS
from lowbit.pipelines.sentence_modules import SentenceModules


class Embedder(TokenPipeline):
    """An encoder, or the part of a model below its head, with what makes a vector of its states.

    modules: what the folder says. pooling, normalize, max_length, prompt: instead of what it says.

    Raises UsageError for an encoder–decoder, an unknown pooling, and more tokens than the model has
    positions for.
    """

    kind = "embedding"

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: Any,
        modules: SentenceModules = SentenceModules(),  # noqa: B008  frozen
        pooling: str | None = None,
        normalize: bool | None = None,
        max_length: int | None = None,
        prompt: str | None = None,
    ) -> None:
        # The config of an encoder alone may still say that it is one of two halves.
        if "decoder_input_ids" in signature(model.base_model.forward).parameters:
            raise UsageError(f"embedding needs an encoder or a decoder, not {type(model).__name__}")
        super().__init__(model, tokenizer, max_length)
        if max_length is None and modules.max_length is not None:
            # Some folders say more than the model has positions for.
            self.most = min(self.most or modules.max_length, modules.max_length)
        if pooling is not None:
            check_choice("pooling", pooling, POOLINGS)
        named = modules.poolings if pooling is None else (pooling,)
        self.poolings = [POOLINGS[name] for name in named]
        self.normalize = modules.normalize if normalize is None else normalize
        self.prompt = modules.prompt if prompt is None else prompt
        self.lower_case = modules.lower_case
        self.base = accelerated(model.base_model)

    @property
    def width(self) -> int:
        """Numbers of a vector."""
        return self.model.config.get_text_config().hidden_size * len(self.poolings)

    def encode(self, rows: Sequence[Row], **options: Any) -> list[Item]:
        texts = [self.prompt + text for (text,) in rows]
        return super().encode([(text.lower() if self.lower_case else text,) for text in texts])

    def compute(self, items: Sequence[Item]) -> Float32[np.ndarray, "items width"]:
        inputs = self.padded(items, "right")
        with torch.inference_mode():
            states = self.base(**inputs)[0].float()
            exists = inputs["attention_mask"].bool()
            found = torch.cat([pooled(states, exists) for pooled in self.poolings], 1)
            if self.normalize:
                found = nn.functional.normalize(found, dim=1)
        return found.numpy()
