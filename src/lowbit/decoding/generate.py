"""transformers' `generate` with a faster forward pass per token.

transformers' own code runs the encoder and the prompt, makes the masks, processes logits, searches
and stops. lowbit replaces only the model's forward pass for one token (step.py), so the ids equal
those of `model.generate`. The prompt of a translator may be one token too (first.py).
"""

from collections.abc import Mapping
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from transformers import Cache, GenerationConfig, PreTrainedModel
from transformers.generation import GenerationMode
from transformers.modeling_outputs import BaseModelOutput, ModelOutput, Seq2SeqLMOutput

from lowbit.decoding import adapters
from lowbit.decoding.adapters import CACHE, POSITIONAL, SEARCHES, WithTokenizer
from lowbit.decoding.cache import DecoderCache, GrowingCache, empty, layers, usual
from lowbit.decoding.greedy import greedy, serves
from lowbit.decoding.modules import modules, name_of
from lowbit.decoding.state import State
from lowbit.decoding.step import Step
from lowbit.decoding.step_cache import borrowed
from lowbit.errors import UsageError
from lowbit.kernels.attention.hf_attention import KERNELS
from lowbit.nn.eval_mode import unmasked
from lowbit.nn.hooks import has_hooks

UNSERVED = (
    "assistant_model",
    "cache",
    "cache_implementation",
    "custom_generate",
    "past_key_values",
    "streamer",
    "synced_gpus",
)
# Arguments that tell a model how to compute, and nothing about the tokens.
SWITCHES = {"use_cache", "return_dict", "logits_to_keep"}
# Arguments that a step takes or does not need.
SERVED = {"attention_mask", "decoder_attention_mask", "position_ids", "encoder_outputs"}
SERVED |= {CACHE} | SWITCHES
# Fields of an encoder's output: one that the decoder reads, and two for the user.
ENCODED = {"last_hidden_state", "hidden_states", "attentions"}
# The masks of these are boolean.
ATTENTION = ("sdpa", *KERNELS)
# Models whose transformers cache was checked to hold all keys and values. The cache is not created
# again for them, because that copies the config several times.
_PLAIN: WeakSet[nn.Module] = WeakSet()


def generate(model: PreTrainedModel, *args: Any, **settings: Any) -> Any:
    """Generate tokens as `model.generate` does, with less Python time per token.

    It supports greedy search, sampling and beam search with a KV cache, for decoders and
    encoder–decoders on the CPU. Pad the prompts of a decoder on the left and the sources of an
    encoder on the right. The first call with a model and a number of rows records two steps, which
    takes as long as about six steps. With an encoder–decoder, the second call and a call with a
    source twice as long record two more passes. If the steps of a model cannot be recorded, the
    model computes them itself, with a SlowPathWarning.

    Args:
        model: A transformers model in evaluation mode.
        *args: The positional arguments of `model.generate`.
        **settings: The keyword arguments of `model.generate`.

    Returns:
        Token ids int64 [rows, length], or the output object of `model.generate` if the settings
        request one.

    Raises:
        UsageError: if only `model.generate` supports the model or a setting. Raised before the
            first new token.
    """
    _check(model, settings | dict(zip(POSITIONAL, args, strict=False)))
    kept = {CACHE: empty(model.config.is_encoder_decoder)} if model in _PLAIN else {}
    tokenizer = settings.pop("tokenizer", None)
    if tokenizer is None:
        return model.generate(*args, custom_generate=_search, **kept, **settings)

    def search(_: Any, *given: Any, **named: Any) -> Any:
        return _search(model, *given, **named)

    told = WithTokenizer(model, tokenizer)
    return type(model).generate(told, *args, custom_generate=search, **kept, **settings)


def _check(model: PreTrainedModel, settings: dict[str, Any]) -> None:
    if not model.can_generate():
        raise UsageError(f"{type(model).__name__} does not generate text")
    for name in UNSERVED:
        if settings.get(name) is not None:
            raise _unserved(f"{name} is given")
    for config in (model.generation_config, settings.get("generation_config")):
        if config is not None and config.cache_implementation is not None:
            raise _unserved(f"cache_implementation is {config.cache_implementation}")
    if model.device.type != "cpu":
        raise _unserved(f"the model is on {model.device}, not on the CPU")
    if adapters.attention(model) not in ATTENTION:
        raise _unserved(
            f"the model's attention is {adapters.attention(model)}, not one of"
            f" {', '.join(ATTENTION)}"
        )
    for module in modules(model):
        if module.training:
            name = name_of(module, model)
            raise _unserved(f"{name} is in training mode (model.eval() ends it)")
        if has_hooks(module):
            name = name_of(module, model)
            raise _unserved(f"{name} has forward hooks, which would not be called")


def _unserved(why: str) -> UsageError:
    return UsageError(f"lowbit.generate does not serve this: {why}; model.generate does")


def _search(
    model: PreTrainedModel,
    input_ids: Tensor,
    logits_processor: Any,
    stopping_criteria: Any,
    generation_config: GenerationConfig,
    **model_kwargs: Any,
) -> Any:
    """Run a search. transformers' `generate` calls it after its preparation."""
    mode = generation_config.get_generation_mode()
    if mode not in SEARCHES:
        raise _unserved(f"the search is {mode.value}")
    if adapters.searches_otherwise(model, mode):
        raise _unserved(f"{type(model).__name__} has its own {mode.value}")
    for name in ("output_attentions", "output_hidden_states", "prefill_chunk_size"):
        if getattr(generation_config, name):
            raise _unserved(f"{name} is requested")
    if not generation_config.use_cache:
        raise _unserved("use_cache is False")
    if unknown := {name for name, value in model_kwargs.items() if _given(value)} - SERVED:
        raise _unserved(f"the model is given {', '.join(sorted(unknown))}")
    encoded = model_kwargs.get("encoder_outputs")
    if isinstance(encoded, ModelOutput) and not {"last_hidden_state"} <= encoded.keys() <= ENCODED:
        raise _unserved(f"the model's encoder gives {', '.join(encoded)}")
    if not isinstance(own := model_kwargs.get(CACHE), (GrowingCache, DecoderCache)):
        _check_cache(own)
        _PLAIN.add(model)
        model_kwargs[CACHE] = empty(model.config.is_encoder_decoder)
    with ExitStack() as stack:
        stepping = _Stepping(model, stack)
        plain = (
            mode is GenerationMode.GREEDY_SEARCH and not generation_config.return_dict_in_generate
        )
        if plain and serves(stopping_criteria):
            output = stepping._prefill(input_ids, generation_config, model_kwargs)
            return greedy(
                input_ids,
                output.logits,
                stepping.logits,
                logits_processor,
                stopping_criteria,
                pad=adapters.padding_token(generation_config),
            )
        search = getattr(type(model), SEARCHES[mode])
        found = search(
            stepping,
            input_ids,
            logits_processor=logits_processor,
            stopping_criteria=stopping_criteria,
            generation_config=generation_config,
            **model_kwargs,
        )
        if generation_config.return_dict_in_generate:
            found[CACHE] = usual(found[CACHE])
        return found


def _check_cache(own: Cache | None) -> None:
    """Some models forget tokens that are far away, or keep something else than keys and values."""
    if own is None:
        raise _unserved("transformers makes no cache for the model, which may keep its own")
    if other := adapters.unusual(own):
        raise _unserved(f"the model's cache has layers of {', '.join(sorted(other))}")


def _check_filled(state: State) -> None:
    lengths = {layer.length for layer in state.layers}
    if len(lengths) != 1 or 0 in lengths:
        raise _unserved("the model does not put the keys and values of all layers into its cache")


def _check_inputs(own: Mapping[str, Any], state: State, ids: Tensor) -> None:
    """Raises UsageError if the model computes inputs of the next token that a step does not."""
    ours = state.arguments(ids)
    for name in (own.keys() | ours.keys()) - SWITCHES:
        theirs, mine = own.get(name), ours.get(name)
        if name.endswith("attention_mask") and isinstance(theirs, Tensor) and theirs.dim() == 2:
            theirs = _mask(theirs)
        if (_given(theirs) or _given(mine)) and not _equal(theirs, mine):
            raise _unserved(f"the model makes its own {name} for every token")


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, ModelOutput) and isinstance(b, ModelOutput):
        return a[0] is b[0]
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return torch.equal(a, b)
    return a is b


def _given(value: Any) -> bool:
    """Whether an argument has a value. transformers 5.24 passes an empty dict without images."""
    return not (value is None or (isinstance(value, dict) and not value))


class _Stepping:
    """A stand-in for the model in transformers' searches: its forward pass is a step."""

    def __init__(self, model: PreTrainedModel, stack: ExitStack) -> None:
        self.model, self.stack = model, stack

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def _prefill(
        self,
        input_ids: Tensor,
        config: GenerationConfig,
        model_kwargs: dict[str, Any],
        **kwargs: Any,
    ) -> Any:
        """Run the model itself on the prompt, or a step if that can read it."""
        ids = input_ids[:, -1:]
        before = _state(model_kwargs)
        encoded = before.encoded
        from_source = encoded is not None and input_ids.shape[1] == 1 and len(encoded) == len(ids)
        if from_source:
            self.step = self._borrowed(ids, before)
            if self.step.first is not None and self.step.first.serves(before):
                self.state = self.step.first.state(before, ids)
                return Seq2SeqLMOutput(logits=self.step(self.model, ids, self.state))
        # From here on the model itself runs.
        self.stack.enter_context(unmasked(self.model))
        output = adapters.prefilled(self.model, input_ids, config, model_kwargs, **kwargs)
        self.state = _state(model_kwargs)
        _check_filled(self.state)
        # The first pass packs weights, which changes the key of the step.
        if not from_source or self.step.is_new:
            self.step = self._borrowed(ids, self.state)
        if from_source:
            self.step.try_first(self.model, ids, before, self.state, output.logits)
        if self.step.is_new:
            longer = torch.cat([input_ids, ids], 1)
            wanted = adapters.next_inputs(self.model, longer, output, model_kwargs)
            _check_inputs(wanted, self.state.after(ids), ids)
        return output

    def _borrowed(self, ids: Tensor, state: State) -> Step:
        return self.stack.enter_context(borrowed(self.model, ids, state))

    def prepare_inputs_for_generation(self, input_ids: Tensor, **kwargs: Any) -> dict[str, Tensor]:
        return {"ids": input_ids[:, -1:]}

    def _update_model_kwargs_for_generation(
        self, outputs: Any, model_kwargs: dict[str, Any], **kwargs: Any
    ) -> dict[str, Any]:
        return model_kwargs

    def __call__(self, ids: Tensor, return_dict: bool) -> SimpleNamespace:
        return SimpleNamespace(logits=self.logits(ids))

    def logits(self, ids: Tensor) -> Tensor:
        """The logits [batch, 1, vocabulary] of the token after `ids` [batch, 1]."""
        self.state = self.state.after(ids)
        return self.step(self.model, ids, self.state)


def _state(model_kwargs: dict[str, Any]) -> State:
    """The state before or after the prompt."""
    cache = model_kwargs[CACHE]
    positions = model_kwargs.get("position_ids")
    encoded = model_kwargs.get("encoder_outputs")
    own = "attention_mask" if encoded is None else "decoder_attention_mask"
    return State(
        cache,
        *layers(cache),
        positions=None if positions is None else positions[..., -1:],
        mask=_mask(model_kwargs.get(own)),
        encoded=None if encoded is None else encoded[0],
        encoded_as=type(encoded) if isinstance(encoded, ModelOutput) else BaseModelOutput,
        encoder_mask=None if encoded is None else _mask(model_kwargs.get("attention_mask")),
    )


def _mask(padding: Tensor | None) -> Tensor | None:
    """The mask of one query from a padding mask [batch, tokens] with 1 for tokens; None if every
    token is visible."""
    return None if padding is None or padding.all() else padding[:, None, None].bool()
