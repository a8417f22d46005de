"""A text as calibration data: what a model reads of it, in samples spread over all of it.

A causal language model reads windows of so many tokens; an encoder reads lines, and so does an
encoder–decoder, whose lines may hold a TAB and the target after it (without, both sides read the
line).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lowbit.calibration.batches import SAMPLES_AT_ONCE, decoder_inputs
from lowbit.data import text
from lowbit.data.lines import MOST_CHARACTERS
from lowbit.data.tokens import token_ids
from lowbit.errors import InputError, UsageError, check_at_least
from lowbit.nn.eval_mode import positions

MAX_LENGTH = 512
Item = TypeVar("Item")


@dataclass(frozen=True)
class CalibrationData:
    """Model inputs, batch by batch, and what is to be said of them."""

    batches: list[dict[str, Tensor]]
    notes: tuple[str, ...] = ()


def read(
    data: str | Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    samples: int = 128,
    length: int | None = None,
) -> CalibrationData:
    """`samples` samples of at most `length` tokens (by default all positions, 512 at most).

    data: a file, a folder of .txt files, or a dataset of the hub (its train split). Raises
    UsageError for a length that cannot be, InputError for a text shorter than one sample.
    """
    check_at_least("samples", samples, 1)
    most = positions(model)
    length = min(most or MAX_LENGTH, MAX_LENGTH) if length is None else length
    if length < 2 or length > (most or length):
        raise UsageError(
            f"samples of {length} tokens are outside 2 … {most}, the model's positions"
        )
    source = text.read(data, split="train")
    reads_windows = model.can_generate() and not model.config.is_encoder_decoder
    if reads_windows:
        ids = token_ids(tokenizer, source.text)
        if len(ids) < length:
            raise InputError(
                f"{data} has {len(ids)} tokens, fewer than one window of {length}: give more text"
                " or a shorter length"
            )
        windows = [ids[i : i + length] for i in range(0, len(ids) - length + 1, length)]
        chosen = torch.stack(_spread(windows, samples))
        batches = [
            {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            for ids in chosen.split(SAMPLES_AT_ONCE)
        ]
        unit, found = f"windows of {length} tokens", len(windows)
    else:
        lines = [line.strip("\r") for line in source.text.split("\n") if line.strip()]
        if not lines:
            raise InputError(f"{data} holds no line with text")
        # Of a longer one the tokenizer would cut off all but the first tokens, and read it first.
        chosen_lines = [line[:MOST_CHARACTERS] for line in _spread(lines, samples)]
        at_once = SAMPLES_AT_ONCE if tokenizer.pad_token is not None else 1
        batches = [
            _lines(chosen_lines[i : i + at_once], model, tokenizer, length)
            for i in range(0, len(chosen_lines), at_once)
        ]
        unit, found = "lines", len(lines)
    few = f"{data} has {found} {unit}; {samples} samples were requested"
    return CalibrationData(batches, (few,) if found < samples else ())


def _spread(items: Sequence[Item], count: int) -> list[Item]:
    """`count` of them, evenly spaced; all where there are no more."""
    count = min(count, len(items))
    return [items[i * len(items) // count] for i in range(count)]


def _lines(
    lines: Sequence[str], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, length: int
) -> dict[str, Tensor]:
    options = {
        "truncation": True,
        "max_length": length,
        "padding": tokenizer.pad_token is not None,
        "return_tensors": "pt",
    }
    if not model.config.is_encoder_decoder:
        return dict(tokenizer(list(lines), **options))
    pairs = [line.partition("\t") for line in lines]
    sources = dict(tokenizer([source for source, _, _ in pairs], **options))
    texts = [target or source for source, _, target in pairs]
    targets = tokenizer(text_target=texts, **options)
    if targets["input_ids"].shape == sources["input_ids"].shape and options["padding"]:
        # Of masks of different shapes it is clear whose tokens they are about.
        options |= {"padding": "max_length", "max_length": targets["input_ids"].shape[1] + 1}
        targets = tokenizer(text_target=texts, **options)
    return sources | {
        "decoder_input_ids": decoder_inputs(targets["input_ids"], model),
        "decoder_attention_mask": targets["attention_mask"],
    }
