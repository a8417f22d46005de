"""A text for a text, by an encoder–decoder: batches for `decoding/translator.py`. A quantized
encoder runs as a native program."""

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedModel

from lowbit.data.batches import longest
from lowbit.decoding.translator import Translator
from lowbit.nn import is_quantized
from lowbit.pipelines.pipeline import Item, Pipeline, Row, accelerated

ALL = 1 << 20  # sentences; whoever calls has made the batch


class Translation(Pipeline):
    """beams: 1 is greedy. max_new_tokens: of an output, by default the model's. prefix: put before
    each source. Raises UsageError for a model that does not translate."""

    kind = "translation"

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: Any,
        beams: int = 1,
        max_new_tokens: int | None = None,
        prefix: str = "",
    ) -> None:
        super().__init__(model, tokenizer)
        self.translator = Translator(model, tokenizer, beams, max_new_tokens, ALL, prefix)
        self.most = longest(model, tokenizer, None)
        encoder = model.get_encoder()
        # The layers of a float encoder would be torch's, in a program that is not faster.
        if isinstance(encoder, PreTrainedModel) and is_quantized(encoder):
            accelerated(encoder)

    def encode(self, rows: Sequence[Row]) -> list[Item]:
        if not rows:
            return []
        prefix = self.translator.prefix
        encoded = self.tokenizer([prefix + text for (text,) in rows], verbose=False)
        # An empty text has an empty translation, which takes no model.
        lengths = [
            len(ids) if text.strip() else 0
            for ids, (text,) in zip(encoded["input_ids"], rows, strict=True)
        ]
        return [
            Item(text, length, self.most is not None and length > self.most)
            for (text,), length in zip(rows, lengths, strict=True)
        ]

    def compute(self, items: Sequence[Item]) -> Sequence[str]:
        return self.translator([item.content for item in items], progress=False).outputs
