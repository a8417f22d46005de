"""Hashes of all tensors of a folder and of its config.json, to detect damage.

    "hashes": {"config": "…", "tensors": {"bert.pooler.dense.bias": "…", …}}

in quantization_config. A hash is the first 128 bits of SHA-256. The hash of a tensor covers dtype
and shape, as written in the safetensors header, and the bytes. The hash of the config covers its
JSON with sorted keys and without the hashes. Hashes detect damage, not intent: a person who changes
a file can change its hash too.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_utils import str_to_torch_dtype

from lowbit.checkpoint.claims import read_header
from lowbit.checkpoint.documents import read_json, reading
from lowbit.checkpoint.read import find, open_tensors, weight_files
from lowbit.errors import InputError

DIGITS = 32
AT_ONCE = 1 << 24
_NAMES = {dtype: name for name, dtype in str_to_torch_dtype.items()}


def tensor_hash(tensor: Tensor) -> str:
    """The hash of a tensor as `save_file` writes it."""
    found = _begun(_NAMES[tensor.dtype], tensor.shape)
    flat = tensor.detach().cpu().contiguous().flatten()
    if flat.numel():
        found.update(flat.view(torch.uint8).numpy())
    return found.hexdigest()[:DIGITS]


def config_hash(stored: Mapping[str, Any]) -> str:
    """The hash of the value of a config.json, without its hashes."""
    quantization = dict(stored["quantization_config"])
    quantization.pop("hashes", None)
    told = {**stored, "quantization_config": quantization}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:DIGITS]


def hashes(stored: Mapping[str, Any], tensors: Mapping[str, str]) -> dict[str, Any]:
    """The value of `hashes` in config.json. stored: the rest of config.json; tensors: hashes by
    name."""
    return {"config": config_hash(stored), "tensors": dict(sorted(tensors.items()))}


def verify(folder: str | Path) -> int:
    """Compare all tensors and the config.json of a folder with their hashes.

    Each byte is read once, in bounded memory.

    Args:
        folder: A folder that lowbit wrote, or a hub id.

    Returns:
        The number of tensors.

    Raises:
        InputError: if a tensor or the config differs from its hash (the message names the first
            one), if the folder has no hashes, or if it cannot be read.
    """
    folder = find(folder)
    file = folder / "config.json"
    stored = read_json(file)
    kept = _kept(stored)
    if kept is None:
        raise InputError(
            f"{folder} holds no hashes, because an earlier lowbit wrote it: load the model"
            " and save it again"
        )
    files = weight_files(folder)
    with open_tensors(files) as tensors:
        names = set(tensors)
    expected = kept["tensors"]
    if names != set(expected):
        odd = min(names ^ set(expected))
        told = "lacks" if odd in expected else "holds, and lowbit did not write,"
        raise InputError(f"{folder} {told} the tensor {odd}")
    if config_hash(stored) != kept["config"]:
        raise InputError(f"{file} is not what lowbit wrote: something in it was changed")
    for path in files:
        for name, found in _hashes_of(path):
            if found != expected[name]:
                raise InputError(f"{path} is damaged: {name} is not what lowbit wrote")
    return len(names)


def _kept(stored: Any) -> dict[str, Any] | None:
    quantization = stored.get("quantization_config") if isinstance(stored, dict) else None
    kept = quantization.get("hashes") if isinstance(quantization, dict) else None
    whole = isinstance(kept, dict) and isinstance(kept.get("tensors"), dict) and "config" in kept
    return kept if whole else None


def _hashes_of(file: Path) -> Iterable[tuple[str, str]]:
    """(name, hash) of each tensor of a file that safetensors can open."""
    with reading(file), file.open("rb") as opened:
        start = 8 + int.from_bytes(opened.read(8), "little")
        for name, entry in read_header(file).items():
            found = _begun(entry["dtype"], entry["shape"])
            begin, end = entry["data_offsets"]
            opened.seek(start + begin)
            left = end - begin
            while left:
                piece = opened.read(min(left, AT_ONCE))
                if not piece:
                    raise InputError(f"{file} ends inside {name}")
                found.update(piece)
                left -= len(piece)
            yield name, found.hexdigest()[:DIGITS]


def _begun(dtype: str, shape: Iterable[int]) -> Any:
    return hashlib.sha256(f"{dtype} {list(shape)}\n".encode())
