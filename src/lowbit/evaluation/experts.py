"""How often each expert of a mixture is chosen, on token ids."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lowbit.conversion.experts import describes_itself
from lowbit.errors import UsageError
from lowbit.nn.eval_mode import evaluating


def chosen_experts(
    model: PreTrainedModel, batches: Iterable[Mapping[str, Any]]
) -> dict[str, tuple[int, ...]]:
    """For each experts module by name, how many tokens chose each expert, in all of the `batches`:
    mappings of model inputs. The model may be float or quantized. Raises UsageError for one without
    experts."""
    mixtures = {name: m for name, m in model.named_modules() if describes_itself(m)}
    if not mixtures:
        raise UsageError(f"{type(model).__name__} has no experts that describe themselves")
    counts: dict[str, Counter[int]] = {name: Counter() for name in mixtures}
    with evaluating(model), _counting(mixtures, counts):
        for batch in batches:
            model(**batch)
    return {
        name: tuple(counts[name][i] for i in range(int(module.num_experts)))
        for name, module in mixtures.items()
    }


@contextmanager
def _counting(
    mixtures: Mapping[str, nn.Module], counts: Mapping[str, Counter[int]]
) -> Iterator[None]:
    """Within it, each call of a mixture counts the experts that it is given."""

    def count(own: Counter[int], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        ids = next(v for v in (*args, *kwargs.values()) if _is_choice(v))
        found, times = torch.unique(ids, return_counts=True)
        own.update(dict(zip(found.tolist(), times.tolist(), strict=True)))

    handles = [
        module.register_forward_pre_hook(
            lambda _, args, kwargs, own=counts[name]: count(own, args, kwargs), with_kwargs=True
        )
        for name, module in mixtures.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _is_choice(value: Any) -> bool:
    return isinstance(value, Tensor) and not value.is_floating_point()
