"""A label for each word of a text: entities, parts of speech."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING, PreTrainedModel

from lowbit.data.lines import MOST_CHARACTERS
from lowbit.data.word_tokens import word_labels, word_tokens
from lowbit.errors import InputError, UsageError
from lowbit.pipelines.pipeline import NOT_FINITE, Item, Row, TokenPipeline, accelerated


def tags(model: PreTrainedModel) -> bool:
    """Whether the model has a head that labels tokens."""
    return type(model) in MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING.values()


class Tagger(TokenPipeline):
    """The labels of a text's words, separated by blanks. White space separates words. A word has
    the label of its first token (Devlin et al. 2019, section 5.3).

    Raises UsageError for a model that does not label tokens.
    """

    kind = "token-classification"

    def __init__(
        self, model: PreTrainedModel, tokenizer: Any, max_length: int | None = None
    ) -> None:
        if not tags(model):
            raise UsageError(f"{type(model).__name__} does not label words")
        super().__init__(model, tokenizer, max_length)
        self.forward = accelerated(model)

    def encode(self, rows: Sequence[Row], **options: Any) -> list[Item]:
        if not rows:
            return []
        sentences = [text[:MOST_CHARACTERS].split() for (text,) in rows]
        tokens = word_tokens(self.tokenizer, sentences, self.most)
        return [
            Item(
                ({name: ids[row] for name, ids in tokens.inputs.items()}, places),
                length,
                None in places,
            )
            for row, (places, length) in enumerate(zip(tokens.first, tokens.lengths, strict=True))
        ]

    def compute(self, items: Sequence[Item]) -> list[str]:
        inputs = self.padded([Item(i.content[0], i.length, i.cut) for i in items], "right")
        with torch.inference_mode():
            logits = self.forward(**inputs).logits.float()
        found = []
        for item, scores in zip(items, logits, strict=True):
            if not scores[: item.length].isfinite().all():
                raise InputError(NOT_FINITE.format(""))
            classes = scores.argmax(-1).tolist()
            labels = word_labels(classes, item.content[1], self.model.config.id2label)
            found.append(" ".join(labels))
        return found
