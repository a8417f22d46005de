"""The ONNX graphs of a model, with the names of files, inputs and outputs.

    one pass over a text                 model.onnx
    decoders                             model.onnx, which takes and returns keys and values
    encoders with a decoder              encoder_model.onnx, decoder_model.onnx for the first pass,
                                         decoder_with_past_model.onnx for all that follow

Files, inputs and outputs are named as in Optimum's exports, which its classes, transformers.js and
others read: input_ids, attention_mask, past_key_values.0.key …; logits or last_hidden_state,
present.0.key ….
"""

import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

# Sizes in the example that is traced, no two of them alike, and what these axes are called.
ROWS, TOKENS, BEFORE, SOURCE = 2, 3, 5, 7
AXES = {
    ROWS: "batch_size",
    TOKENS: "sequence_length",
    BEFORE: "past_sequence_length",
    BEFORE + TOKENS: "past_sequence_length + sequence_length",
    SOURCE: "encoder_sequence_length",
}
CACHES = ("past_key_values", "cache")  # what forward calls keys and values, by version
CACHED = re.compile(
    r"(?:(?:input|output)\.)?(?:cache|past_key_values)\."
    r"(?:(?P<of>self|cross)_attention_cache\.)?layers\.(?P<layer>\d+)\.(?P<part>key|value)s"
)
OF = {None: "", "self": ".decoder", "cross": ".encoder"}
OF_DECODER = {
    "decoder_input_ids": "input_ids",
    "attention_mask": "encoder_attention_mask",
    "encoder_outputs.last_hidden_state": "encoder_hidden_states",
}


@dataclass(frozen=True)
class Graph:
    """One file. inputs: an example of what forward takes, with the sizes of AXES. renamed: inputs
    that are called otherwise in the file. constant: outputs that an input has already, by a part of
    their names."""

    file: str
    model: PreTrainedModel
    inputs: dict[str, Any]
    renamed: dict[str, str]
    constant: str | None = None


def reads_text(model: PreTrainedModel) -> bool:
    """Whether this file has graphs for the model."""
    return "input_ids" in _taken(model)


def graphs(model: PreTrainedModel) -> Iterator[Graph]:
    """The graphs of the model."""
    if not model.can_generate():
        yield _pass(model, "model.onnx", TOKENS)
    elif model.config.is_encoder_decoder:
        yield _pass(model.get_encoder(), "encoder_model.onnx", SOURCE)
        yield from _decoders(model)
    else:
        yield _decoder(model)


def axes_of(tensor: Tensor) -> dict[int, str]:
    """The dynamic axes of an input: tokens are second, for keys and values third."""
    place = 2 if tensor.ndim == 4 else 1
    return {0: AXES[ROWS], place: AXES[tensor.shape[place]]}


def input_name(name: str, graph: Graph) -> str:
    """The name of an input in the file, by its name in transformers' exporter."""
    return graph.renamed.get(name) or _cached(name, "past_key_values")


def output_name(name: str) -> str:
    """The name of an output in the file."""
    return _cached(name, "present")


def _pass(model: PreTrainedModel, file: str, tokens: int) -> Graph:
    """The graph of one pass over a text."""
    names = ["input_ids", "attention_mask"]
    if getattr(model.config, "type_vocab_size", 0) > 1:
        names.append("token_type_ids")
    inputs = {name: _ones(ROWS, tokens) for name in names if name in _taken(model)}
    return Graph(file, model, inputs | {"use_cache": False}, {})


def _decoder(model: PreTrainedModel) -> Graph:
    """The graph of a decoder pass over more tokens, with a possibly empty cache."""
    cache = _cache_argument(model)
    with torch.no_grad():
        begun = model(input_ids=_ones(ROWS, BEFORE), use_cache=True)[cache]
    inputs = {"input_ids": _ones(ROWS, TOKENS), "attention_mask": _ones(ROWS, BEFORE + TOKENS)}
    if "position_ids" in _taken(model):
        inputs["position_ids"] = torch.arange(BEFORE, BEFORE + TOKENS).repeat(ROWS, 1)
    return Graph("model.onnx", model, inputs | {cache: begun, "use_cache": True}, {})


def _decoders(model: PreTrainedModel) -> Iterator[Graph]:
    """The graphs of a decoder with an encoder: the first pass computes keys and values of the
    encoder's states, which later passes read."""
    source, cache = _ones(ROWS, SOURCE), _cache_argument(model)
    with torch.no_grad():
        states = model.get_encoder()(input_ids=source)[0]

    def inputs(tokens: int) -> dict[str, Any]:
        return {
            "decoder_input_ids": _ones(ROWS, tokens),
            "attention_mask": source,
            "encoder_outputs": BaseModelOutput(last_hidden_state=states),
            "use_cache": True,
        }

    yield Graph("decoder_model.onnx", model, inputs(TOKENS), OF_DECODER)
    with torch.no_grad():
        begun = model(**inputs(BEFORE))[cache]
    name, given = "decoder_with_past_model.onnx", inputs(TOKENS) | {cache: begun}
    yield Graph(name, model, given, OF_DECODER, constant=OF["cross"])


def _cached(name: str, first: str) -> str:
    found = CACHED.fullmatch(name)
    if found is None:
        return name
    return f"{first}.{found['layer']}{OF[found['of']]}.{found['part']}"


def _cache_argument(model: PreTrainedModel) -> str:
    return next(name for name in CACHES if name in _taken(model))


def _taken(model: PreTrainedModel) -> frozenset[str]:
    return frozenset(inspect.signature(model.forward).parameters)


def _ones(*shape: int) -> Tensor:
    return torch.ones(shape, dtype=torch.int64)
