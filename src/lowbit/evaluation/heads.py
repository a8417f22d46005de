"""Check the purpose of a model's head with transformers' tables."""

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedModel

from lowbit.errors import UsageError


def check_head(model: PreTrainedModel, classes: Mapping[Any, Any], task: str, head: str) -> None:
    """Raises UsageError unless the model has the class of its config in `classes`, one of
    transformers' tables."""
    fitting = classes.get(type(model.config), ())
    if not isinstance(model, fitting):
        raise UsageError(f"{task} needs a {head} model, not {type(model).__name__}")
