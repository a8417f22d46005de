"""Out: a folder of lowbit's becomes a folder with ONNX models, config and tokenizer."""

from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from lowbit.checkpoint.atomic_write import writing
from lowbit.checkpoint.companions import copy_companions
from lowbit.checkpoint.documents import reading
from lowbit.checkpoint.load import load_model
from lowbit.conversion.fuse import unfuse
from lowbit.conversion.swap import replace_module
from lowbit.errors import InputError, UsageError, check_choice
from lowbit.extras import needed
from lowbit.formats import AffineLayout
from lowbit.interop.onnx.blocks import Blocks, block_width, stored_bits
from lowbit.interop.onnx.graphs import graphs, reads_text
from lowbit.interop.onnx.layers import layer_for
from lowbit.interop.onnx.tracing import trace
from lowbit.interop.stored_model import StoredModel, StoredWeight
from lowbit.nn import QuantModule

OPSETS = range(18, 24)
OPSET = 20
# Protocol buffers end at 2 GiB; weights of larger models lie in a file beside.
MOST_IN_ONE_FILE = 1 << 30
SENTENCES = "modules.json"  # of sentence-transformers


def check(model: StoredModel, opset: str | None) -> None:
    """Raises UsageError for what ONNX's operators do not hold, with the nearest recipe, and for an
    opset that is not served; InputError where packages are missing."""
    _opset(opset)
    for package in ("onnx", "onnxscript"):
        needed(package, package, "onnx")
    if find_spec("transformers.exporters") is None:
        raise InputError("ONNX models are traced by transformers 5.24 or newer: upgrade it")
    if not reads_text(model.model):
        raise UsageError(f"{type(model.model).__name__} reads no input_ids, as ONNX models here do")
    for place, weight in model.weights.items():
        if told := _misfit(weight):
            raise UsageError(f"{place} cannot be written as ONNX: {told}")


def check_sentences(model: StoredModel, opset: str | None) -> None:
    """The same of a model of sentence-transformers."""
    if not (model.folder / SENTENCES).is_file():
        raise UsageError(
            f"{model.folder} has no {SENTENCES}, so it is no model of sentence-transformers: leave"
            " --layout out"
        )
    check(model, opset)


def write(model: StoredModel, opset: str | None, folder: Path) -> tuple[str, ...]:
    """Write the folder; returns sentences for people."""
    return _write(model, _opset(opset), folder, folder)


def write_sentences(model: StoredModel, opset: str | None, folder: Path) -> tuple[str, ...]:
    """The same with the ONNX model in the subfolder where sentence-transformers looks for it."""
    own = folder / "onnx"
    own.mkdir()
    return _write(model, _opset(opset), folder, own)


def _write(model: StoredModel, opset: int, folder: Path, own: Path) -> tuple[str, ...]:
    with reading(model.folder, "traced for ONNX"):
        prepared = _prepared(model)
        for graph in graphs(prepared):
            program = trace(graph, opset)
            with writing(folder):
                _save(program, own / graph.file)
    model.config.dtype = torch.float32
    model.config.architectures = [type(model.model).__name__]
    with reading(model.folder / "config.json"):
        model.config.save_pretrained(folder)
    copy_companions(model.folder, folder)
    return tuple(_notes(model, opset))


def _prepared(model: StoredModel) -> PreTrainedModel:
    """The model with layers that hold what ONNX's operators take; all else is float32."""
    loaded = load_model(model.folder).float()
    unfuse(loaded)
    loaded.set_attn_implementation("sdpa" if loaded._supports_sdpa else "eager")
    packed = {n: m for n, m in loaded.named_modules() if isinstance(m, QuantModule)}
    blocks: dict[QuantModule, Blocks] = {}
    layers = {name: layer_for(module, blocks) for name, module in packed.items()}
    for name, layer in layers.items():
        replace_module(loaded, name, layer)
    return loaded


def _save(program: Any, file: Path) -> None:
    onnx_ir = needed("onnx_ir", "onnxscript", "onnx")
    program.producer_name = "lowbit"
    held = [value.const_value for value in program.graph.initializers.values()]
    size = sum(tensor.nbytes for tensor in held if tensor is not None)
    beside = f"{file.name}.data" if size > MOST_IN_ONE_FILE else None
    onnx_ir.save(program, str(file), external_data=beside)


def _opset(asked: str | None) -> int:
    if asked is None:
        return OPSET
    check_choice("opset", asked, [str(opset) for opset in OPSETS])
    return int(asked)


def _misfit(weight: StoredWeight) -> str | None:
    """Why a weight cannot be written, and what to do; None if it can."""
    layout = weight.layout
    if weight.weights.kind == "experts":
        return 'it holds experts; keep these float ({match: "@experts", keep: true})'
    if not isinstance(layout, AffineLayout):
        return f"it is stored as {layout}; quantize with int{min(max(layout.bits, 2), 4)}"
    if layout.offset:
        return f"it is stored as {layout}, and no operator takes offsets; quantize with int4"
    if block_width(layout, weight.weights.shape[1]) is None:
        return (
            f"its groups of {layout.granularity.group_size} inputs are no multiple of 16; quantize"
            " with groups of 32 or 64"
        )
    return None


def _notes(model: StoredModel, opset: int) -> list[str]:
    """What a reader should know of the files."""
    layouts = [w.layout for w in model.owners.values() if isinstance(w.layout, AffineLayout)]
    notes = [f"Opset {opset}, with operators of com.microsoft for weights in groups and tables."]
    wider = Counter(layout.bits for layout in layouts if stored_bits(layout.bits) > layout.bits)
    notes += [
        f"{count} weights of {bits} bits are stored in {stored_bits(bits)}."
        for bits, count in sorted(wider.items())
    ]
    grouped = [
        weight
        for weight in model.weights.values()
        if weight.activations == "dynamic" and weight.layout.granularity.group_size is not None
    ]
    if grouped:
        notes.append(
            f"{len(grouped)} layers with groups let the program round activations to int8: ONNX"
            " Runtime does on most processors, OpenVINO keeps them float."
        )
    return notes
