"""How often each expert of a mixture is chosen, on token ids or while something else runs it."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lowbit.conversion.experts import number_of_experts
from lowbit.errors import UsageError
from lowbit.nn.eval_mode import evaluating


def chosen_experts(
    model: PreTrainedModel, batches: Iterable[Mapping[str, Any]]
) -> dict[str, tuple[int, ...]]:
    """For each experts module by name, how many tokens chose each expert, in all of the `batches`:
    mappings of model inputs. The model may be float or quantized. Raises UsageError for one without
    experts modules that are given the numbers of the chosen experts."""
    counts: dict[str, tuple[int, ...]] = {}
    with evaluating(model), counted(model, counts):
        for batch in batches:
            model(**batch)
    if not counts:
        raise UsageError(
            f"{type(model).__name__} has no experts that are called with"
            " the numbers of those chosen"
        )
    return counts


@contextmanager
def counted(model: nn.Module, counts: dict[str, tuple[int, ...]]) -> Iterator[None]:
    """Whatever runs the model within it: for each experts module by name, `counts` holds at its end
    how many tokens chose each expert. A module that is never given their numbers, as one whose
    tokens come sorted by expert, is left out."""
    sizes = {name: number_of_experts(module) for name, module in model.named_modules()}
    found: dict[str, Counter[int]] = {name: Counter() for name, size in sizes.items() if size}

    def count(own: Counter[int], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        ids = next((v for v in (*args, *kwargs.values()) if _is_choice(v)), None)
        if ids is None:
            return
        numbers, times = torch.unique(ids, return_counts=True)
        own.update(dict(zip(numbers.tolist(), times.tolist(), strict=True)))

    handles = [
        model.get_submodule(name).register_forward_pre_hook(
            lambda _, args, kwargs, own=own: count(own, args, kwargs), with_kwargs=True
        )
        for name, own in found.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
    for name, own in found.items():
        if own:
            counts[name] = tuple(own[i] for i in range(sizes[name] or 0))


def _is_choice(value: Any) -> bool:
    return isinstance(value, Tensor) and not value.is_floating_point()
