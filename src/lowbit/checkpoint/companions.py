"""What travels beside the weights: tokenizers, chat templates, modules of sentence-transformers."""

import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.modeling_utils import str_to_torch_dtype

from lowbit.checkpoint.documents import MOST_JSON, read_bytes
from lowbit.checkpoint.read import FOREIGN_SUFFIXES, INDEX, SINGLE
from lowbit.checkpoint.shards import MAX_SHARD_BYTES
from lowbit.errors import InputError

# How older sentence-transformers keep the weights of a module in its subfolder.
PICKLED = "pytorch_model.bin"
# Root files that are written anew.
WRITTEN = ("config.json", "README.md")


def copy_companions(source: Path, folder: Path) -> None:
    """Tokenizer, chat template, generation config, processor, and what sentence-transformers and
    pipelines keep in subfolders; no weights of this model in any form, no code, and no models and
    training checkpoints that lie in subfolders.

    Weights that a subfolder with a config holds as a pickle of plain tensors become safetensors.
    Raises InputError for any other pickle there, for one of more than MAX_SHARD_BYTES, and for a
    config.json of more than MOST_JSON. Pipes and devices do not travel.
    """
    models = {file.parent for file in source.rglob("*.json") if _marks_a_model(file)} - {source}
    for file in sorted(source.rglob("*")):
        relative = file.relative_to(source)
        root = len(relative.parts) == 1
        if (
            not file.is_file()
            or any(part.startswith(".") for part in relative.parts)
            or not models.isdisjoint(file.parents)
            or (root and (file.suffix == ".safetensors" or file.name in (INDEX, *WRITTEN)))
        ):
            continue
        copied = folder / relative
        if file.suffix not in (*FOREIGN_SUFFIXES, ".py"):
            copied.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copied)
        elif not root and file.name == PICKLED and _stands_alone(file):
            copied.parent.mkdir(parents=True, exist_ok=True)
            save_file(_plain_tensors(file), copied.with_name(SINGLE), metadata={"format": "pt"})


def _marks_a_model(file: Path) -> bool:
    """Whether the folder of a JSON file holds a model or a training checkpoint."""
    if file.name == "config.json" and file.is_file():
        return b'"model_type"' in read_bytes(file, MOST_JSON)
    return file.name == "trainer_state.json"


def _stands_alone(pickled: Path) -> bool:
    """Whether a module of sentence-transformers has its weights here and nowhere else."""
    return pickled.with_name("config.json").is_file() and not pickled.with_name(SINGLE).exists()


def _plain_tensors(file: Path) -> dict[str, Tensor]:
    """A pickle of tensors by name, read without running any code. Raises InputError."""
    _check_size(file, file.stat().st_size)
    with _refusing(file):
        _check_size(file, _inflated(file))
        tensors = torch.load(file, map_location="cpu", weights_only=True)
        if not isinstance(tensors, dict) or not all(map(_is_plain, tensors.items())):
            raise TypeError("it holds something else than tensors by name")
    # An expanded tensor has one number in the file, and as many as it likes in memory.
    _check_size(file, sum(tensor.nbytes for tensor in tensors.values()))
    packed = torch.contiguous_format
    return {name: tensor.detach().clone(memory_format=packed) for name, tensor in tensors.items()}


def _inflated(file: Path) -> int:
    """The bytes of a file that may be an archive. torch.save never compresses one, but torch.load
    would decompress it."""
    if not zipfile.is_zipfile(file):
        return file.stat().st_size
    with zipfile.ZipFile(file) as archive:
        return sum(entry.file_size for entry in archive.infolist())


def _is_plain(entry: tuple[object, object]) -> bool:
    """Whether this is a name and a tensor that safetensors can hold."""
    name, tensor = entry
    return (
        isinstance(name, str)
        and isinstance(tensor, Tensor)
        and type(tensor) in (Tensor, nn.Parameter)
        and tensor.layout is torch.strided
        and not tensor.is_nested
        and not tensor.is_meta
        and tensor.dtype in str_to_torch_dtype.values()
    )


def _check_size(file: Path, size: int) -> None:
    if size > MAX_SHARD_BYTES:
        raise InputError(
            f"{file} is a pickle of {size:,} bytes, of which at most {MAX_SHARD_BYTES:,} are read;"
            f" save it as {SINGLE}"
        )


@contextmanager
def _refusing(file: Path) -> Iterator[None]:
    """Whatever a damaged pickle makes zipfile and torch raise inside is one sentence."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"{file} is not a pickle of plain tensors; if you trust it, save it as {SINGLE}"
        ) from error
