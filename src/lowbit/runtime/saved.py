"""Save captured graphs of a model to a file, so that other processes need not capture them.

The file has graphs, not addresses or packed weights. A first call builds its program from a graph
in a tenth of the time. A file is valid for one set of versions, configuration and weights; reading
checks these.
"""

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from lowbit.checkpoint.atomic_write import staged_file, writing
from lowbit.checkpoint.documents import read_json, reading
from lowbit.checkpoint.hashes import tensor_hash
from lowbit.errors import InputError
from lowbit.runtime import graph_file
from lowbit.runtime.capture import Captured
from lowbit.runtime.signature import Signature

FILE = "lowbit_programs.json"
FORMAT = 1
MOST_BYTES = 1 << 26


def made_with(model: nn.Module) -> dict[str, Any]:
    """The versions, configuration and weights for which graphs of a model are valid."""
    config = getattr(model, "config", None)
    told = config.to_dict() if config is not None else {}
    for name in ("_name_or_path", "transformers_version", "quantization_config"):
        told.pop(name, None)
    seen = hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        if isinstance(tensor, Tensor):
            seen.update(f"{name} {tensor_hash(tensor)}\n".encode())
    return {
        "lowbit": importlib.metadata.version("lowbit"),
        "torch": torch.__version__.partition("+")[0],
        "transformers": transformers.__version__,
        "class": type(model).__name__,
        "model": seen.hexdigest(),
    }


def write(
    output: Path, captured: Mapping[str, tuple[nn.Module, Mapping[Signature, Captured]]]
) -> None:
    """Write a file. captured: each model and its graphs, by name."""
    models = {
        name: {
            "made_with": made_with(model),
            "programs": [
                {"arguments": signature.to_json(), **graph_file.written(graph)}
                for signature, graph in graphs.items()
            ],
        }
        for name, (model, graphs) in captured.items()
    }
    with staged_file(output) as new, writing(new):
        new.write_text(json.dumps({"format": FORMAT, "models": models}))


def read(file: Path, name: str, model: nn.Module) -> dict[Signature, Captured] | str:
    """The graphs of the model with this name in a file, or a sentence why they do not fit `model`.
    Raises InputError if the file is damaged."""
    stored = read_json(file, MOST_BYTES)
    with reading(file):
        if stored["format"] != FORMAT:
            raise InputError(f"{file} has format {stored['format']}; format {FORMAT} is read")
        own = stored["models"].get(name)
        if own is None:
            return f"{file} has no programs for this model."
        here = made_with(model)
        for what, then in own["made_with"].items():
            if then != here[what]:
                told = "other weights" if what == "model" else f"{what} {then}, not {here[what]}"
                return f"The programs in {file} were made with {told}, and are made anew."
        found = {}
        for said in own["programs"]:
            signature = Signature.of_json(said["arguments"])
            found[signature] = graph_file.read(said, model, dict(signature.others))
        return found
