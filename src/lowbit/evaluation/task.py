"""The base of tasks: data, and a score of a model on them."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from jaxtyping import Int64
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lowbit.errors import UsageError
from lowbit.evaluation.study import Measurement, Metric

# In config.json: the task that a model was trained for, {"task": "glue", "name": "mrpc"}.
TRAINED_FOR = "trained_for"


@dataclass(frozen=True)
class Subject:
    """A model to measure. tokenizer: None if its folder has none."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None

    def needed_tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer. Raises UsageError if there is none."""
        if self.tokenizer is None:
            raise UsageError(f"{self.name} has no tokenizer, and this task needs one")
        return self.tokenizer


# Indices of items, in any order and with repetitions -> their deciding metric.
Resampled = Callable[[Int64[np.ndarray, " items"]], float]


class Task(ABC):
    """A frozen dataclass whose fields are the task's options; `data` is one of them.

    One object can score several models on the same items. The first call of `check` or `measure`
    reads the data.
    """

    name: ClassVar[str]

    @abstractmethod
    def check(self, subject: Subject) -> None:
        """Raises UsageError if the model does not support the task, InputError for unusable data.

        It is fast, and called before long measurements.
        """

    @abstractmethod
    def measure(self, subject: Subject, progress: bool = True) -> Measurement:
        """Score the model. Does not change the model's mode, torch's random state and thread count.
        progress: show a progress bar if it takes more than two seconds."""

    def resampled(self, found: Measurement) -> Resampled | None:
        """A function from indices of items to the deciding metric of a measurement; None if items
        have no scores of their own."""
        return None

    def measure_beside(
        self, subject: Subject, reference: Subject, before: Measurement, progress: bool = True
    ) -> Measurement:
        """Score the model, and compare it with `reference`, whose measurement is `before`."""
        found = self.measure(subject, progress)
        return replace(found, metrics={**found.metrics, **agreement(found, before)})


def agreement(found: Measurement, reference: Measurement) -> dict[str, Metric]:
    """The share of items with equal predictions of two models; empty without predictions, and for
    scores, which are seldom equal."""
    scores = any(isinstance(value, float) for value in found.predictions)
    if scores or not found.predictions or len(found.predictions) != len(reference.predictions):
        return {}
    same = sum(a == b for a, b in zip(found.predictions, reference.predictions, strict=True))
    share = same / len(found.predictions)
    return {"agreement": Metric(share, "higher", f"with the reference, on {found.unit}")}
