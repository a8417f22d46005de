"""Count how often each expert of a mixture is chosen."""

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
    """The number of tokens that chose each expert, by the name of the experts module, over all
    `batches` of model inputs. The model may be float or quantized. Raises UsageError if no experts
    module gets the ids of experts as an argument."""
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
    """A context that counts the tokens of each expert, for all calls of the model inside. At the
    end `counts` has the counts by the name of the experts module. Modules that do not get the ids
    of experts, because their tokens are sorted by expert, are left out."""
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
