"""Float checkpoints on disk: a folder or a hub id, its config, its class, its tensors one by one.

Only safetensors are read, with pread: mapped pages would count as resident memory. No pickle, no
remote code, and no network unless the name is not a folder and hubs are allowed.
"""

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights
from transformers.modeling_utils import str_to_torch_dtype

from lowbit.errors import InputError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
# Weights in forms that are not read, and so not copied either.
FOREIGN_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".ot", ".gguf")


def find(model: str) -> Path:
    """The local folder of a model: a path, or a hub id that is downloaded. Raises InputError."""
    folder = Path(model)
    if folder.is_dir():
        return folder
    if folder.exists():
        raise InputError(f"{model} is a file; a model is a folder with config.json and safetensors")
    if model.count("/") > 1 or model.startswith((".", "/", "~")):
        raise InputError(f"there is no folder {model}")
    try:
        return Path(snapshot_download(model, ignore_patterns=[f"*{s}" for s in FOREIGN_SUFFIXES]))
    except (OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise InputError(
            f"there is no folder {model}, and no hub could be asked for it: {reason}"
        ) from error


def read_config(folder: Path) -> PreTrainedConfig:
    """config.json as a transformers config. Raises InputError."""
    file = folder / "config.json"
    if not file.is_file():
        raise InputError(f"{folder} has no config.json, so it is no transformers model")
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(stored, dict):
            raise ValueError("it is not a mapping")
        if not isinstance(stored.get("quantization_config") or {}, dict):
            raise ValueError("its quantization_config is not a mapping")
        if "transformers_weights" in stored:
            raise InputError(
                f"{file} redirects to the weights {stored['transformers_weights']!r}"
                f" (transformers_weights), but only {SINGLE} and {INDEX} are read"
            )
        if "auto_map" in stored and stored.get("model_type") not in transformers.CONFIG_MAPPING:
            raise InputError(f"{folder} needs its own Python code, and remote code is never run")
        config: PreTrainedConfig = AutoConfig.from_pretrained(folder, local_files_only=True)
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"{file} is not a valid transformers config: {reason}") from error
    return config


def float_config(folder: Path) -> PreTrainedConfig:
    """The same of a float model. Raises InputError for one that is quantized already."""
    config = read_config(folder)
    if getattr(config, "quantization_config", None) is not None:
        method = dict(config.quantization_config).get("quant_method")
        raise InputError(f"{folder} is already quantized ({method}); quantize the float model")
    return config


def model_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """The class that config.json names, or the bare model where it names none."""
    for name in config.architectures or ():
        found = getattr(transformers, name, None) if isinstance(name, str) else None
        if isinstance(found, type) and issubclass(found, PreTrainedModel):
            return found
    bare = transformers.MODEL_MAPPING.get(type(config), None)
    if bare is None:
        raise InputError(
            f"this transformers has no model class for {config.architectures or config.model_type}"
        )
    return bare[0] if isinstance(bare, tuple) else bare


def skeleton(config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """The model without any data, on the meta device."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device("meta"), no_init_weights():
            model = model_class(config)(config).eval()
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
        try:
            names = sorted(
                set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{index} is not a valid index of shards") from error
        # A hostile index could name files elsewhere.
        foreign = [n for n in names if not isinstance(n, str) or Path(n).name != n]
        if foreign:
            raise InputError(f"{index} names {foreign[0]!r}, which is not a file beside it")
        absent = [n for n in names if not (folder / n).is_file()]
        if absent:
            raise InputError(f"{folder} lacks {len(absent)} of {len(names)} shards: {absent[0]}")
        return [folder / name for name in names]
    pickles = sorted(p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pth"))
    if pickles:
        raise InputError(
            f"{folder} holds {pickles[0]}, a pickle, which is never opened; where you trust it,"
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
            if file.stat().st_size == 0:
                raise InputError(f"{file} is empty")
            try:
                opened = stack.enter_context(safe_open(file, framework="pt", backend="pread"))
            except (SafetensorError, OSError) as error:
                raise InputError(f"{file} is not a complete safetensors file: {error}") from error
            for name in opened.keys():  # noqa: SIM118  not a mapping
                if name in tensors:
                    raise InputError(f"{file} repeats the tensor {name} of another shard")
                tensor = opened.get_slice(name)
                tensors[name] = tensor if all(tensor.get_shape()) else _Empty(tensor)
        if not tensors:
            raise InputError(f"{files[0]} holds no tensors")
        yield tensors
