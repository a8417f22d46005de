"""A KV cache whose capacity grows ahead of need.

transformers' own cache copies everything at every token. Here a step appends the keys and values of
one token, and attention reads a view of the used part.
"""

from collections.abc import Callable
from typing import Any

from jaxtyping import Float, Integer
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function
from transformers import Cache, DynamicCache, EncoderDecoderCache
from transformers.cache_utils import DynamicLayer

ROOM = 64  # the least capacity, in tokens


class Position(int):
    """The used length of a cache, or the length of a source. A recorded step reads it again at each
    call."""


class GrowingLayer(DynamicLayer):
    """One layer's keys and values [batch, heads, tokens, size]."""

    def __init__(self) -> None:
        super().__init__()
        self.length = 0

    def update(
        self, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        return append(self, keys, values)

    def get_seq_length(self) -> int:
        return Position(self.length)

    def reorder_cache(self, beam_idx: Integer[Tensor, " batch"]) -> None:
        """Row i becomes what row beam_idx[i] was."""
        for filled in self.filled():
            filled.copy_(filled.index_select(0, beam_idx))

    def extended(
        self, keys: Float[Tensor, "batch heads n size"], values: Float[Tensor, "batch heads n size"]
    ) -> tuple[Tensor, Tensor]:
        """All keys and values, those of the new tokens last."""
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
            self._keys, self._values = keys[:, :, :0], values[:, :, :0]
        new = keys.shape[2]
        start = self._make_room(new)
        self._keys.narrow(2, start, new).copy_(keys)
        self._values.narrow(2, start, new).copy_(values)
        return self.filled()

    def filled(self) -> tuple[Tensor, Tensor]:
        """The used part of the keys and values."""
        return self._keys.narrow(2, 0, self.length), self._values.narrow(2, 0, self.length)

    def attended(
        self,
        appending: Callable[[int, int, int, Tensor, Tensor, int, Tensor | None], None],
        new: int,
        query: int,
        keys: int,
        values: int,
        mask: Tensor | None,
    ) -> None:
        """Append `new` tokens and attend to all, in one call of native code with the addresses of
        query, keys and values. The layer must have had tokens, or be an `emptied` one."""
        start = self._make_room(new)
        appending(query, keys, values, self._keys, self._values, start, mask)

    def emptied(self) -> "GrowingLayer":
        """A layer without tokens for keys and values of the same shapes."""
        layer = GrowingLayer()
        layer.lazy_initialization(self._keys, self._values)
        layer._keys, layer._values = _without_tokens(self._keys), _without_tokens(self._values)
        return layer

    def _make_room(self, new: int) -> int:
        """Add `new` tokens to the used length, and grow if needed. Returns where they begin."""
        start, self.length = self.length, self.length + new
        if self.length > self._keys.shape[2]:
            room = max(2 * self.length, ROOM)
            self._keys = _wider(self._keys, start, room)
            self._values = _wider(self._values, start, room)
        return start


def _without_tokens(held: Tensor) -> Tensor:
    batch, heads, _, size = held.shape
    return held.new_empty(batch, heads, 0, size)


def _wider(held: Tensor, filled: int, room: int) -> Tensor:
    batch, heads, _, size = held.shape
    wider = held.new_empty(batch, heads, room, size)
    wider.narrow(2, 0, filled).copy_(held.narrow(2, 0, filled))
    return wider


def append(layer: GrowingLayer, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """`layer.extended`, as one call for the recording."""
    if has_torch_function((keys, values)):
        return handle_torch_function(append, (keys, values), layer, keys, values)
    return layer.extended(keys, values)


class GrowingCache(Cache):
    """A cache with a GrowingLayer for each layer of a decoder."""

    def __init__(self) -> None:
        super().__init__(layer_class_to_replicate=GrowingLayer)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Also before it has layers, as a number that differs between steps."""
        return Position(super().get_seq_length(layer_idx))


class DecoderCache(EncoderDecoderCache):
    """A GrowingCache, and the fixed keys and values of an encoder's output.

    Beams of one sentence read the same source, so only their own tokens are reordered.
    """

    def __init__(self) -> None:
        super().__init__(GrowingCache(), DynamicCache())

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.self_attention_cache.reorder_cache(beam_idx)


def empty(encoder_decoder: bool) -> GrowingCache | DecoderCache:
    return DecoderCache() if encoder_decoder else GrowingCache()


def usual(cache: GrowingCache | DecoderCache) -> Cache:
    """transformers' own cache with the same content."""
    if isinstance(cache, DecoderCache):
        return EncoderDecoderCache(usual(cache.self_attention_cache), cache.cross_attention_cache)
    return DynamicCache([layer.filled() for layer in cache.layers])


def layers(cache: Cache) -> tuple[list[GrowingLayer], list[DynamicLayer]]:
    """The growing layers of a cache, and the fixed ones."""
    if isinstance(cache, EncoderDecoderCache):
        return cache.self_attention_cache.layers, cache.cross_attention_cache.layers
    return cache.layers, []
