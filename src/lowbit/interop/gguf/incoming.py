"""In: a GGUF file is opened for lowbit. Its codes pass through as they are.

transformers says which tensor of the file is which of its model, how config and tokenizer follow
from the metadata, and what llama.cpp's converter did to a tensor, which is undone. What that is, is
asked by letting it do the same to the numbers of the rows: if rows change places, so do rows of
blocks, and no code changes.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedModel
from transformers.modeling_gguf_pytorch_utils import (
    TENSOR_PROCESSORS,
    TensorProcessor,
    get_gguf_hf_weights_map,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)

from lowbit.checkpoint.claims import Held
from lowbit.checkpoint.documents import reading
from lowbit.checkpoint.read import Checkpoint, skeleton
from lowbit.conversion.experts import experts_weights
from lowbit.conversion.module_weights import Weights, weights_of
from lowbit.conversion.streamed_load import QuantizedInFile
from lowbit.errors import InputError, naming
from lowbit.extras import needed
from lowbit.formats import AffineTensor, ExpertsLayout, ExpertsTensor
from lowbit.interop.door import ForeignWeight, Source
from lowbit.interop.foreign_folder import Decoded
from lowbit.interop.gguf.architectures import choices_of, rope_factors
from lowbit.interop.gguf.blocks import FLOATS, TYPES, decode, unpack
from lowbit.interop.gguf.grids import LAYOUTS, from_blocks
from lowbit.interop.gguf.header import Header, StoredTensor, read_header
from lowbit.visible import shortened

NAMES = {kind.number: name for name, kind in TYPES.items()} | {
    number: name for name, (number, _) in FLOATS.items()
}
# Keys, after the name of the architecture, that transformers does not read for every model.
ALSO = {
    "context_length": "max_position_embeddings",
    "attention.key_length": "head_dim",
    "expert_feed_forward_length": "moe_intermediate_size",
    "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
}
ROPE_FACTORS = "rope_freqs.weight"
# What every Llama has whose frequencies are scaled one by one, but for the factor.
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def recognizes(path: Path) -> bool:
    """Whether it is a file that begins as one of GGUF does."""
    if not path.is_file():
        return False
    with path.open("rb") as opened:
        return opened.read(4) == b"GGUF"


@contextmanager
def open_gguf(path: Path, decoding: bool) -> Iterator[Source]:
    """What a GGUF file holds. Raises InputError for what is no complete model, and, unless
    `decoding`, for weights of which lowbit cannot hold the codes."""
    gguf = needed("gguf", "gguf", "interop")
    header = read_header(path, {int(k): size for k, size in gguf.GGML_QUANT_SIZES.items()})
    _check_whole(header)
    config = _config(header)
    elements = sum(tensor.elements for tensor in header.tensors.values())
    held = Held(tuple(header.tensors), elements)
    checkpoint = Checkpoint(path.parent, config, [path], held)
    with reading(path):
        model = skeleton(checkpoint, torch.float32)
        processor = TENSOR_PROCESSORS.get(header.architecture, TensorProcessor)(config.to_dict())
        names = get_gguf_hf_weights_map(model, processor)
    weights: dict[str, ForeignWeight] = {}
    experts: dict[str, list[_Part]] = {}
    floats: dict[str, Any] = {}
    unheld: dict[str, str] = {}
    for own, stored in header.tensors.items():
        if own == ROPE_FACTORS:
            continue
        with naming(shortened(own, 80)), reading("it", "imported"):
            if len(stored.shape) == 3:
                together, start = _place_of_experts(processor, names, stored)
                experts.setdefault(together, []).append(_Part(start, stored))
                continue
            name, order = _place(processor, names, stored)
            tensor = _InFile(path, stored, processor, own)
            if name is None:
                floats[own] = tensor  # which the model has no place for, as is told
                continue
            kind = NAMES.get(stored.kind)
            if kind is None:
                unheld[name] = kind = _no_grid(stored.kind, decoding)
            if kind in TYPES and _quantizable(model, name):
                weights[name] = _weight(tensor, kind, order)
            else:
                floats[name] = tensor
    for name, parts in experts.items():
        with naming(name), reading("it", "imported"):
            parts.sort(key=lambda part: part.start)
            kinds = {part.stored.kind for part in parts}
            for number in kinds - NAMES.keys():
                unheld[name] = _no_grid(number, decoding)
            kind = NAMES.get(kinds.pop()) if len(kinds) == 1 else None
            if kind in TYPES and _holds_experts(model, name):
                weights[name] = _quantized_experts(path, parts, kind)
            else:
                floats[name] = _float_experts(path, parts)
    by = header.metadata.get("general.quantized_by", "llama.cpp's quantizer or another")
    told = f"{path.name}, a GGUF file of {by}"
    yield Source(checkpoint, weights, floats, told, lambda to: _tokenizer(header, to), unheld)


def _no_grid(number: int, decoding: bool) -> str:
    """The name of a type that lowbit does not hold. Raises InputError unless it is decoded."""
    kind = str(needed("gguf", "gguf", "interop").GGMLQuantizationType(number).name)
    if not decoding:
        raise InputError(
            f"its type {kind} does not have evenly spaced codes, so lowbit cannot keep them;"
            " --requantize RECIPE decodes and quantizes it again"
        )
    return kind


def _check_whole(header: Header) -> None:
    """Raises InputError for one file of several, and for more blocks than there are tensors."""
    if (parts := header.count("split.count")) > 1:
        raise InputError(
            f"{header.file} is one of {parts:,} parts: put them together with llama-gguf-split"
        )
    blocks = header.count(f"{header.architecture}.block_count")
    if blocks > len(header.tensors):
        raise InputError(
            f"{header.file} declares {blocks:,} blocks, but holds {len(header.tensors):,} tensors"
        )


def _config(header: Header) -> PreTrainedConfig:
    """What transformers makes of the metadata, and what it leaves out of it."""
    file = header.file
    with reading(file):
        config = AutoConfig.from_pretrained(file.parent, gguf_file=file.name, local_files_only=True)
        for key, attribute in ALSO.items():
            value = header.metadata.get(f"{header.architecture}.{key}")
            if value is not None and hasattr(config, attribute):
                setattr(config, attribute, value)
        for attribute, fixed in choices_of(config).items():
            setattr(config, attribute, fixed)
        _set_rope(header, config)
    config.dtype = torch.float32  # that of the norms in every file
    if not config.architectures:
        known = MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES | MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
        if config.model_type not in known:
            raise InputError(f"{file}: transformers has no language model {config.model_type}")
        config.architectures = [known[config.model_type]]
    return config


def _set_rope(header: Header, config: PreTrainedConfig) -> None:
    """Scaled rotations, of which transformers reads nothing. Raises InputError for other kinds than
    linear ones and Llama 3's."""
    kind = header.metadata.get(f"{header.architecture}.rope.scaling.type", "none")
    if kind == "linear":
        factor = header.metadata[f"{header.architecture}.rope.scaling.factor"]
        config.rope_parameters |= {"rope_type": "linear", "factor": factor}
    elif kind != "none":
        raise InputError(
            f"its rotary embeddings are scaled by {kind}; only linear and Llama 3's factors are"
            " imported"
        )
    if (stored := header.tensors.get(ROPE_FACTORS)) is None:
        return
    factors = _floats(header.file, stored)
    config.rope_parameters |= LLAMA3 | {"rope_type": "llama3", "factor": factors.max().item()}
    expected = rope_factors(config)
    if expected is None or not torch.allclose(factors, expected, rtol=1e-4):
        raise InputError(f"the factors {ROPE_FACTORS} are not those of Llama 3, and not imported")


def _place(
    processor: TensorProcessor, names: Mapping[str, str], stored: StoredTensor
) -> tuple[str | None, Tensor | None]:
    """(name in the model, or None; for each row of a matrix there, the one in the file, or None
    where none moved). Raises InputError for one that becomes part of another."""
    rows, own = stored.shape[0], stored.name
    numbers = np.broadcast_to(
        np.arange(rows, dtype=np.int32).reshape(-1, *[1] * (len(stored.shape) - 1)), stored.shape
    )
    found = {"tensors": dict[str, Any]()}
    with np.errstate(all="ignore"):
        done = processor.process(
            weights=numbers, name=own, tensor_key_mapping=names, parsed_parameters=found
        )
    if done.name is None:
        if len(found["tensors"]) != 1 or len(stored.shape) > 2:
            raise InputError("it is part of another tensor in transformers, which is not imported")
        return next(iter(found["tensors"])), None
    name = names.get(own)
    if len(stored.shape) != 2 or done.weights is numbers:
        return name, None
    result = done.weights
    if result.shape != stored.shape or (result != result[:, :1]).any():
        result = result.T
    order = torch.from_numpy(result[:, 0].copy()).long()
    if result.shape != stored.shape or (result != result[:, :1]).any():
        raise InputError("transformers changes its values, not only the order of its rows")
    return name, None if torch.equal(order, torch.arange(rows)) else order


@dataclass(frozen=True)
class _Part:
    """Rows of each expert, from `start` on in the tensor that transformers has."""

    start: int
    stored: StoredTensor


def _place_of_experts(
    processor: TensorProcessor, names: Mapping[str, str], stored: StoredTensor
) -> tuple[str, int]:
    """(name in the model, where the rows of each expert begin there). Raises InputError if they
    become anything else."""
    rows = stored.shape[1]
    found = {"tensors": dict[str, Any]()}
    done = processor.process(
        # Numbers of the rows of one expert, as those of all are many.
        weights=np.arange(1, rows + 1, dtype=np.int32).reshape(1, rows, 1),
        name=stored.name,
        tensor_key_mapping=names,
        parsed_parameters=found,
    )
    if done.name is not None or len(found["tensors"]) != 1:
        raise InputError("it is a part of another tensor in transformers, which is not imported")
    ((name, made),) = found["tensors"].items()
    numbers = torch.as_tensor(made)[0].flatten()
    start = int((numbers == 1).nonzero()[0])
    if not torch.equal(numbers[start : start + rows], torch.arange(1, rows + 1).to(numbers)):
        raise InputError("transformers changes its values, not just their rows")
    return name, start


def _holds_experts(model: PreTrainedModel, name: str) -> bool:
    """Whether lowbit can hold the experts of that name quantized, as a file has them."""
    module, _, parameter = name.rpartition(".")
    found = experts_weights(model.get_submodule(module)).get(parameter)
    return found is not None and not found.transposed


def _quantized_experts(file: Path, parts: Sequence[_Part], kind: str) -> ForeignWeight:
    experts, _, columns = parts[0].stored.shape
    rows = sum(part.stored.shape[1] for part in parts)

    def read() -> ExpertsTensor:
        each = (_bytes(file, p.stored).reshape(experts, p.stored.shape[1], -1) for p in parts)
        stored = torch.cat(list(each), 1)
        return ExpertsTensor.of(
            (from_blocks(unpack(TYPES[kind], one), kind) for one in stored), experts
        )

    size = sum(part.stored.bytes for part in parts)
    held = QuantizedInFile((experts * rows, columns), size, read)
    return ForeignWeight(held, ExpertsLayout(experts, LAYOUTS[kind]))


def _float_experts(file: Path, parts: Sequence[_Part]) -> Decoded:
    """Decoded to float32, those of one expert together."""
    experts, _, columns = parts[0].stored.shape
    shape = experts, sum(part.stored.shape[1] for part in parts), columns

    def read() -> Tensor:
        return torch.cat([_floats(file, part.stored) for part in parts], 1)

    return Decoded(shape, torch.float32, read)


def _quantizable(model: PreTrainedModel, name: str) -> bool:
    """Whether lowbit can hold that weight quantized."""
    module, _, parameter = name.rpartition(".")
    return parameter == "weight" and isinstance(weights_of(model.get_submodule(module)), Weights)


def _weight(tensor: "_InFile", kind: str, order: Tensor | None) -> ForeignWeight:
    rows, columns = tensor.stored.shape

    def read() -> AffineTensor:
        stored = _bytes(tensor.file, tensor.stored).reshape(rows, -1)
        stored = stored if order is None else stored[order]
        return from_blocks(unpack(TYPES[kind], stored), kind)

    held = QuantizedInFile((rows, columns), tensor.stored.bytes, read)
    return ForeignWeight(held, LAYOUTS[kind])


@dataclass(frozen=True)
class _InFile:
    """A tensor as the loader sees one of safetensors: decoded, and as transformers has it, when it
    is read."""

    file: Path
    stored: StoredTensor
    processor: TensorProcessor
    own: str

    def get_shape(self) -> list[int]:
        with np.errstate(all="ignore"):
            like = np.broadcast_to(np.float32(1), self.stored.shape)
            return list(self._processed(like).shape)

    def get_dtype(self) -> str:
        matrix = len(self.stored.shape) > 1
        kind = NAMES.get(self.stored.kind, "F32")
        return kind if kind in FLOATS and matrix else "F32"

    def __getitem__(self, _: Any) -> Tensor:
        found = self._processed(_floats(self.file, self.stored).numpy())
        return torch.from_numpy(np.array(found)).to(FLOATS[self.get_dtype()][1])

    def _processed(self, values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        taken = {"tensors": dict[str, Any]()}
        done = self.processor.process(
            weights=values, name=self.own, tensor_key_mapping={}, parsed_parameters=taken
        )
        kept: np.ndarray[Any, Any] = done.weights
        return kept


def _bytes(file: Path, stored: StoredTensor) -> Tensor:
    with file.open("rb") as opened:
        opened.seek(stored.start)
        return torch.frombuffer(bytearray(opened.read(stored.bytes)), dtype=torch.uint8)


def _floats(file: Path, stored: StoredTensor) -> Tensor:
    """A tensor decoded to float32."""
    raw, kind = _bytes(file, stored), NAMES.get(stored.kind)
    if kind in TYPES:
        rows = raw.reshape(stored.elements // stored.shape[-1], -1)
        return decode(TYPES[kind], unpack(TYPES[kind], rows)).reshape(stored.shape)
    if kind in FLOATS:
        return raw.view(FLOATS[kind][1]).float().reshape(stored.shape)
    gguf = needed("gguf", "gguf", "interop")
    with reading(file):
        block, size = gguf.GGML_QUANT_SIZES[stored.kind]
        blocks = raw.numpy().reshape(*stored.shape[:-1], stored.shape[-1] // block * size)
        decoded = gguf.dequantize(blocks, gguf.GGMLQuantizationType(stored.kind))
        return torch.from_numpy(decoded.astype(np.float32))


def _tokenizer(header: Header, folder: Path) -> None:
    """Write what transformers makes of the file's vocabulary, if it has one."""
    if header.metadata.get("tokenizer.ggml.model", "no_vocab") == "no_vocab":
        return
    file = header.file
    with reading(f"the tokenizer of {file}"):
        tokenizer = AutoTokenizer.from_pretrained(
            file.parent, gguf_file=file.name, local_files_only=True
        )
        tokenizer.save_pretrained(folder)
