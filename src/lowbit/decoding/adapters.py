"""All uses of transformers' internals by decoding; other versions may change them.

Each entry lists the versions that have it; tests/decoding/test_adapters.py finds the entries that
are no longer valid.
"""

import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor
from transformers import Cache, DynamicCache, EncoderDecoderCache, GenerationConfig, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin, DynamicLayer
from transformers.generation import GenerationMixin, GenerationMode

# The argument of `generate`, of models and of searches that holds keys and values:
# `past_key_values` in 5.23; `cache` in 5.24, where the old name warns.
CACHE = next(
    name
    for name in ("cache", "past_key_values")
    if name in inspect.signature(GenerationMixin.prepare_inputs_for_generation).parameters
)

# Methods of a model's class with the arguments that `generate` passes to a callable
# `custom_generate`. They use `_prefill`, `prepare_inputs_for_generation`, a call and
# `_update_model_kwargs_for_generation` of the model. 5.23, 5.24.
SEARCHES = {
    GenerationMode.GREEDY_SEARCH: "_sample",
    GenerationMode.SAMPLE: "_sample",
    GenerationMode.BEAM_SEARCH: "_beam_search",
    GenerationMode.BEAM_SAMPLE: "_beam_search",
}


# The names of `generate`'s arguments in their order, without the model. 5.23, 5.24.
POSITIONAL = tuple(
    name
    for name, parameter in inspect.signature(GenerationMixin.generate).parameters.items()
    if parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
)[1:]


class WithTokenizer:
    """A stand-in for a model whose `generate` knows the tokenizer. With a callable
    `custom_generate`, transformers drops that argument; `_get_stopping_criteria` and `heal_tokens`
    need it. 5.23, 5.24."""

    def __init__(self, model: PreTrainedModel, tokenizer: Any) -> None:
        self.model, self.tokenizer = model, tokenizer

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def _get_stopping_criteria(self, *args: Any, **kwargs: Any) -> Any:
        return self.model._get_stopping_criteria(*args, **kwargs | {"tokenizer": self.tokenizer})

    def heal_tokens(self, ids: Tensor, tokenizer: None) -> Tensor:
        return self.model.heal_tokens(ids, self.tokenizer)


def searches_otherwise(model: PreTrainedModel, mode: GenerationMode) -> bool:
    """Whether the model's class overrides transformers' search."""
    name = SEARCHES[mode]
    return getattr(type(model), name) is not getattr(GenerationMixin, name)


def attention(model: PreTrainedModel) -> str:
    """The name of the model's attention: `_attn_implementation` of its config in 5.23, 5.24."""
    name: str = model.config._attn_implementation
    return name


def padding_token(config: GenerationConfig) -> int:
    """The token after the end of a row: `_pad_token_tensor`, set by `generate`, in 5.23,
    5.24."""
    token: Tensor | None = config._pad_token_tensor
    return 0 if token is None else int(token)


def prefilled(
    model: PreTrainedModel,
    ids: Tensor,
    config: GenerationConfig,
    model_kwargs: dict[str, Any],
    **kwargs: Any,
) -> Any:
    """The model's output for the prompt: `_prefill` in 5.23, 5.24."""
    return model._prefill(ids, config, model_kwargs, **kwargs)


def next_inputs(
    model: PreTrainedModel, ids: Tensor, output: Any, model_kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """The arguments of the model's forward for the last of `ids`, after `output` for the earlier
    ones: `_update_model_kwargs_for_generation` and `prepare_inputs_for_generation` with
    `next_sequence_length` in 5.23, 5.24."""
    updated = model._update_model_kwargs_for_generation(
        output, dict(model_kwargs), is_encoder_decoder=model.config.is_encoder_decoder
    )
    inputs: dict[str, Any] = model.prepare_inputs_for_generation(
        ids, next_sequence_length=1, **updated
    )
    return inputs


def fill(
    cache: EncoderDecoderCache,
    own: Sequence[CacheLayerMixin],
    source: Iterable[tuple[Tensor, Tensor]],
) -> None:
    """Give an empty cache layers for the decoder's tokens, and the keys and values of the source by
    layer. `is_updated` tells a layer that they are there. 5.23, 5.24."""
    cache.self_attention_cache.layers = list(own)
    for index, (keys, values) in enumerate(source):
        layer = DynamicLayer()
        layer.lazy_initialization(keys, values)
        layer.keys, layer.values = keys, values
        cache.cross_attention_cache.layers.append(layer)
        cache.is_updated[index] = True


def unusual(cache: Cache) -> set[str]:
    """The names of cache classes that do not hold all keys and values of their layer.

    A DynamicCache without layers creates a `layer_class_to_replicate` for each; an
    EncoderDecoderCache has one for a decoder's own tokens and one for an encoder's. 5.23, 5.24.
    """
    if type(cache) is EncoderDecoderCache:
        return unusual(cache.self_attention_cache) | unusual(cache.cross_attention_cache)
    if type(cache) is not DynamicCache:
        return {type(cache).__name__}
    kinds = {type(layer) for layer in cache.layers} or {cache.layer_class_to_replicate}
    return {kind.__name__ for kind in kinds - {DynamicLayer}}
