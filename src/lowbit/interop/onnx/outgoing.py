"""Export a lowbit folder as a folder with ONNX models, config and tokenizer."""

from collections import Counter
from dataclasses import dataclass
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
from lowbit.progress import tracked

OPSETS = range(18, 24)
VNNI = "vnni"
# Protocol buffers are limited to 2 GiB; weights of larger models go to a second file.
MOST_IN_ONE_FILE = 1 << 30
SENTENCES = "modules.json"  # file of sentence-transformers


@dataclass(frozen=True)
class Target:
    """vnni: weights of int8 products are int8. Faster on processors with VNNI, inexact on other x86
    processors."""

    opset: int = 20
    vnni: bool = False

    @classmethod
    def parse(cls, asked: str | None) -> "Target":
        """Parse "OPSET", "vnni" or "OPSET:vnni". Raises UsageError."""
        opset, vnni = cls.opset, False
        for part in asked.split(":") if asked else ():
            check_choice("opset", part, [*map(str, OPSETS), VNNI])
            opset, vnni = (opset, True) if part == VNNI else (int(part), vnni)
        return cls(opset, vnni)


def check(model: StoredModel, asked: str | None) -> None:
    """Raises UsageError if ONNX's operators do not support the model (the message names the nearest
    recipe) or the opset is not supported; InputError if packages are missing."""
    Target.parse(asked)
    for package in ("onnx", "onnxscript"):
        needed(package, package, "onnx")
    if find_spec("transformers.exporters") is None:
        raise InputError("ONNX models are traced by transformers 5.24 or newer: upgrade it")
    if not reads_text(model.model):
        raise UsageError(f"{type(model.model).__name__} reads no input_ids, as ONNX models here do")
    for place, weight in model.weights.items():
        if told := _misfit(weight):
            raise UsageError(f"{place} cannot be written as ONNX: {told}")


def check_sentences(model: StoredModel, asked: str | None) -> None:
    """`check` for a model of sentence-transformers."""
    if not (model.folder / SENTENCES).is_file():
        raise UsageError(
            f"{model.folder} has no {SENTENCES}, so it is not a model of"
            " sentence-transformers: omit --layout"
        )
    check(model, asked)


def write(model: StoredModel, asked: str | None, folder: Path, progress: bool) -> tuple[str, ...]:
    """Write the folder. Returns sentences for the user."""
    return _write(model, Target.parse(asked), folder, folder, progress)


def write_sentences(
    model: StoredModel, asked: str | None, folder: Path, progress: bool
) -> tuple[str, ...]:
    """`write` with the ONNX model in the subfolder that sentence-transformers reads."""
    own = folder / "onnx"
    own.mkdir()
    return _write(model, Target.parse(asked), folder, own, progress)


def _write(
    model: StoredModel, target: Target, folder: Path, own: Path, progress: bool
) -> tuple[str, ...]:
    with reading(model.folder, "traced for ONNX"):
        prepared = _prepared(model, target)
        for graph in tracked(graphs(prepared), "exporting", "graph", progress):
            program = trace(graph, target.opset)
            with writing(folder):
                _save(program, own / graph.file)
    model.config.dtype = torch.float32
    model.config.architectures = [type(model.model).__name__]
    with reading(model.folder / "config.json"):
        model.config.save_pretrained(folder)
    copy_companions(model.folder, folder)
    return tuple(_notes(model, target))


def _prepared(model: StoredModel, target: Target) -> PreTrainedModel:
    """The model with layers for ONNX's operators; all other parameters are float32."""
    loaded = load_model(model.folder).float()
    unfuse(loaded)
    # Eager attention: OpenVINO computes torch's fused attention with one head differently.
    loaded.set_attn_implementation("eager")
    packed = {n: m for n, m in loaded.named_modules() if isinstance(m, QuantModule)}
    blocks: dict[QuantModule, Blocks] = {}
    layers = {name: layer_for(module, blocks, target.vnni) for name, module in packed.items()}
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
            f"its group size {layout.granularity.group_size} is not a multiple of 16; quantize with"
            " groups of 32 or 64"
        )
    return None


def _notes(model: StoredModel, target: Target) -> list[str]:
    """Sentences about the files for the user."""
    layouts = [w.layout for w in model.owners.values() if isinstance(w.layout, AffineLayout)]
    notes = [f"Opset {target.opset}, with operators of com.microsoft."]
    wider = Counter(layout.bits for layout in layouts if stored_bits(layout.bits) > layout.bits)
    notes += [
        f"{count} weights of {bits} bits are stored in {stored_bits(bits)}."
        for bits, count in sorted(wider.items())
    ]
    rounded = [weight for weight in model.weights.values() if weight.activations != "float"]
    grouped = [w for w in rounded if w.layout.granularity.group_size is not None]
    if len(rounded) > len(grouped):
        notes.append(
            "Weights of int8 products are int8: on x86 processors without VNNI sums may saturate."
            if target.vnni
            else "Weights of int8 products are uint8, which is exact on every processor; where one"
            " has VNNI, int8 ones are faster: --to onnx:vnni."
        )
    if dynamic := [w for w in grouped if w.activations == "dynamic"]:
        notes.append(
            f"{len(dynamic)} layers with groups let the program round activations to int8: ONNX"
            " Runtime does on most processors, OpenVINO keeps them float."
        )
    return notes
