"""What a quantized checkpoint holds, and what it takes in memory when it runs."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from lowbit.checkpoint.documents import reading
from lowbit.checkpoint.foreign import METHOD
from lowbit.checkpoint.guard import ADVICE
from lowbit.checkpoint.load import load_model
from lowbit.checkpoint.read import find, open_tensors, read_config, weight_files
from lowbit.conversion.config import LowbitConfig
from lowbit.conversion.footprint import Footprint, ModuleSize, footprint, resident_bytes
from lowbit.errors import InputError
from lowbit.formats.error import WeightError
from lowbit.inspect.speed import present, slow_layers
from lowbit.nn import QuantEmbedding, QuantExperts, QuantModule
from lowbit.nn.eval_mode import unmasked


@dataclass(frozen=True)
class ModuleRow:
    """One module: its size, how its weight is stored, the kernel that serves it here, and why; and
    the share of it that one token reads: of experts the chosen ones, of a table a row.

    The kernel is empty for a module that is plain float.
    """

    size: ModuleSize
    stored_as: str
    kernel: str = ""
    why: str = ""
    read: float = 1.0


@dataclass(frozen=True)
class Inspection:
    """`errors` are those recorded when the weights were quantized; `guarded`: whether a program
    without lowbit fails to load the folder, instead of computing with wrong weights; `slow`: in
    sentences, which layers were slower than in float32 when they were measured (speed.py)."""

    rows: tuple[ModuleRow, ...]
    footprint: Footprint
    resident_after_forward: int
    errors: dict[str, WeightError]
    guarded: bool = False
    slow: tuple[str, ...] = ()

    @property
    def kernels(self) -> tuple[tuple[str, str], ...]:
        """(kernel, why it was chosen), each once, in the order of the model."""
        return tuple(dict.fromkeys((row.kernel, row.why) for row in self.rows if row.kernel))

    @property
    def quantized_share(self) -> float:
        """The share of all parameters that is quantized, 0 … 1."""
        quantized = sum(row.size.parameters for row in self.rows if row.kernel)
        return quantized / max(1, self.footprint.parameters)

    @property
    def parameters_read(self) -> int:
        """Parameters that the model reads for one token."""
        return round(sum(row.size.parameters * row.read for row in self.rows))

    @property
    def bytes_read(self) -> int:
        """Stored bytes that the model reads for one token."""
        return round(sum(row.size.stored_bytes * row.read for row in self.rows))

    def to_dict(self) -> dict[str, Any]:
        return {
            **self.footprint.to_dict(),
            "quantized_share": self.quantized_share,
            "parameters_read_per_token": self.parameters_read,
            "bytes_read_per_token": self.bytes_read,
            "resident_bytes_after_forward": self.resident_after_forward,
            "guarded": self.guarded,
            "slow": list(self.slow),
            "modules": [
                {
                    "name": row.size.name,
                    "module": row.size.module,
                    "stored_as": row.stored_as,
                    "parameters": row.size.parameters,
                    "stored_bytes": row.size.stored_bytes,
                    "float_bytes": row.size.float_bytes,
                    "bits_per_weight": row.size.bits_per_weight,
                    "kernel": row.kernel,
                    "why": row.why,
                }
                | (self.errors[row.size.name].to_dict() if row.size.name in self.errors else {})
                for row in self.rows
            ],
        }


def inspect_checkpoint(folder: str | Path) -> Inspection:
    """Load a checkpoint that lowbit wrote, run it once, and account for it.

    Raises InputError where it is no such checkpoint or is not complete.
    """
    folder = find(folder)
    config = read_config(folder)
    stored = getattr(config, "quantization_config", None)
    if stored is None or dict(stored).get("quant_method") != METHOD:
        raise InputError(f"{folder} was not quantized with lowbit")
    with open_tensors(weight_files(folder)) as tensors:
        guarded = ADVICE in tensors
    return replace(inspect_model(load_model(folder), folder), guarded=guarded)


def inspect_model(model: PreTrainedModel, folder: Path | None = None) -> Inspection:
    """Account for a model that is loaded, float or quantized, and run it once; `folder` is where
    its files lie."""
    size = footprint(model, folder)
    run_once(model)
    owners = {module: name for name, module in model.named_modules()}
    tied = {
        n for n, m in model.named_modules() if isinstance(m, QuantModule) and m.tied_to is not None
    }
    rows = [_row(model, module) for module in size.modules if module.name not in tied]
    rows += [
        ModuleRow(
            ModuleSize(name, type(module).__name__, 0, 0, 0), f"tied to {owners[module.tied_to]}"
        )
        for name, module in model.named_modules()
        if isinstance(module, QuantModule) and module.tied_to is not None
    ]
    config = getattr(model.config, "quantization_config", None)
    errors = config.errors if isinstance(config, LowbitConfig) else {}
    resident = resident_bytes(model)
    slow = tuple(map(str, slow_layers(present(model))))
    return Inspection(tuple(rows), size, resident, errors, slow=slow)


def run_once(model: PreTrainedModel) -> None:
    """One forward pass over a few tokens. Raises InputError for a model that reads no tokens."""
    if model.main_input_name != "input_ids":
        raise InputError(f"{type(model).__name__} reads {model.main_input_name}, not tokens")
    inputs = dict(model.dummy_inputs)
    if model.config.is_encoder_decoder:
        inputs.setdefault("decoder_input_ids", inputs["input_ids"])
    what = f"the {type(model).__name__} of these files"
    with torch.no_grad(), unmasked(model), reading(what, "run"):
        model(**inputs)


def _row(model: PreTrainedModel, size: ModuleSize) -> ModuleRow:
    module = model.get_submodule(size.name)
    read = _share_read(model, module)
    if isinstance(module, QuantModule):
        kernel, _, why = module.kernel().partition(": ")
        return ModuleRow(size, module.describe(), kernel, why, read)
    dtypes = {str(p.dtype).removeprefix("torch.") for p in module.parameters(recurse=False)}
    return ModuleRow(size, " ".join(sorted(dtypes)), read=read)


def _share_read(model: PreTrainedModel, module: nn.Module) -> float:
    """How much of a module that has been run one token reads."""
    if isinstance(module, QuantExperts):
        return (module.slots or module.experts) / module.experts
    if not isinstance(module, QuantEmbedding | nn.Embedding):
        return 1.0
    head = model.get_output_embeddings()
    shared = isinstance(head, QuantModule) and head.tied_to is module
    shared |= head is not None and head._parameters.get("weight") is module._parameters.get(
        "weight", head
    )
    return 1.0 if shared else 1 / max(1, module.num_embeddings)
