"""One model, in float and in each recipe: size, error, perplexity, speed, and a sample to read."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Integer
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lowbit.accounting import footprint
from lowbit.evaluation.generation import generate_sample, tokens_per_second
from lowbit.evaluation.perplexity import perplexity
from lowbit.inplace import Result, quantize
from lowbit.nn import QuantEmbedding, QuantLinear


@dataclass(frozen=True)
class Probe:
    """What every model is asked: a text to predict, and a prompt to continue."""

    tokenizer: PreTrainedTokenizerBase
    held_out: Integer[Tensor, " n"]
    prompt: str
    new_tokens: int
    seed: int


@dataclass(frozen=True)
class Row:
    """What was measured of one model; bits and bytes count everything that is stored.

    `mean_squared_error` is over all quantized weights, each counting once; 0 for the float model.
    """

    recipe: str
    bits_per_weight: float
    stored_bytes: int
    reduction: float
    mean_squared_error: float
    perplexity: float
    perplexity_change: float
    tokens_per_second: float
    sample: str
    kernels: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def compare(
    model: PreTrainedModel, recipes: Sequence[str], probe: Probe, progress: bool = True
) -> tuple[list[Row], dict[str, PreTrainedModel]]:
    """A row for the float model and one for each recipe, and the quantized models by recipe."""
    bar = tqdm(total=1 + len(recipes), desc="comparing", unit="model", disable=not progress)
    with bar:
        unchanged = perplexity(model, probe.held_out, progress=False)
        rows = [_row("float32", model, 0.0, unchanged, unchanged, probe)]
        bar.update()
        models = {}
        for recipe in recipes:
            quantized = deepcopy(model)
            error = mean_squared_error(quantize(quantized, recipe, progress=False))
            changed = perplexity(quantized, probe.held_out, progress=False)
            rows.append(_row(recipe, quantized, error, changed, unchanged, probe))
            models[recipe] = quantized
            bar.update()
    return rows, models


def _row(
    recipe: str, model: PreTrainedModel, error: float, now: float, before: float, probe: Probe
) -> Row:
    size = footprint(model)
    prompt = torch.tensor(probe.tokenizer(probe.prompt).input_ids)
    sample = generate_sample(model, probe.tokenizer, probe.prompt, probe.new_tokens, probe.seed)
    return Row(
        recipe=recipe,
        bits_per_weight=size.bits_per_weight,
        stored_bytes=size.stored_bytes,
        reduction=size.float_bytes / size.stored_bytes,
        mean_squared_error=error,
        perplexity=now,
        perplexity_change=now / before - 1,
        tokens_per_second=tokens_per_second(model, prompt, probe.new_tokens),
        sample=sample,
        kernels=kernels(model),
    )


def mean_squared_error(result: Result) -> float:
    """Over all quantized weights, each counting once."""
    counts = {d.name: d.parameters for d in result.coverage.quantized}
    total = sum(e.mean_squared_error * counts[name] for name, e in result.errors.items())
    return total / sum(counts.values())


def kernels(model: PreTrainedModel) -> tuple[str, ...]:
    """Which kernels serve the quantized modules, and why; none for a float model."""
    packed = (m for m in model.modules() if isinstance(m, QuantLinear | QuantEmbedding))
    return tuple(sorted({module.kernel() for module in packed}))
