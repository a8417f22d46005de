"""Out: a folder of lowbit's becomes a GGUF file that llama.cpp runs, with the same codes; a float
model becomes one as it is.

Everything that the file cannot hold is refused before anything is written; then tensors are read,
packed and written one after the other.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers.modeling_utils import str_to_torch_dtype

from lowbit.checkpoint.atomic_write import writing
from lowbit.checkpoint.load import load_tokenizer
from lowbit.checkpoint.read import float_config, open_checkpoint, open_tensors, skeleton
from lowbit.conversion.config import LowbitConfig
from lowbit.conversion.module_weights import Weights, oriented, weights_of
from lowbit.conversion.rows_of_experts import rows_of_experts
from lowbit.conversion.streamed_load import names_in_model
from lowbit.errors import InputError, UsageError, check_choice, naming
from lowbit.extras import needed
from lowbit.formats import AffineTensor, ExpertsLayout, ExpertsTensor, decode
from lowbit.formats.affine import take_rows
from lowbit.interop.foreign_folder import Decoded
from lowbit.interop.gguf.architectures import (
    EXPERTS,
    Architecture,
    architecture_of,
    numbers_of,
    rope_factors,
)
from lowbit.interop.gguf.blocks import FLOATS, TYPES, pack
from lowbit.interop.gguf.grids import to_blocks, type_for
from lowbit.interop.gguf.vocabulary import vocabulary
from lowbit.interop.gguf.writer import NewTensor, write_file
from lowbit.interop.stored_model import StoredModel, StoredWeight
from lowbit.pipelines.sentence_modules import MODULES, read_modules, read_poolings

FLOAT_NAMES = {str(dtype): name for name, (_, dtype) in FLOATS.items()}
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
# llama.cpp's numbers of what most matrices of a file are (`llama_ftype`).
FILE_TYPES = {
    "F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "Q2_K": 10,
    "Q3_K": 12, "Q4_K": 15, "Q5_K": 17, "Q6_K": 18, "BF16": 32,
}  # fmt: skip
BLOCKS_VERSION = 2  # of the layouts in blocks.py
# llama.cpp's numbers of the poolings of sentence-transformers; 0 is none.
POOLINGS = {"mean": 1, "cls": 2, "lasttoken": 3}


def check(model: StoredModel, kind: str | None) -> None:
    """Raises UsageError for what a GGUF file of that type does not hold."""
    try:
        _plan(model, kind)
    except InputError as error:
        raise UsageError(f"{model.folder} cannot be exported to GGUF: {error}") from error


def write(model: StoredModel, kind: str | None, file: Path, progress: bool) -> tuple[str, ...]:
    """Write the file. Returns sentences for people."""
    metadata, tensors, left_out = _plan(model, kind)
    with writing(file):
        write_file(file, metadata, tensors, progress)
    matrices = Counter(t.kind for t in tensors if len(t.shape) > 1)
    told = ", ".join(f"{count} {name}" for name, count in matrices.most_common())
    notes = [f"Matrices by type: {told}."]
    if left_out:
        notes.append(f"llama.cpp has no use for {len(left_out)} tensors, such as {left_out[0]}.")
    if dynamic := [w for w in model.weights.values() if w.activations != "float"]:
        notes.append(
            f"The {dynamic[0].activations} activations of {len(dynamic)} modules are left out:"
            " llama.cpp quantizes activations in its own way."
        )
    return tuple(notes)


def _plan(
    model: StoredModel, kind: str | None
) -> tuple[dict[str, Any], list[NewTensor], tuple[str, ...]]:
    """(metadata, tensors, names of tensors that are left out). Raises InputError."""
    if kind is not None:
        check_choice("type", kind.lower(), [name.lower() for name in TYPES], error=InputError)
    architecture = architecture_of(model.config)
    name_of = _names(model, architecture)
    tensors: list[NewTensor] = []
    left_out: list[str] = []
    for place, weight in model.owners.items():
        with naming(place):
            if weight.weights.kind == "experts":
                tensors += _quantized_experts(weight, name_of, kind)
            elif (name := name_of(str(weight.name))) is None:
                left_out.append(str(weight.name))
            else:
                tensors.append(_quantized(model, architecture, weight, name, kind))
    for own, tensor in model.floats.items():
        with naming(own):
            if own.rpartition(".")[2] in EXPERTS and len(tensor.get_shape()) == 3:
                tensors += _float_experts(own, tensor, name_of)
            elif (name := name_of(own)) is None:
                left_out.append(own)
            else:
                tensors.append(_float(model, architecture, own, tensor, name))
    if (factors := rope_factors(model.config)) is not None:
        shape = tuple(factors.shape)
        tensors.append(NewTensor("rope_freqs.weight", "F32", shape, lambda: factors))
    return _metadata(model, architecture, tensors), tensors, tuple(left_out)


def _metadata(
    model: StoredModel, architecture: Architecture, tensors: list[NewTensor]
) -> dict[str, Any]:
    tokenizer = load_tokenizer(model.folder)
    if tokenizer is None:
        raise InputError("it has no tokenizer, and a GGUF file needs one")
    matrices = Counter(t.kind for t in tensors if len(t.shape) > 1)
    found: dict[str, Any] = {
        "general.architecture": architecture.name,
        "general.name": model.folder.resolve().name,
        "general.quantization_version": BLOCKS_VERSION,
        "general.file_type": FILE_TYPES[matrices.most_common(1)[0][0]],
    }
    found |= numbers_of(architecture, model.config)
    if architecture.pools:
        found[f"{architecture.name}.pooling_type"] = _pooling(model.folder)
        found["tokenizer.ggml.token_type_count"] = model.config.type_vocab_size
    return found | vocabulary(tokenizer, model.config.vocab_size)


def _pooling(folder: Path) -> int:
    """How sentence-transformers makes one vector of those of all tokens, as llama.cpp counts; 0 if
    it did not write the folder. Raises InputError for what llama.cpp does not do."""
    if (folder / MODULES).is_file():
        poolings = read_modules(folder).poolings
    elif files := sorted(folder.glob("*_Pooling/config.json")):
        poolings = read_poolings(files[0])
    else:
        return 0
    if len(poolings) > 1:
        raise InputError(f"its vectors are those of {' and '.join(poolings)}; llama.cpp takes one")
    check_choice("pooling", poolings[0], POOLINGS, error=InputError)
    return POOLINGS[poolings[0]]


def _names(model: StoredModel, architecture: Architecture) -> Callable[[str], str | None]:
    """(name of a tensor) -> that in a GGUF file; None for what is left out. Raises InputError for
    what llama.cpp has no place for."""
    gguf = needed("gguf", "gguf", "interop")
    numbers = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
    known = gguf.get_tensor_name_map(numbers[architecture.name], model.config.num_hidden_layers)
    prefix = f"{model.model.base_model_prefix}."

    def name_of(own: str) -> str | None:
        module, _, parameter = own.rpartition(".")
        for name in (module, module.removeprefix(prefix), prefix + module):
            if (found := known.get_name(name)) is not None:
                return f"{found}.{parameter}"
        if own.removeprefix(prefix).startswith(architecture.left_out):
            return None
        raise InputError(
            f"llama.cpp has no tensor for it in a model of the type {architecture.name}"
        )

    return name_of


def _quantized(
    model: StoredModel,
    architecture: Architecture,
    weight: StoredWeight,
    name: str,
    wanted: str | None,
) -> NewTensor:
    rows, columns = weight.weights.shape
    vector = weight.name.module.endswith(architecture.vectors)
    if vector or weight.name.module.endswith(architecture.added):
        shape = (columns,) if vector else (rows, columns)
        return NewTensor(name, "F32", shape, lambda: decode(weight.read()).reshape(shape))
    kind = type_for(weight.layout, columns, None if wanted is None else wanted.upper())
    if weight.weights.embed_scale is not None:
        raise InputError("its rows are scaled when they are read, which llama.cpp does not do")
    order = _order(model, architecture, weight.name.module, rows)

    def read() -> Tensor:
        stored = pack(TYPES[kind], to_blocks(weight.read(), kind))
        return stored if order is None else stored[order]

    return NewTensor(name, kind, (rows, columns), read)


def _quantized_experts(
    weight: StoredWeight, name_of: Callable[[str], str | None], wanted: str | None
) -> Iterator[NewTensor]:
    """The tensors of llama.cpp that hold the rows of a weight of experts."""
    layout, (every, columns) = weight.layout, weight.weights.shape
    assert isinstance(layout, ExpertsLayout)
    if weight.weights.transposed:
        raise InputError("its experts are transposed, which llama.cpp does not support")
    kind = type_for(layout.each, columns, None if wanted is None else wanted.upper())
    names = _experts_names(str(weight.name), name_of)
    rows = every // layout.experts // len(names)
    for i, name in enumerate(names):

        def read(own: slice = slice(i * rows, (i + 1) * rows)) -> Tensor:
            q = weight.read()
            assert isinstance(q, ExpertsTensor)
            each = (take_rows(cast(AffineTensor, q.expert(e)), own) for e in range(q.experts))
            return torch.stack([pack(TYPES[kind], to_blocks(one, kind)) for one in each])

        yield NewTensor(name, kind, (layout.experts, rows, columns), read)


def _float_experts(
    own: str, tensor: Any, name_of: Callable[[str], str | None]
) -> Iterator[NewTensor]:
    """The same of one that is float."""
    names = _experts_names(own, name_of)
    experts, every, columns = tensor.get_shape()
    rows = every // len(names)
    dtype = DTYPES.get(tensor.get_dtype(), torch.float32)
    for i, name in enumerate(names):

        def read(part: slice = slice(i * rows, (i + 1) * rows)) -> Tensor:
            found: Tensor = tensor[...][:, part]
            return found.to(dtype)

        yield NewTensor(name, FLOAT_NAMES[str(dtype)], (experts, rows, columns), read)


def _experts_names(own: str, name_of: Callable[[str], str | None]) -> list[str]:
    """What llama.cpp calls the parts of a parameter of experts. Raises InputError if a part has no
    name there."""
    module, _, parameter = own.rpartition(".")
    found = [name_of(f"{module}.{part}.weight") for part in EXPERTS.get(parameter, (parameter,))]
    names = [name for name in found if name is not None]
    if len(names) < len(found):
        raise InputError("llama.cpp has no tensor for these experts")
    return names


def _float(
    model: StoredModel, architecture: Architecture, own: str, tensor: Any, name: str
) -> NewTensor:
    shape = tuple(tensor.get_shape())
    module = own.rpartition(".")[0]
    held = model.model.get_submodule(module)
    if module.endswith(architecture.vectors):
        return NewTensor(name, "F32", shape[-1:], lambda: tensor[...].float().flatten())
    known = weights_of(held)
    weights = known if isinstance(known, Weights) and len(shape) > 1 else None
    turned = weights is not None and weights.transposed
    # llama.cpp adds vectors, positions and biases of attention in float32.
    table = held is model.model.get_input_embeddings()
    product = weights is not None and (weights.takes_activations or table)
    dtype = DTYPES.get(tensor.get_dtype(), torch.float32) if product else torch.float32
    factor = next((f for end, f in architecture.factors.items() if own.endswith(end)), None)
    order = _order(model, architecture, module, shape[-1] if turned else shape[0])

    def read() -> Tensor:
        found: Tensor = tensor[...]
        if weights is not None:
            found = oriented(found, weights)
        if factor is not None:
            found = found.float() * factor(model.config)
        return (found if order is None else found[order]).to(dtype)

    kind = FLOAT_NAMES[str(dtype)]
    return NewTensor(name, kind, shape[::-1] if turned else shape, read)


def _order(model: StoredModel, architecture: Architecture, module: str, rows: int) -> Tensor | None:
    """The rows of a module in the order of llama.cpp, where it has its own."""
    last = module.rpartition(".")[2]
    order = architecture.order.get(last)
    return None if order is None else order(model.config, rows)


def write_float(source: Path, file: Path, progress: bool) -> tuple[str, ...]:
    """Write a float model as it is, which llama.cpp's own quantizer reads: the folder `source`.
    Tensors that the model does not have, such as masks of earlier releases of transformers, are
    left out.

    Raises InputError. Returns sentences for people."""
    config = float_config(source)
    checkpoint = open_checkpoint(source, config)
    with open_tensors(checkpoint.files) as tensors:
        model = skeleton(checkpoint, torch.float32)
        nothing = LowbitConfig({"rules": [{"match": "@linear", "keep": True}]})
        there = model.state_dict()
        places = names_in_model(model, tensors)
        held: dict[str, Any] = {
            place.name: tensors[own]
            for own, place in places.items()
            if place.name in there and place.converter is None
        }
        for name, experts in rows_of_experts(places).items():
            held[name] = _stacked([[tensors[own] for own in rows] for rows in experts])
        floats = StoredModel(source, config, nothing, model, {}, held, torch.float32)
        return write(floats, None, file, progress)


def _stacked(experts: list[list[Any]]) -> Decoded:
    """Matrices of experts [experts, out, in] as one tensor, which is read when asked for."""
    first = experts[0]
    shape = len(experts), sum(rows.get_shape()[0] for rows in first), first[0].get_shape()[1]

    def read() -> Tensor:
        return torch.stack([torch.cat([rows[...] for rows in expert]) for expert in experts])

    return Decoded(shape, str_to_torch_dtype[first[0].get_dtype()], read)
