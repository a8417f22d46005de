"""Write the folder of a quantized model tensor by tensor: the sink of a streamed load."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from lowbit.checkpoint.documents import reading
from lowbit.checkpoint.guard import guards
from lowbit.checkpoint.hashes import hashes
from lowbit.checkpoint.shards import ShardWriter
from lowbit.conversion.config import LowbitConfig
from lowbit.conversion.expert_by_expert import Experts
from lowbit.conversion.footprint import Footprint, footprint
from lowbit.conversion.one_weight import Solve, quantize_weight, stored_entry, tied_entry
from lowbit.conversion.plan import Plan, Quantize
from lowbit.conversion.recipe import Recipe
from lowbit.conversion.skeleton import build
from lowbit.conversion.streamed_load import QuantizedInFile
from lowbit.errors import InputError
from lowbit.formats import QTensor
from lowbit.formats.error import WeightError
from lowbit.formats.validity import faults, not_a_number, not_finite


class QuantizedFolder:
    """Receives the tensors of a float `model` on the meta device, quantizes those in `plan` unless
    they are already quantized, and writes all. errors: of the weights that it quantized."""

    def __init__(
        self,
        folder: Path,
        model: PreTrainedModel,
        plan: Plan,
        max_shard_bytes: int,
        solve: Solve = Quantize.nearest,
    ) -> None:
        self.folder, self.model, self.plan, self.solve = folder, model, plan, solve
        self.writer = ShardWriter(folder, max_shard_bytes)
        self.shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
        self.parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
        self.owners: Mapping[str, Quantize] = {str(d.weight): d for d in plan.owners}
        self.errors: dict[str, WeightError] = {}
        self.entries = {d.name: tied_entry(d) for d in plan.tied}

    @property
    def recipe(self) -> Recipe:
        return self.plan.recipe

    def take(self, name: str, tensor: Tensor | Experts | QuantizedInFile) -> None:
        """Receive one tensor under its name in the float model. Raises InputError."""
        decision = self.owners.get(name)
        quantized = isinstance(tensor, QuantizedInFile)
        expected = decision.weights.shape if decision and quantized else self.shapes[name]
        if tensor.shape != expected:
            raise InputError(
                f"{name} has the shape {list(tensor.shape)} in the checkpoint,"
                f" {list(expected)} in the model that config.json describes"
            )
        if decision is None:
            assert isinstance(tensor, Tensor)
            # As numbers.py checks a model that is loaded.
            test = not_finite if name in self.parameters else not_a_number
            if tensor.is_floating_point() and (told := test(tensor)):
                raise InputError(f"{name} {told}, so the model cannot compute with it")
            self.writer.add(name, tensor)
            return
        if isinstance(tensor, QuantizedInFile):
            stored = tensor.read()
            _check(name, stored, decision)
            self._add(decision, stored, stored_entry(decision, stored))
            return
        found = quantize_weight(decision, tensor, self.solve)
        self.errors[decision.name] = found.error
        self._add(decision, found.stored, found.entry)

    def finish(self, config: PreTrainedConfig, dtype: torch.dtype) -> Footprint:
        """Write the last shard, the guards and config.json, and return the sizes. Afterwards
        `model` is the quantized model, without data."""
        modules = {d.name: self.entries[d.name] for d in self.plan.quantized}
        quantized = LowbitConfig(self.recipe, modules, self.errors)
        for name, empty in guards(self.model.base_model_prefix, quantized.modules).items():
            self.writer.add(name, empty)
        self.writer.close()
        config.quantization_config = quantized
        quantized.hashes = hashes(json.loads(config.to_json_string()), self.writer.hashes)
        with reading("config.json"):
            config.save_pretrained(self.folder)
        build(self.model, quantized, dtype)
        return footprint(self.model, self.folder)

    def _add(self, decision: Quantize, stored: QTensor, entry: dict[str, Any]) -> None:
        self.entries[decision.name] = entry
        for own, values in stored.tensors().items():
            self.writer.add(f"{decision.name}.{own}", values)


def _check(name: str, stored: QTensor, decision: Quantize) -> None:
    """Raises InputError if a quantized tensor has invalid numbers."""
    for own, told in faults(stored.layout, stored.tensors(), decision.weights.shape[1]):
        raise InputError(f"{name}: its {own} {told}")
