"""A hash of each tensor that a folder holds, and of what its config.json says: written with it, and
compared on request.

    "hashes": {"config": "…", "tensors": {"bert.pooler.dense.bias": "…", …}}

in quantization_config. A hash is the first 128 bits of SHA-256, of which processors have
instructions: of a tensor, over its dtype and shape as the header of safetensors has them and over
its bytes; of the config, over its JSON with sorted keys and without the hashes. They tell what was
damaged. Whoever changes a file on purpose can change its hash too.
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
    """That of a tensor as save_file writes it."""
    found = _begun(_NAMES[tensor.dtype], tensor.shape)
    flat = tensor.detach().cpu().contiguous().flatten()
    if flat.numel():
        found.update(flat.view(torch.uint8).numpy())
    return found.hexdigest()[:DIGITS]


def config_hash(stored: Mapping[str, Any]) -> str:
    """That of the value of a config.json, whatever hashes it holds."""
    quantization = dict(stored["quantization_config"])
    quantization.pop("hashes", None)
    told = {**stored, "quantization_config": quantization}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:DIGITS]


def hashes(stored: Mapping[str, Any], tensors: Mapping[str, str]) -> dict[str, Any]:
    """What config.json keeps. stored: its value, but for this; tensors: hashes by name."""
    return {"config": config_hash(stored), "tensors": dict(sorted(tensors.items()))}


def verify(folder: str | Path) -> int:
    """Compare all tensors of a folder that lowbit wrote, and its config.json, with their hashes.

    It reads each byte once, in bounded memory.

    Args:
        folder: The folder.

    Returns:
        The number of tensors.

    Raises:
        InputError: with the name of the first tensor that differs, and for a folder without hashes.
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
    """(name, hash) of each tensor of a file that safetensors has opened without complaint."""
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
