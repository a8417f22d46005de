"""A score for each label, of a text or a pair of texts."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor
from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, PreTrainedModel

from lowbit.errors import UsageError
from lowbit.pipelines.pipeline import Item, TokenPipeline, accelerated

# What config.json may say of a problem, and how its logits become scores; transformers' own names.
SCORES = {
    "regression": lambda logits: logits,
    "multi_label_classification": torch.sigmoid,
    "single_label_classification": lambda logits: logits.softmax(-1),
}


def classifies(model: PreTrainedModel) -> bool:
    """Whether the model has a head that scores whole sequences."""
    return type(model) in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING.values()


class Classifier(TokenPipeline):
    """Scores are probabilities; of a regression, what it predicts.

    A model with one output that does not say "regression" is a cross-encoder: its score is the
    sigmoid of that output, as in sentence-transformers.

    Raises UsageError for a model that does not classify sequences.
    """

    kind = "classification"
    pairs = True

    def __init__(
        self, model: PreTrainedModel, tokenizer: Any, max_length: int | None = None
    ) -> None:
        if not classifies(model):
            raise UsageError(f"{type(model).__name__} does not classify texts")
        super().__init__(model, tokenizer, max_length)
        self.forward = accelerated(model)

    @property
    def labels(self) -> list[str]:
        named = self.model.config.id2label
        return [named[number] for number in range(self.model.config.num_labels)]

    @property
    def exclusive(self) -> bool:
        """Whether exactly one label is right."""
        return self.problem == "single_label_classification"

    @property
    def problem(self) -> str:
        config = self.model.config
        usual = "multi" if config.num_labels == 1 else "single"
        return config.problem_type or f"{usual}_label_classification"

    def compute(self, items: Sequence[Item]) -> Float32[np.ndarray, "items labels"]:
        with torch.inference_mode():
            logits: Tensor = self.forward(**self.padded(items, "right")).logits
            return SCORES[self.problem](logits.float()).numpy()
