"""What a model's head is for: asked of transformers' own tables."""

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedModel

from lowbit.errors import UsageError


def check_head(model: PreTrainedModel, classes: Mapping[Any, Any], task: str, head: str) -> None:
    """Raises UsageError unless the model is what `classes`, one of transformers' tables from
    config to class, has for its config."""
    fitting = classes.get(type(model.config), ())
    if not isinstance(model, fitting):
        raise UsageError(f"{task} needs a {head} model, not {type(model).__name__}")
