"""In: a GGUF file is opened for lowbit. Its codes pass through as they are.

transformers says which tensor of the file is which of its model, how config and tokenizer follow
from the metadata, and what llama.cpp's converter did to a tensor, which is undone. What that is, is
asked by letting it do the same to the numbers of the rows: if rows change places, so do rows of
blocks, and no code changes.
"""

from collections.abc import Iterator, Mapping
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
from lowbit.conversion.module_weights import Weights, weights_of
from lowbit.conversion.streamed_load import QuantizedInFile
from lowbit.errors import InputError, naming
from lowbit.extras import needed
from lowbit.formats import AffineTensor
from lowbit.interop.door import ForeignWeight, Source
from lowbit.interop.gguf.architectures import rope_factors
from lowbit.interop.gguf.blocks import FLOATS, TYPES, decode, unpack
from lowbit.interop.gguf.grids import LAYOUTS, from_blocks
from lowbit.interop.gguf.header import Header, StoredTensor, read_header
from lowbit.visible import shortened

NAMES = {kind.number: name for name, kind in TYPES.items()} | {
    number: name for name, (number, _) in FLOATS.items()
}
# Keys, after the name of the architecture, that transformers does not read for every model.
ALSO = {"context_length": "max_position_embeddings", "attention.key_length": "head_dim"}
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
    floats: dict[str, Any] = {}
    unheld: dict[str, str] = {}
    for own, stored in header.tensors.items():
        if own == ROPE_FACTORS:
            continue
        with naming(shortened(own, 80)), reading("it", "imported"):
            name, order = _place(processor, names, stored)
            tensor = _InFile(path, stored, processor, own)
            if name is None:
                floats[own] = tensor  # which the model has no place for, as is told
                continue
            kind = NAMES.get(stored.kind)
            if kind is None:
                kind = gguf.GGMLQuantizationType(stored.kind).name
                if not decoding:
                    raise InputError(
                        f"its type {kind} is no grid of even steps, so its codes cannot be taken"
                        " over; --requantize RECIPE decodes and quantizes it again"
                    )
                unheld[name] = kind
            if kind in TYPES and _quantizable(model, name):
                weights[name] = _weight(tensor, kind, order)
            else:
                floats[name] = tensor
    by = header.metadata.get("general.quantized_by", "llama.cpp's quantizer or another")
    told = f"{path.name}, a GGUF file of {by}"
    yield Source(checkpoint, weights, floats, told, lambda to: _tokenizer(header, to), unheld)


def _check_whole(header: Header) -> None:
    """Raises InputError for one file of several, and for more blocks than there are tensors."""
    if (parts := header.count("split.count")) > 1:
        raise InputError(
            f"{header.file} is one of {parts:,} parts: put them together with llama-gguf-split"
        )
    blocks = header.count(f"{header.architecture}.block_count")
    if blocks > len(header.tensors):
        raise InputError(
            f"{header.file} asks for {blocks:,} blocks, and holds {len(header.tensors):,} tensors"
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
        raise InputError(f"its rotations are scaled by {kind}, which is not imported")
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
            raise InputError("it is a part of another tensor in transformers, and not imported")
        return next(iter(found["tensors"])), None
    name = names.get(own)
    if len(stored.shape) != 2 or done.weights is numbers:
        return name, None
    result = done.weights
    if result.shape != stored.shape or (result != result[:, :1]).any():
        result = result.T
    order = torch.from_numpy(result[:, 0].copy()).long()
    if result.shape != stored.shape or (result != result[:, :1]).any():
        raise InputError("transformers changes more than the order of its rows")
    return name, None if torch.equal(order, torch.arange(rows)) else order


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
