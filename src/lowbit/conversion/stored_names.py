"""Names of stored tensors in a checkpoint.

transformers renames, merges and splits float weights when it saves and loads them. That would
damage packed ones.
"""

from collections.abc import Callable, Set
from copy import deepcopy

from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    PrefixChange,
    WeightConverter,
    WeightTransform,
)

from lowbit.nn import QuantModule


def renaming(entry: WeightTransform) -> Callable[[str], str]:
    """How it renames a tensor when it is loaded; the entry itself does not notice."""
    trial = deepcopy(entry)
    return lambda name: trial.rename_source_key(name)[0]


def comes_back(saving: list[WeightTransform], loading: list[WeightTransform], name: str) -> bool:
    """Whether a tensor that is renamed as it is saved has its name again when it is loaded."""
    renamed = name
    for entry in reversed(saving):
        if not isinstance(entry, WeightConverter):
            renamed = entry.reverse_transform().rename_source_key(renamed)[0]
    for entry in loading:
        if not isinstance(entry, WeightConverter):
            renamed = renaming(entry)(renamed)
    return renamed == name


def merged_with(model: PreTrainedModel, names: Set[str]) -> Set[str]:
    """The tensors of `model` that checkpoints hold in one with some of `names`, as Q, K and V."""
    reverse = [
        entry.reverse_transform()
        for entry in get_model_conversion_mapping(model)
        if isinstance(entry, WeightConverter)
    ]
    found: set[str] = set()
    for converter in reverse:
        merged: dict[str, set[str]] = {}
        for name in model.state_dict():
            stored, pattern = converter.rename_source_key(name)
            if pattern is not None:
                merged.setdefault(stored, set()).add(name)
        found |= {name for group in merged.values() if group & names for name in group}
    return found


def keep_apart(model: PreTrainedModel) -> None:
    """Let transformers save packed weights as they are: some models' checkpoints hold float weights
    of several modules in one tensor, into which it would merge codes too."""
    conversions = getattr(model, "_weight_conversions", None)
    if conversions is None:  # then it would look for them itself, all but changes of a prefix
        conversions = [
            entry
            for entry in get_model_conversion_mapping(model, add_legacy=False)
            if not isinstance(entry, PrefixChange)
        ]
    packed = [name for name, module in model.named_modules() if isinstance(module, QuantModule)]
    model._weight_conversions = [
        entry
        for entry in conversions
        if not isinstance(entry, WeightConverter)
        or all(
            entry.reverse_transform().rename_source_key(f"{name}.weight")[1] is None
            for name in packed
        )
    ]
