"""The names of stored tensors in a checkpoint.

transformers renames, merges and splits float weights when it saves and loads them. That would
damage packed ones.
"""

from collections.abc import Callable, Iterable, Set
from copy import deepcopy

from torch import Tensor
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    PrefixChange,
    WeightConverter,
    WeightTransform,
    dot_natural_key,
    rename_source_key,
    revert_weight_conversion,
)
from transformers.modeling_utils import remove_tied_weights_from_state_dict

from lowbit.nn import QuantModule


def renaming(entry: WeightTransform) -> Callable[[str], str]:
    """The renaming of an entry during loading, as a function without side effects on the entry."""
    trial = deepcopy(entry)
    return lambda name: trial.rename_source_key(name)[0]


def takes(entry: WeightTransform, names: Iterable[str]) -> bool:
    """Whether an entry renames or converts any of these tensors, without side effects on the
    entry."""
    trial = deepcopy(entry)
    return any(trial.rename_source_key(name)[1] is not None for name in names)


def lost(
    model: PreTrainedModel, saving: list[WeightTransform], loading: list[WeightTransform]
) -> set[str]:
    """The tensors of `model` whose name after saving and loading differs from their own. Converters
    do not rename stored tensors."""
    back = [deepcopy(entry) for entry in loading if not isinstance(entry, WeightConverter)]
    there = model.state_dict()
    names = {name: _saved_name(saving, name) for name in there}
    found = set()
    # In the loader's order: some entries start to rename after they have seen a certain name.
    for name in sorted(names, key=lambda name: dot_natural_key(names[name])):
        stored = names[name]
        read, _ = rename_source_key(stored, back, [], model.base_model_prefix, there)
        if read not in there and stored in there:
            read, _ = rename_source_key(stored, [], [], model.base_model_prefix, there)
        if read != name:
            found.add(name)
    return found


def _saved_name(saving: list[WeightTransform], name: str) -> str:
    for entry in reversed(saving):
        if not isinstance(entry, WeightConverter):
            name = entry.reverse_transform().rename_source_key(name)[0]
    return name


def merged_with(model: PreTrainedModel, names: Set[str]) -> Set[str]:
    """The tensors of `model` that checkpoints store in one tensor with some of `names`, such as Q,
    K and V."""
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
    """Keep transformers from merging packed weights when it saves: for some models it joins the
    weights of several modules in one tensor, which would merge codes too."""
    conversions = getattr(model, "_weight_conversions", None)
    if conversions is None:  # else transformers looks them up, except changes of a prefix
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
        or not takes(entry.reverse_transform(), (f"{name}.weight" for name in packed))
    ]


def as_saved(model: PreTrainedModel, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict that transformers writes: without tied weights, with the names of
    checkpoints."""
    ignored = set(model._keys_to_ignore_on_save or ())
    kept = {name: tensor for name, tensor in state.items() if name not in ignored}
    found: dict[str, Tensor] = revert_weight_conversion(
        model, remove_tied_weights_from_state_dict(kept, model)
    )
    return found
