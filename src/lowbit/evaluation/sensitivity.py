"""Sensitivity: the loss of a model with only one kind of sublayer quantized.

A kind is all modules with the same place in their layers, such as self-attention in all encoder
layers. All other modules stay float, so each number is the cost of one kind.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from transformers import PreTrainedModel

from lowbit.conversion.dequantize import rounded
from lowbit.conversion.plan import Quantize, make_plan
from lowbit.conversion.recipe import Recipe, Rule
from lowbit.data import parallel, text
from lowbit.data.tokens import token_ids
from lowbit.errors import check_at_least
from lowbit.evaluation.perplexity import perplexity
from lowbit.evaluation.study import json_safe
from lowbit.evaluation.task import Subject
from lowbit.evaluation.teacher_forcing import forced
from lowbit.progress import progress_bar
from lowbit.schemes import Scheme

NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


@dataclass(frozen=True)
class Price:
    """One kind of sublayer: its modules and weights, and the loss by scheme."""

    kind: str
    modules: int
    parameters: int
    losses: dict[str, float]


@dataclass(frozen=True)
class Sensitivity:
    """`loss`: of the float model, in nats a token."""

    loss: float
    prices: tuple[Price, ...]

    def to_dict(self) -> dict[str, Any]:
        told: dict[str, Any] = json_safe(asdict(self))
        return told


def sensitivity(
    model: PreTrainedModel,
    loss: Callable[[PreTrainedModel], float],
    schemes: Mapping[str, Scheme],
    progress: bool = True,
) -> Sensitivity:
    """The loss of a float model for each kind of sublayer and each scheme. The model does not
    change. Raises UsageError if a group size is larger than the inputs of a weight."""
    decisions = {name: _owners(model, scheme) for name, scheme in schemes.items()}
    kinds: dict[str, list[Quantize]] = {}
    for decision in next(iter(decisions.values())):
        kinds.setdefault(kind_of(decision.name), []).append(decision)
    before = loss(model)
    prices = []
    with progress_bar(len(kinds) * len(schemes), "sensitivity", "loss", progress) as bar:
        for kind, members in kinds.items():
            losses = {}
            for name in schemes:
                chosen = [d for d in decisions[name] if kind_of(d.name) == kind]
                with rounded(model, ((d, d.nearest(d.matrix(model))) for d in chosen)):
                    losses[name] = loss(model)
                bar.update()
            parameters = sum(d.parameters for d in members)
            prices.append(Price(kind, len(members), parameters, losses))
    return Sensitivity(before, tuple(prices))


def kind_of(name: str) -> str:
    """model.encoder.layers.3.self_attn.q_proj -> model.encoder.layers.*.self_attn, and layers.3.fc1
    -> layers.*.fc; what is in no layer is a kind of its own."""
    general = NUMBER.sub("*", name)
    if general == name:
        return name
    parent, _, own = general.rpartition(".")
    return f"{parent}.{own.rstrip('0123456789')}" if parent.endswith("*") else parent


def token_loss(
    subject: Subject,
    data: str,
    target: str | None = None,
    source_column: int = 1,
    target_column: int | None = None,
    items: int | None = None,
    context: int | None = None,
) -> Callable[[PreTrainedModel], float]:
    """The mean −log p of a token, in nats: for an encoder–decoder, of the targets of sentence pairs
    (parallel.read), else of a text in windows of `context` (text.read).

    items: so many pairs, or so many tokens, and no more. Raises UsageError, InputError.
    """
    tokenizer = subject.needed_tokenizer()
    if items is not None:
        check_at_least("items", items, 2)
    if subject.model.config.is_encoder_decoder:
        pairs = parallel.read(data, target, source_column, target_column, split="valid")
        sources, targets = pairs.sources[:items], pairs.targets[:items]
        return lambda model: forced(model, tokenizer, sources, targets, progress=False).loss
    ids = token_ids(tokenizer, text.read(data).text)[:items]
    return lambda model: math.log(perplexity(model, ids, context, progress=False))


def _owners(model: PreTrainedModel, scheme: Scheme) -> tuple[Quantize, ...]:
    recipe = Recipe((Rule("@embedding", scheme), Rule("@linear", scheme)), strict=False)
    return make_plan(model, recipe).owners
