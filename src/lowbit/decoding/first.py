"""The first token of an encoder–decoder as a step.

A decoder that starts from one token computes a step, and before it the keys and values of the
source, which it puts into the cache. lowbit records how they follow from the encoder's output, for
sources of one token and of twice the tokens at hand. If both recordings are equal but for the
length, the recorded step serves for the first token of all sources up to the longer one.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Integer
from torch import Tensor
from transformers import PreTrainedModel

from lowbit.decoding.adapters import fill
from lowbit.decoding.cache import DecoderCache, GrowingLayer, Position, layers
from lowbit.decoding.program import Program, program
from lowbit.decoding.recording import Recorded, Recording, recorded
from lowbit.decoding.state import State
from lowbit.errors import UsageError


@dataclass(frozen=True)
class First:
    """source: from the inputs to keys and values of the source, layer by layer. own: empty layers
    of the cache for the decoder's tokens. longest: the most tokens of a source."""

    source: Program
    own: tuple[GrowingLayer, ...]
    longest: int

    def serves(self, before: State) -> bool:
        return before.encoded is not None and before.encoded.shape[1] <= self.longest

    def state(self, before: State, ids: Integer[Tensor, "batch 1"]) -> State:
        """The state in which the step reads the first token `ids`. The cache of `before` must be
        empty, and is filled with the keys and values of the source."""
        assert before.encoded is not None and isinstance(before.cache, DecoderCache)
        found = self.source([], before.encoded.shape[1], **before.first_inputs(ids))
        pairs = zip(found[::2], found[1::2], strict=True)
        fill(before.cache, [layer.emptied() for layer in self.own], pairs)
        own, cross = layers(before.cache)
        return replace(before, layers=own, cross=cross)


def first(
    model: PreTrainedModel,
    step: Program,
    ids: Integer[Tensor, "batch 1"],
    before: State,
    after: State,
    logits: Float[Tensor, "batch 1 vocabulary"],
) -> First:
    """How `step` can read the first token `ids`, which the model has just read.

    before, after, logits: the state in which the model read it, the state afterwards, and the
    logits. Raises UsageError if a step computes other bits, or the keys and values cannot be
    recorded; and whatever the model raises for the two sources.
    """
    assert before.encoded is not None
    short = _resized(before, torch.zeros(1, dtype=torch.int64))
    long = _resized(before, torch.arange(before.encoded.shape[1]).repeat(2))
    one, other = (_keys_and_values(model, ids, state) for state in (short, long))
    if len(one.calls) != len(other.calls):
        raise UsageError("what the model calls changes with the length of the source")
    source = program(_marked(one, other), _marked(other, one), ())
    own = tuple(layer.emptied() for layer in after.layers)
    found = First(source, own, 2 * before.encoded.shape[1])
    state = found.state(replace(before, cache=DecoderCache()), ids)
    pairs = [(step(state.layers, 0, **state.inputs(ids)), logits)]
    for mine, theirs in zip(state.cross, after.cross, strict=True):
        pairs += (mine.keys, theirs.keys), (mine.values, theirs.values)
    if not all(torch.equal(mine, theirs) for mine, theirs in pairs):
        raise UsageError("the first token is not computed as the others are")
    return found


def _resized(state: State, tokens: Integer[Tensor, " tokens"]) -> State:
    """The state with these tokens of the source."""
    assert state.encoded is not None
    mask = state.encoder_mask
    return replace(
        state,
        encoded=state.encoded[:, tokens],
        encoder_mask=None if mask is None else mask[..., tokens],
    )


def _keys_and_values(model: PreTrainedModel, ids: Tensor, state: State) -> Recorded:
    """The calls from the inputs to the keys and values of the source."""
    cache = DecoderCache()
    with Recording() as recording:
        model(**replace(state, cache=cache).arguments(ids))
    _, cross = layers(cache)
    output = tuple(tensor for layer in cross for tensor in (layer.keys, layer.values))
    return recorded(recording.calls, state.first_inputs(ids), output, appends=False)


def _marked(one: Recorded, other: Recorded) -> Recorded:
    """`one`, with each number that is the length of the source in both as a Position."""
    lengths = one.inputs["encoded"].shape[1], other.inputs["encoded"].shape[1]
    calls = (
        replace(
            a,
            args=_with_positions(a.args, b.args, lengths),
            kwargs=_with_positions(a.kwargs, b.kwargs, lengths),
        )
        for a, b in zip(one.calls, other.calls, strict=True)
    )
    return replace(one, calls=tuple(calls))


def _with_positions(one: Any, other: Any, lengths: tuple[int, int]) -> Any:
    if isinstance(one, Mapping) and isinstance(other, Mapping) and one.keys() == other.keys():
        return {name: _with_positions(one[name], other[name], lengths) for name in one}
    if isinstance(one, (tuple, list)) and type(one) is type(other) and len(one) == len(other):
        items = [_with_positions(a, b, lengths) for a, b in zip(one, other, strict=True)]
        return items if isinstance(one, list) else tuple(items)
    numbers = isinstance(one, int) and isinstance(other, int)
    return Position(one) if numbers and (one, other) == lengths else one
