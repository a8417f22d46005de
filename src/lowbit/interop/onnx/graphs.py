"""Which graphs a model is written as, and with what names.

    encoders, models without text to write   model.onnx
    decoders                                 model.onnx, which reads and returns keys and values

Names are those of Optimum's exports, which its classes, transformers.js and others read:
input_ids, attention_mask, past_key_values.0.key …; logits or last_hidden_state, present.0.key ….
"""

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import SUPPORTED_NODES
from transformers import PreTrainedModel

BATCH, LENGTH, PAST, WHOLE = "batch_size", "sequence_length", "past_sequence_length", "total_length"
ROWS, TOKENS, BEFORE = 2, 3, 5  # of the example that is traced: no two of them alike
CACHES = ("past_key_values", "cache")  # what forward calls keys and values, by version
CACHED = re.compile(r"(?:(?:input|output)\.)?(?:cache|past_key_values)\.layers\.(\d+)\.(key|value)s")
TEXT = {"input_ids": LENGTH, "attention_mask": LENGTH}


@dataclass(frozen=True)
class Graph:
    """One file. inputs: an example of what forward takes. axes: for each tensor among the inputs,
    in order, the names of the axes whose size may change."""

    file: str
    model: PreTrainedModel
    inputs: dict[str, Any]
    axes: tuple[dict[int, str], ...]


def graphs(model: PreTrainedModel) -> Iterator[Graph]:
    """Those that the model is written as."""
    yield _decoder(model) if model.can_generate() else _plain(model)


def _plain(model: PreTrainedModel) -> Graph:
    """One pass over a text."""
    names = dict.fromkeys(("input_ids", "attention_mask"))
    if getattr(model.config, "type_vocab_size", 0) > 1:
        names["token_type_ids"] = None
    inputs = {name: _ones(ROWS, BEFORE) for name in names if name in _taken(model)}
    axes = tuple({0: BATCH, 1: LENGTH} for _ in inputs)
    return Graph("model.onnx", model, inputs | {"use_cache": False}, axes)


def _decoder(model: PreTrainedModel) -> Graph:
    """A pass over more of a text, whose beginning may be empty."""
    inputs: dict[str, Any] = {
        "input_ids": _ones(ROWS, TOKENS),
        "attention_mask": _ones(ROWS, BEFORE + TOKENS),
    }
    axes: list[dict[int, str]] = [{0: BATCH, 1: LENGTH}, {0: BATCH, 1: WHOLE}]
    if "position_ids" in _taken(model):
        inputs["position_ids"] = torch.arange(BEFORE, BEFORE + TOKENS).repeat(ROWS, 1)
        axes.append({0: BATCH, 1: LENGTH})
    name = next(name for name in CACHES if name in _taken(model))
    with torch.no_grad():
        begun = model(input_ids=_ones(ROWS, BEFORE), use_cache=True)[name]
    inputs[name] = begun
    axes += [{0: BATCH, 2: PAST} for layer in begun.layers for _ in (layer.keys, layer.values)]
    return Graph("model.onnx", model, inputs | {"use_cache": True}, tuple(axes))


def input_name(name: str) -> str:
    """What an input is called, by the name that transformers' exporter gives it."""
    return CACHED.sub(r"past_key_values.\1.\2", name)


def output_name(name: str) -> str:
    """The same of an output."""
    return CACHED.sub(r"present.\1.\2", name)


def _taken(model: PreTrainedModel) -> frozenset[str]:
    return frozenset(inspect.signature(model.forward).parameters)


def _ones(*shape: int) -> Tensor:
    return torch.ones(shape, dtype=torch.int64)
