"""Read a safetensors folder that another program quantized: its config, and tensors by module."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_utils import str_to_torch_dtype

from lowbit.checkpoint.claims import held_by
from lowbit.checkpoint.companions import copy_companions
from lowbit.checkpoint.documents import check_folder, read_json, reading
from lowbit.checkpoint.read import Checkpoint, open_tensors, read_config, weight_files
from lowbit.errors import InputError, UsageError
from lowbit.formats import Granularity
from lowbit.interop.door import ForeignWeight, Reader, Source

# Files that repeat the quantization config of a model.
DESCRIPTIONS = ("quantize_config.json", "quant_config.json", "quantization_config.json")
# dtype -> its name in the header of safetensors
NAMES = {dtype: name for name, dtype in str_to_torch_dtype.items()}


@dataclass(frozen=True)
class ForeignFolder:
    """A folder. quantization: the quantization config of the program. tensors: all, unread."""

    path: Path
    quantization: Mapping[str, Any]
    tensors: Mapping[str, Any]

    def modules(self, mark: str, parts: tuple[str, ...] = ()) -> dict[str, "Module"]:
        """The modules with a tensor "NAME.mark", by name, with this tensor and their other tensors
        in `parts`."""
        ending = f".{mark}"
        found = {}
        for name in self.tensors:
            if name.endswith(ending):
                module = name.removesuffix(ending)
                held = {own: self.tensors.get(f"{module}.{own}") for own in (mark, *parts)}
                present = {own: tensor for own, tensor in held.items() if tensor is not None}
                found[module] = Module(module, present)
        return found

    def option(self, key: str, kind: type, default: Any) -> Any:
        """An option of the quantization config. Raises InputError if it has another type."""
        value = self.quantization.get(key)
        if value is None:
            return default
        if type(value) is not kind:
            raise InputError(f"{self.path} says {key} = {value!r}, not a {kind.__name__}")
        return value


@dataclass(frozen=True)
class Module:
    """The tensors of one quantized module, unread."""

    name: str
    tensors: Mapping[str, Any]

    def __contains__(self, own: str) -> bool:
        return own in self.tensors

    @property
    def nbytes(self) -> int:
        sizes = (
            torch.Size(t.get_shape()).numel() * str_to_torch_dtype[t.get_dtype()].itemsize
            for t in self.tensors.values()
        )
        return sum(sizes)

    def shape(self, own: str) -> tuple[int, ...]:
        """Raises InputError where there is no such tensor."""
        if own not in self.tensors:
            raise InputError(f"the checkpoint lacks {self.name}.{own}")
        return tuple(self.tensors[own].get_shape())

    def dtype(self, own: str) -> torch.dtype:
        """Raises InputError where there is no such tensor."""
        self.shape(own)
        return str_to_torch_dtype[self.tensors[own].get_dtype()]

    def matrix(self, own: str) -> tuple[int, int]:
        """The shape of a matrix. Raises InputError if the tensor has other than two dimensions."""
        shape = self.shape(own)
        if len(shape) != 2 or not all(shape):
            raise InputError(f"{self.name}.{own} has the shape {list(shape)}, not a matrix")
        return shape[0], shape[1]

    def read(self, own: str, shape: tuple[int, ...], *dtypes: torch.dtype) -> Tensor:
        """Read the tensor. Raises InputError if its shape or dtype is not as expected."""
        stored, found = self.shape(own), self.dtype(own)
        if stored != shape:
            raise InputError(f"{self.name}.{own} has the shape {list(stored)}, not {list(shape)}")
        if found not in dtypes:
            known = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
            raise InputError(f"{self.name}.{own} is {found}, not {known}")
        tensor: Tensor = self.tensors[own][...]
        return tensor


@dataclass(frozen=True)
class Decoded:
    """A weight that is decoded to floats when it is read, in the form of `open_tensors`."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]

    def get_shape(self) -> list[int]:
        return list(self.shape)

    def get_dtype(self) -> str:
        return NAMES[self.dtype]

    def __getitem__(self, index: Any) -> Tensor:
        return self.read().to(self.dtype)


@dataclass(frozen=True)
class Found:
    """The weights of a folder: exact weights by module, the tensors they consist of, and decoded
    weights with the reason why lowbit cannot represent them."""

    weights: Mapping[str, ForeignWeight]
    modules: Mapping[str, Module]
    told: str
    decoded: Mapping[str, tuple[Decoded, str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Kind:
    """The folders of a format. says: whether a quantization_config has this format. file: the name
    of the file that has this config if config.json does not, or None."""

    says: Callable[[Mapping[str, Any]], bool]
    file: str | None = None

    def described(self, folder: Path) -> Mapping[str, Any] | None:
        """The quantization config of a folder; None if it has another format."""
        if not (folder / "config.json").is_file():
            return None
        stored = read_json(folder / "config.json")
        told = stored.get("quantization_config") if isinstance(stored, dict) else None
        if isinstance(told, dict):
            with reading(folder / "config.json"):
                return told if self.says(told) else None
        if self.file is None or not (folder / self.file).is_file():
            return None
        beside = read_json(folder / self.file)
        return beside if isinstance(beside, dict) else None


def folder_reader(kind: Kind, find: Callable[[ForeignFolder], Found]) -> Reader:
    """A reader of folders of a kind. find: the weights of one."""
    return Reader(partial(_recognizes, kind), partial(_open, kind, find))


def granularity(columns: int, groups: int, told: int, name: str) -> Granularity:
    """The granularity of a row of `columns` inputs with `groups` scales. told: the group size in
    the config. Raises InputError if they do not match."""
    if groups == 1:
        return Granularity("channel")
    size = told if told > 0 and -(-columns // told) == groups else columns // groups
    if size < 2 or -(-columns // size) != groups:
        raise InputError(f"{name} has {groups} groups for {columns} inputs")
    return Granularity("group", size)


def _recognizes(kind: Kind, path: Path) -> bool:
    return path.is_dir() and kind.described(path) is not None


@contextmanager
def _open(
    kind: Kind,
    find: Callable[[ForeignFolder], Found],
    path: Path,
    decoding: bool,
) -> Iterator[Source]:
    check_folder(path)
    quantization = kind.described(path)
    assert quantization is not None
    config = read_config(path, foreign_too=True)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    files = _files(path)
    held = held_by(files, quantized=True)
    with open_tensors(files) as tensors:
        with _reading_config(path):
            found = find(ForeignFolder(path, quantization, tensors))
        for name, (_, reason) in found.decoded.items():
            if not decoding:
                raise InputError(
                    f"{name} is {reason}, whose codes lowbit cannot keep:"
                    " --requantize RECIPE decodes such weights and quantizes them again"
                )
        used = {f"{m.name}.{own}" for m in found.modules.values() for own in m.tensors}
        floats = {name: tensor for name, tensor in tensors.items() if name not in used}
        floats |= {f"{name}.weight": decoded for name, (decoded, _) in found.decoded.items()}
        yield Source(
            Checkpoint(path, config, files, held),
            {f"{name}.weight": weight for name, weight in found.weights.items()},
            floats,
            found.told,
            partial(_companions, path),
            {name: reason for name, (_, reason) in found.decoded.items()},
        )


@contextmanager
def _reading_config(path: Path) -> Iterator[None]:
    """A context that turns UsageError into InputError: an unsupported option is an error of the
    folder, not of the user."""
    try:
        with reading(path):
            yield
    except UsageError as error:
        raise InputError(f"{path} cannot be imported: {error}") from error


def _files(path: Path) -> list[Path]:
    """The weight files: with transformers' names, or, as AutoGPTQ and AutoAWQ once wrote them, the
    only safetensors file of the folder."""
    own = sorted(path.glob("*.safetensors"))
    single = len(own) == 1 and not (path / "model.safetensors.index.json").exists()
    return own if single else weight_files(path)


def _companions(path: Path, folder: Path) -> None:
    """Copy the tokenizer and other small files, except those about the quantization."""
    copy_companions(path, folder)
    for name in DESCRIPTIONS:
        (folder / name).unlink(missing_ok=True)
