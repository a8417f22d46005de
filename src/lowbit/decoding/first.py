"""The first token of an encoder–decoder as a step.

A decoder that starts from one token computes a step, and before it the keys and values of the
source, which it puts into the cache. lowbit records how they follow from the encoder's output, for
any length of the source. Then the recorded step serves for the first token too.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Integer
from torch import Tensor
from transformers import PreTrainedModel

from lowbit.decoding.cache import DecoderCache, GrowingLayer, Position, layers
from lowbit.decoding.program import Program, program
from lowbit.decoding.recording import Recorded, Recording, leading, recorded
from lowbit.decoding.state import State
from lowbit.errors import UsageError


@dataclass(frozen=True)
class First:
    """source: from the encoder's output to keys and values, layer by layer. own: empty layers of
    the cache for the decoder's tokens."""

    source: Program
    own: tuple[GrowingLayer, ...]

    def state(self, before: State) -> State:
        """The state in which the step reads the first token. The cache of `before` must be empty,
        and is filled with the keys and values of the source."""
        assert before.encoded is not None and isinstance(before.cache, DecoderCache)
        found = self.source([], before.encoded.shape[1], encoded=before.encoded)
        pairs = zip(found[::2], found[1::2], strict=True)
        before.cache.fill([layer.emptied() for layer in self.own], pairs)
        own, cross = layers(before.cache)
        return replace(before, layers=own, cross=cross)


def first(
    model: PreTrainedModel,
    step: Program,
    ids: Integer[Tensor, "batch 1"],
    before: State,
    after: State,
    logits: Float[Tensor, "batch 1 vocabulary"],
) -> First | None:
    """How `step` can read the first token `ids`; None if it cannot.

    before, after, logits: the state in which the model has read it, with any cache; the state
    behind it, and the logits. The step has to find the same bits.
    """
    try:
        source = _source(model, ids, before)
    except UsageError:
        return None
    found = First(source, tuple(layer.emptied() for layer in after.layers))
    state = found.state(replace(before, cache=DecoderCache()))
    pairs = [(step(state.layers, 0, **state.inputs(ids)), logits)]
    for mine, theirs in zip(state.cross, after.cross, strict=True):
        pairs += (mine.keys, theirs.keys), (mine.values, theirs.values)
    return found if all(torch.equal(mine, theirs) for mine, theirs in pairs) else None


def _source(model: PreTrainedModel, ids: Tensor, state: State) -> Program:
    """From two passes over sources of different lengths."""
    assert state.encoded is not None
    mask = state.encoder_mask
    longer = replace(
        state,
        encoded=torch.cat([state.encoded, state.encoded[:, :1]], 1),
        encoder_mask=None if mask is None else torch.cat([mask, mask[..., :1]], 3),
    )
    short, long = (_keys_and_values(model, ids, one) for one in (state, longer))
    if len(short.calls) != len(long.calls):
        raise UsageError("what the model calls changes with the length of the source")
    return program(_marked(short, long), _marked(long, short), ())


def _keys_and_values(model: PreTrainedModel, ids: Tensor, state: State) -> Recorded:
    """The calls from the encoder's output to keys and values."""
    encoded, cache = state.encoded, DecoderCache()
    assert encoded is not None
    with Recording() as recording:
        model(**replace(state, cache=cache).arguments(ids))
    _, cross = layers(cache)
    output = tuple(tensor for layer in cross for tensor in (layer.keys, layer.values))
    return recorded(leading(recording.calls, output), {"encoded": encoded}, output)


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
