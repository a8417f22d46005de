"""Translate texts with an encoder–decoder, in batches of similar lengths, with a KV cache."""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from lowbit.data.batches import by_length, check_batch_size, longest
from lowbit.decoding import generate
from lowbit.errors import UsageError, check_at_least
from lowbit.fallbacks import note
from lowbit.kernels.attention.hf_attention import instead_of_sdpa
from lowbit.nn.eval_mode import evaluating, positions
from lowbit.progress import progress_bar

# The default limit of tokens per output. A damaged model seldom ends a sentence, and would
# generate until it has no positions left.
MOST_NEW_TOKENS = 256


@dataclass(frozen=True)
class Cut:
    """A source that was too long: its index, its tokens, and the tokens that were read."""

    index: int
    tokens: int
    read: int


@dataclass(frozen=True)
class Translations:
    """Outputs in the order of the sources, and the sources that were truncated."""

    outputs: tuple[str, ...]
    cut: tuple[Cut, ...]


@dataclass(frozen=True)
class Translator:
    """A model with its tokenizer. Only calls of the tokenizer and `batch_decode` are used.

    beams: 1 is greedy. max_new_tokens: per output; by default 256 or the model's positions, if
    fewer. prefix: text before each source, such as the task prefix of T5.

    Raises UsageError if the model is not an encoder–decoder, or a number is out of range.
    """

    model: PreTrainedModel
    tokenizer: Any
    beams: int = 1
    max_new_tokens: int | None = None
    batch_size: int = 32
    prefix: str = ""

    def __post_init__(self) -> None:
        model = self.model
        if not model.config.is_encoder_decoder or not model.can_generate():
            raise UsageError(
                f"translation needs an encoder–decoder that generates, not {type(model).__name__}"
            )
        check_batch_size(self.batch_size)
        check_at_least("beams", self.beams, 1)
        _ = self.new_tokens

    @property
    def new_tokens(self) -> int:
        """The limit of new tokens. Raises UsageError if the decoder has fewer positions."""
        most = positions(self.model)
        # The token that starts decoding takes one.
        room = None if most is None else most - 1
        if self.max_new_tokens is None:
            return MOST_NEW_TOKENS if room is None else min(MOST_NEW_TOKENS, room)
        check_at_least("max_new_tokens", self.max_new_tokens, 1)
        if room is not None and self.max_new_tokens > room:
            raise UsageError(
                f"{self.max_new_tokens} new tokens do not fit the decoder: it has {most} positions,"
                " and the start token takes one"
            )
        return self.max_new_tokens

    def __call__(self, sources: Sequence[str], progress: bool = True) -> Translations:
        """The model's output for each source. An empty source gives an empty output.

        progress: show a progress bar if it takes more than two seconds.
        """
        most = longest(self.model, self.tokenizer, None)
        config = self._generation()
        written = [index for index, source in enumerate(sources) if source.strip()]
        texts = [self.prefix + sources[index] for index in written]
        lengths = [
            length
            for start in range(0, len(texts), self.batch_size)
            for length in self._lengths(texts[start : start + self.batch_size])
        ]
        outputs = [""] * len(sources)
        search: Callable[..., Tensor] = generate
        with (
            evaluating(self.model),
            instead_of_sdpa(self.model, "lowbit_float32"),
            progress_bar(len(texts), "translation", "sentence", progress) as bar,
        ):
            for batch in by_length(lengths, self.batch_size):
                is_cut = most is not None and lengths[batch[0]] > most
                limits = {"truncation": True, "max_length": most} if is_cut else {}
                inputs = self._encode([texts[index] for index in batch], **limits)
                try:
                    tokens = search(self.model, **inputs, generation_config=config)
                except UsageError as error:
                    if search is not generate:
                        raise
                    # Continue with the model's own generate: the same tokens, but slower.
                    note(self.model, f"The translator decodes by model.generate: {error}.")
                    search = type(self.model).generate
                    tokens = search(self.model, **inputs, generation_config=config)
                decoded = self.tokenizer.batch_decode(tokens, skip_special_tokens=True)
                for index, text in zip(batch, decoded, strict=True):
                    outputs[written[index]] = text
                bar.update(len(batch))
        cut = (
            ()
            if most is None
            else tuple(
                Cut(index, length, most)
                for index, length in zip(written, lengths, strict=True)
                if length > most
            )
        )
        return Translations(tuple(outputs), cut)

    def _generation(self) -> GenerationConfig:
        """The model's own generation config, including the length penalty, without sampling."""
        config = deepcopy(self.model.generation_config)
        config.update(
            do_sample=False,
            num_beams=self.beams,
            num_return_sequences=1,
            return_dict_in_generate=False,
            max_new_tokens=self.new_tokens,
            max_length=None,
            use_cache=True,
        )
        return config

    def _encode(self, texts: list[str], **limits: Any) -> dict[str, Tensor]:
        """Ids and mask only, because `generate` refuses other outputs of tokenizers. Not verbose:
        transformers would warn of texts that are too long, whose lengths are only counted."""
        encoded: Mapping[str, Tensor] = self.tokenizer(
            texts, padding=True, return_tensors="pt", verbose=False, **limits
        )
        names = ("input_ids", "attention_mask")
        return {name: encoded[name].to(self.model.device) for name in names}

    def _lengths(self, texts: list[str]) -> list[int]:
        lengths: list[int] = self._encode(texts)["attention_mask"].sum(1).tolist()
        return lengths
