"""What a task is: data, and a way to score a model on it."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from jaxtyping import Int64
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lowbit.errors import UsageError
from lowbit.evaluation.study import Measurement, Metric


@dataclass(frozen=True)
class Subject:
    """A model to be measured. `tokenizer` is None where its folder has none."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None

    def needed_tokenizer(self) -> PreTrainedTokenizerBase:
        """Raises UsageError where there is none."""
        if self.tokenizer is None:
            raise UsageError(f"{self.name} has no tokenizer, and this task needs one")
        return self.tokenizer


# Numbers of items, in any order and more than once -> the deciding metric of them.
Resampled = Callable[[Int64[np.ndarray, " items"]], float]


class Task(ABC):
    """A frozen dataclass whose fields are the task's options; `data` is one of them.

    One object scores any number of models, all on the same items. Data is read once, by the first
    call of `check` or `measure`, so that an object costs nothing.
    """

    name: ClassVar[str]

    @abstractmethod
    def check(self, subject: Subject) -> None:
        """Raises UsageError where the model cannot do the task, InputError for unusable data.

        Cheap: asked before hours of work.
        """

    @abstractmethod
    def measure(self, subject: Subject, progress: bool = True) -> Measurement:
        """Score the model. The model's mode, torch's random state and thread count stay as they
        were. progress: show a bar with time left if it takes more than two seconds."""

    def resampled(self, found: Measurement) -> Resampled | None:
        """The deciding metric of some of the items of a measurement, by their numbers; None where
        items have no scores of their own."""
        return None

    def measure_beside(
        self, subject: Subject, reference: Subject, before: Measurement, progress: bool = True
    ) -> Measurement:
        """The same, and how far the model is from `reference`, of which `before` was found."""
        found = self.measure(subject, progress)
        return replace(found, metrics={**found.metrics, **agreement(found, before)})


def agreement(found: Measurement, reference: Measurement) -> dict[str, Metric]:
    """The share of items on which two models predict the same; nothing without predictions, or
    with scores, which are hardly ever equal."""
    scores = any(isinstance(value, float) for value in found.predictions)
    if scores or not found.predictions or len(found.predictions) != len(reference.predictions):
        return {}
    same = sum(a == b for a, b in zip(found.predictions, reference.predictions, strict=True))
    share = same / len(found.predictions)
    return {"agreement": Metric(share, "higher", f"with the reference, on {found.unit}")}
