"""The tokens of one long text, in bounded memory.

A tokenizer keeps some two hundred bytes for each token while it reads, so a text of any length is
read in overlapping pieces. Two pieces are joined in the middle of what they share, at a place where
both begin a token and go on alike for `ALIKE` tokens: there the tokens are those of the whole text,
for what a tokenizer does depends on what is near. If there is no such place (one word of thousands
of characters), the text is cut where the second piece begins.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Int64
from torch import Tensor
from transformers import PreTrainedTokenizerBase

PIECE = 1 << 18  # characters
OVERLAP = 1 << 12
ALIKE = 32

# Of one token: its number, and the characters of the whole text that it stands for.
Token = tuple[int, int, int]


def token_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> Int64[Tensor, " n"]:
    """What `tokenizer(text).input_ids` is, special tokens included."""
    around = None
    if tokenizer.is_fast and len(text) > PIECE:
        around = _special(tokenizer, text[:OVERLAP])
    if around is None:
        return torch.tensor(tokenizer(text, verbose=False).input_ids, dtype=torch.long)
    before, after = around
    pieces = [torch.tensor(ids, dtype=torch.long) for ids in _pieces(tokenizer, text)]
    return torch.cat([torch.tensor(before).long(), *pieces, torch.tensor(after).long()])


def _special(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[list[int], list[int]] | None:
    """What the tokenizer puts before a text and after it; None where it does more than that."""
    whole = tokenizer(text, verbose=False).input_ids
    plain = tokenizer(text, verbose=False, add_special_tokens=False).input_ids
    for start in range(len(whole) - len(plain) + 1):
        if whole[start : start + len(plain)] == plain:
            return whole[:start], whole[start + len(plain) :]
    return None


def _pieces(tokenizer: PreTrainedTokenizerBase, text: str) -> Iterator[list[int]]:
    left = _read(tokenizer, text, 0)
    for start in range(PIECE - OVERLAP, len(text) - OVERLAP, PIECE - OVERLAP):
        right = _read(tokenizer, text, start)
        end, begin = _joint(left, right, start)
        yield [number for number, _, _ in left[:end]]
        left = right[begin:]
    yield [number for number, _, _ in left]


def _read(tokenizer: PreTrainedTokenizerBase, text: str, start: int) -> list[Token]:
    piece = tokenizer(
        text[start : start + PIECE],
        verbose=False,
        add_special_tokens=False,
        return_offsets_mapping=True,
    )
    pairs = zip(piece.input_ids, piece.offset_mapping, strict=True)
    return [(number, start + first, start + last) for number, (first, last) in pairs]


def _joint(left: list[Token], right: list[Token], start: int) -> tuple[int, int]:
    """How many tokens of `left` are taken, and the first of `right` that is."""
    places = {first: i for i, first in _beginnings(left) if first >= start + OVERLAP // 2}
    for j, first in _beginnings(right):
        i = places.get(first)
        if i is not None and j and left[i : i + ALIKE] == right[j : j + ALIKE]:
            if i + ALIKE <= len(left):
                return i, j
    # Nothing that both see alike: the text is cut here.
    return sum(1 for _, first, _ in left if first < start), 0


def _beginnings(tokens: list[Token]) -> Iterator[tuple[int, int]]:
    """(index, first character) of each token that begins where none before it reaches."""
    reached = -1
    for i, (_, first, last) in enumerate(tokens):
        if first >= reached and last > first:
            yield i, first
        reached = max(reached, last)
