"""Float checkpoints on disk: a folder or a hub id, its config, its class, its tensors one by one.

Only safetensors are read, with pread: mapped pages would count as resident memory. No pickle, no
remote code, and no network unless the name is not a folder and hubs are allowed.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import snapshot_download
from safetensors import safe_open
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights
from transformers.modeling_utils import str_to_torch_dtype

from lowbit.checkpoint import foreign
from lowbit.checkpoint.claims import Held, check_counts, describing, held_by
from lowbit.checkpoint.documents import check_folder, check_regular, read_json, reading, reason
from lowbit.errors import InputError, LowbitError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
# Weights in forms that are not read, and so not copied either.
FOREIGN_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".ot", ".gguf")


def find(model: str | Path) -> Path:
    """The local folder of a model: a path, or a hub id that is downloaded. Raises InputError."""
    model = str(model)
    folder = Path(model)
    if "\0" in model:
        raise InputError(f"{model!r} is not the name of a folder")
    if folder.is_dir():
        check_folder(folder)
        return folder
    if folder.exists():
        known = foreign.FILES.get(folder.suffix)
        told = f"{model} is a file" + (f" of {known}" if known else "")
        importable = folder.suffix in foreign.IMPORTED_FILES
        remedy = "; `lowbit import` makes one of it" if importable else ""
        raise InputError(f"{told}; a model is a folder with config.json and safetensors{remedy}")
    if model.count("/") > 1 or model.startswith((".", "/", "~")):
        raise InputError(f"there is no folder {model}")
    try:
        return Path(snapshot_download(model, ignore_patterns=[f"*{s}" for s in FOREIGN_SUFFIXES]))
    except Exception as error:  # the network, a proxy, a broken cache, a name that is none
        raise InputError(
            f"there is no folder {model}, and it could not be looked up on the hub: {reason(error)}"
        ) from error


def read_config(folder: Path, foreign_too: bool = False) -> PreTrainedConfig:
    """config.json as a transformers config. Raises InputError; also for a model that another
    program quantized, unless `foreign_too`."""
    file = folder / "config.json"
    if not file.is_file():
        raise InputError(
            f"{folder} has no config.json, so it is not a transformers model{foreign.hint(folder)}"
        )
    try:
        stored = read_json(file)
        if not isinstance(stored, dict):
            raise InputError("it is not a mapping")
        if not isinstance(stored.get("quantization_config") or {}, dict):
            raise InputError("its quantization_config is not a mapping")
    except InputError as error:
        raise InputError(f"{file} is not a valid transformers config: {error}") from error
    quantized = stored.get("quantization_config") or {}
    if quantized.get("quant_method") == foreign.METHOD and "model_type" not in stored:
        raise InputError(
            f"{folder} is not a transformers model but a module that lowbit.save wrote:"
            " lowbit.load(module, folder) reads it"
        )
    if "pretrained_cfg" in stored and "model_type" not in stored:
        raise InputError(
            f"{folder} is a model of timm, not of transformers: lowbit.quantize(timm.create_model("
            "name), recipe) quantizes it in memory, lowbit.save writes it"
        )
    check_counts(stored, file)
    if not foreign_too:
        foreign.check_config(folder, stored)
    if "transformers_weights" in stored:
        raise InputError(
            f"{file} names the weights {stored['transformers_weights']!r}"
            f" (transformers_weights), but lowbit reads only {SINGLE} and {INDEX}"
        )
    if "auto_map" in stored and stored.get("model_type") not in transformers.CONFIG_MAPPING:
        raise InputError(f"{folder} needs its own Python code, and remote code is never run")
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(folder, local_files_only=True)
    except LowbitError:
        raise
    except Exception as error:  # each config class checks its fields in its own way
        raise InputError(f"{file} is not a valid transformers config: {reason(error)}") from error
    return config


def float_config(folder: Path) -> PreTrainedConfig:
    """The same of a float model. Raises InputError for one that is quantized already."""
    config = read_config(folder)
    if getattr(config, "quantization_config", None) is not None:
        raise InputError(
            f"{folder} is already quantized ({foreign.METHOD}); quantize the float model"
        )
    return config


@dataclass(frozen=True)
class Checkpoint:
    """A folder of which the config, the index and the headers were read, and no number."""

    folder: Path
    config: PreTrainedConfig
    files: list[Path]
    held: Held


def open_checkpoint(folder: Path, config: PreTrainedConfig) -> Checkpoint:
    """What the files of a folder hold. Raises InputError for what is incomplete, claims more than
    it holds, or was written by another quantizer."""
    files = weight_files(folder)
    quantized = getattr(config, "quantization_config", None) is not None
    held = held_by(files, quantized)
    foreign.check_tensors(folder, held.names)
    return Checkpoint(folder, config, files, held)


def model_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """The class that config.json names, or the bare model where it names none."""
    named = config.architectures
    for name in named if isinstance(named, list | tuple) else ():
        found = getattr(transformers, name, None) if isinstance(name, str) else None
        if isinstance(found, type) and issubclass(found, PreTrainedModel):
            return found
    bare = transformers.MODEL_MAPPING.get(type(config), None)
    if bare is None:
        raise InputError(
            f"this transformers has no model class for {config.architectures or config.model_type}"
        )
    return bare[0] if isinstance(bare, tuple) else bare


def skeleton(checkpoint: Checkpoint, dtype: torch.dtype) -> PreTrainedModel:
    """The model without any data, on the meta device. Raises InputError for a config that
    describes none, or a larger one than the files can hold."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with describing(checkpoint.held, checkpoint.folder):
            with reading(checkpoint.folder / "config.json"):
                with torch.device("meta"), no_init_weights():
                    model = model_class(checkpoint.config)(checkpoint.config).eval()
                model.tie_weights()
        return model
    finally:
        torch.set_default_dtype(before)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint, the same that transformers reads.

    Raises InputError for what cannot be read.
    """
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    index = folder / INDEX
    if index.is_file():
        stored = read_json(index)
        weight_map = stored.get("weight_map") if isinstance(stored, dict) else None
        if not isinstance(weight_map, dict) or not weight_map:
            raise InputError(f"{index} is not a valid index of shards: it has no weight_map")
        named = list(weight_map.values())
        # A hostile index could name files elsewhere.
        strange = [n for n in named if not isinstance(n, str) or Path(n).name != n or "\0" in n]
        if strange:
            raise InputError(f"{index} names {strange[0]!r}, which is not a file beside it")
        names = sorted(set(named))
        absent = [n for n in names if not (folder / n).is_file()]
        if absent:
            raise InputError(f"{folder} lacks {len(absent)} of {len(names)} shards: {absent[0]}")
        return [folder / name for name in names]
    if (told := foreign.written_by(folder)) is not None:
        raise InputError(f"{folder} has no {SINGLE}: {told}")
    pickles = sorted(p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pth"))
    if pickles:
        raise InputError(
            f"{folder} holds {pickles[0]}, a pickle, which lowbit never opens; if you trust it,"
            " convert it with from_pretrained(...) and save_pretrained(...)"
        )
    raise InputError(f"{folder} has config.json but no weights (no {SINGLE} and no {INDEX})")


class _Empty:
    """A slice without elements, which safetensors opens but does not read."""

    def __init__(self, tensor: Any) -> None:
        self.get_shape, self.get_dtype = tensor.get_shape, tensor.get_dtype

    def __getitem__(self, _: Any) -> torch.Tensor:
        return torch.empty(self.get_shape(), dtype=str_to_torch_dtype[self.get_dtype()])


@contextmanager
def open_tensors(files: list[Path]) -> Iterator[dict[str, Any]]:
    """Name -> a slice that reads its tensor when it is asked for it. Raises InputError."""
    tensors: dict[str, Any] = {}
    with ExitStack() as stack:
        for file in files:
            check_regular(file)
            if file.stat().st_size == 0:
                raise InputError(f"{file} is empty")
            try:
                opened = stack.enter_context(safe_open(file, framework="pt", backend="pread"))
            except Exception as error:
                raise InputError(
                    f"{file} is not a complete safetensors file: {reason(error)}"
                ) from error
            for name in opened.keys():  # noqa: SIM118  not a mapping
                if name in tensors:
                    raise InputError(f"{file} repeats the tensor {name} of another shard")
                with reading(f"{file}, tensor {name}"):
                    tensor = opened.get_slice(name)
                    tensors[name] = tensor if all(tensor.get_shape()) else _Empty(tensor)
        if not tensors:
            raise InputError(f"{files[0]} holds no tensors")
        yield tensors
