"""The first token of each word: it has the word's label, as Devlin et al. 2019, section 5.3, do."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from transformers import PreTrainedTokenizerBase

from lowbit.errors import UsageError

OUTSIDE = "O"  # the label of words without a token, and of words outside of entities


@dataclass(frozen=True)
class WordTokens:
    """inputs: the model's, by name, a list of ids for each sentence. first: of each sentence, for
    each word the place of its first token; None for a word that was cut off or has no token."""

    inputs: dict[str, list[list[int]]]
    first: list[list[int | None]]

    @property
    def lengths(self) -> list[int]:
        return [len(ids) for ids in self.inputs["input_ids"]]

    @property
    def cut(self) -> int:
        """Words without a token."""
        return sum(place is None for row in self.first for place in row)


def word_tokens(
    tokenizer: PreTrainedTokenizerBase, sentences: Sequence[Sequence[str]], most: int | None
) -> WordTokens:
    """Sentences of words, joined by blanks; what is longer than `most` tokens is cut.

    Raises UsageError for a tokenizer that does not know its tokens' characters.
    """
    if not tokenizer.is_fast:
        raise UsageError(
            "labels of words need a fast tokenizer, which knows its tokens' characters, not"
            f" {type(tokenizer).__name__}"
        )
    encoded = tokenizer(
        [" ".join(words) for words in sentences],
        truncation=most is not None,
        max_length=most,
        return_offsets_mapping=True,
        verbose=False,
    )
    spans = encoded.pop("offset_mapping")
    first = [_first(words, row) for words, row in zip(sentences, spans, strict=True)]
    return WordTokens(dict(encoded), first)


def word_labels(
    classes: Sequence[int], first: Sequence[int | None], names: Mapping[int, str]
) -> list[str]:
    """The labels of a sentence's words. classes: of its tokens. first: as in WordTokens. names: of
    the classes."""
    return [OUTSIDE if place is None else names[classes[place]] for place in first]


def _first(words: Sequence[str], spans: Sequence[tuple[int, int]]) -> list[int | None]:
    """spans: the characters of each token, none of a special one."""
    starts = [0, *accumulate(len(word) + 1 for word in words[:-1])]
    places: list[int | None] = [None] * len(words)
    for token, (start, end) in enumerate(spans):
        # By its last character: a token may begin with the blank before its word.
        word = bisect_right(starts, end - 1) - 1
        if start < end and places[word] is None:
            places[word] = token
    return places
