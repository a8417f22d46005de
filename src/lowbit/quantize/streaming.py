"""Checkpoint to checkpoint in bounded memory: read a tensor, quantize it, write it, forget it.

transformers' own loader does the reading, so that its renaming of old keys and its merging of
tensors hold here too; every tensor it has ready goes to the writer instead of into a model. Experts
of a mixture are read one by one, whether a checkpoint holds them so or not.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import GenerationConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    ConversionOps,
    WeightConverter,
    WeightRenaming,
    WeightTransform,
    convert_and_load_state_dict_in_model,
    rename_source_key,
)
from transformers.modeling_utils import LoadStateDictConfig, str_to_torch_dtype
from transformers.utils import GENERATION_CONFIG_NAME

from lowbit.checkpoint.atomic_write import check_output, staged
from lowbit.checkpoint.documents import reading
from lowbit.checkpoint.guard import guards
from lowbit.checkpoint.hashes import hashes
from lowbit.checkpoint.read import find, float_config, open_checkpoint, open_tensors, skeleton
from lowbit.checkpoint.shards import MAX_SHARD_BYTES, ShardWriter
from lowbit.conversion.apply import Result
from lowbit.conversion.config import LowbitConfig
from lowbit.conversion.default_recipe import choose, named
from lowbit.conversion.expert_by_expert import (
    ExpertByExpert,
    Experts,
    ExpertsInFile,
    expert_by_expert,
)
from lowbit.conversion.footprint import footprint
from lowbit.conversion.hf_quantizer import LowbitQuantizer
from lowbit.conversion.one_weight import quantize_weight, tied_entry
from lowbit.conversion.plan import Plan, check_static, make_plan
from lowbit.conversion.recipe import Recipe
from lowbit.conversion.skeleton import build
from lowbit.errors import InputError, UsageError
from lowbit.formats.error import WeightError
from lowbit.formats.validity import not_a_number
from lowbit.progress import without_transformers_bars
from lowbit.quantize.companions import copy_companions
from lowbit.quantize.model_card import write_card
from lowbit.solvers import Solver, load_solver


def quantize_checkpoint(
    model: str,
    recipe: str | Path | Recipe | Mapping[str, Any] | None,
    output: str | Path,
    overwrite: bool = False,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    progress: bool = True,
    solver: str | Mapping[str, Any] | Solver = "nearest",
) -> Result:
    """Quantize the checkpoint `model` (a folder or a hub id) into the folder `output`.

    Peak memory is one float tensor (of experts, that of one), its stored form and one shard beside
    what torch and transformers take. The
    tokenizer and all other small files are copied. recipe: as `lowbit.quantize` has it. solver: one
    that needs no data; for those that do, and for static activations, see
    `lowbit.quantize_calibrated`.

    Raises UsageError and InputError. On error or interruption, `output` is left unchanged.
    """
    given, solver = named(recipe), load_solver(solver)
    if solver.data:
        raise UsageError(f"{solver.learner} learns from data: give calibration data")
    source, output = find(model), Path(output)
    config = float_config(source)
    check_output(output, overwrite, source)
    checkpoint = open_checkpoint(source, config)
    with open_tensors(checkpoint.files) as tensors:
        dtype = _float_dtype(tensors)
        config.dtype = config.dtype or dtype
        float_model = skeleton(checkpoint, dtype)
        config.architectures = [type(float_model).__name__]
        chosen, why = choose(float_model, given)
        plan = make_plan(float_model, chosen)
        check_static(plan)
        before = footprint(float_model, source)
        with staged(output) as folder:
            sink = _Sink(float_model, plan, solver, ShardWriter(folder, max_shard_bytes))
            with reading(source):
                unused = _read_all(float_model, tensors, sink, progress)
            quantized = LowbitConfig(chosen, sink.modules(), sink.errors)
            for name, empty in guards(float_model.base_model_prefix, quantized.modules).items():
                sink.writer.add(name, empty)
            sink.writer.close()
            config.quantization_config = quantized
            quantized.hashes = hashes(json.loads(config.to_json_string()), sink.writer.hashes)
            with reading(source / "config.json"):
                config.save_pretrained(folder)
            if float_model.can_generate() and not (source / GENERATION_CONFIG_NAME).is_file():
                # Old checkpoints keep it in config.json, whose new form has no place for it.
                with reading(source / "config.json"):
                    GenerationConfig.from_pretrained(
                        source, "config.json", local_files_only=True, _from_model_config=True
                    ).to_json_file(folder / GENERATION_CONFIG_NAME)
            copy_companions(source, folder)
            write_card(folder, source, config.architectures[0], quantized, plan)
            build(float_model, quantized, dtype)
            after = footprint(float_model, folder)
    return Result(plan, before, after, sink.errors, unused, why)


def _float_dtype(tensors: Mapping[str, Any]) -> torch.dtype:
    """The dtype of the checkpoint's first float tensor. Raises InputError where there is none."""
    known = {
        "F64": torch.float32,
        "F32": torch.float32,
        "F16": torch.float16,
        "BF16": torch.bfloat16,
    }
    for tensor in tensors.values():
        if tensor.get_dtype() in known:
            return known[tensor.get_dtype()]
    raise InputError("the checkpoint holds no float32, float16 or bfloat16 tensor")


class _Sink:
    """Where finished tensors go: quantized or as they are, to the writer."""

    def __init__(
        self, model: PreTrainedModel, plan: Plan, solver: Solver, writer: ShardWriter
    ) -> None:
        self.plan, self.solver, self.writer = plan, solver, writer
        self.shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
        self.owners = {str(d.weight): d for d in plan.owners}
        self.errors: dict[str, WeightError] = {}
        self.entries = {d.name: tied_entry(d) for d in plan.tied}

    def take(self, name: str, tensor: Tensor | Experts) -> None:
        """One tensor of the float model, under the name it has there. Raises InputError."""
        if tensor.shape != self.shapes[name]:
            raise InputError(
                f"{name} has the shape {list(tensor.shape)} in the checkpoint,"
                f" {list(self.shapes[name])} in the model that config.json describes"
            )
        decision = self.owners.get(name)
        if decision is None:
            assert isinstance(tensor, Tensor)
            if tensor.is_floating_point() and (told := not_a_number(tensor)):
                raise InputError(f"{name} {told}, with which a model computes nothing")
            self.writer.add(name, tensor)
            return
        found = quantize_weight(decision, tensor, self.solver.solve)
        self.errors[decision.name] = found.error
        self.entries[decision.name] = found.entry
        for stored, values in found.stored.tensors().items():
            self.writer.add(f"{decision.name}.{stored}", values)

    def modules(self) -> dict[str, dict[str, Any]]:
        """The map for config.json, in the order of the model."""
        return {d.name: self.entries[d.name] for d in self.plan.quantized}


class _Stop(BaseException):
    """Carries an error past transformers' loader, which keeps ordinary exceptions for a report."""


class _Divert(ConversionOps):
    """Sends what the loader has ready to the sink; nothing is left for it to put into a model."""

    def __init__(self, sink: _Sink, owners: Mapping[str, str], bar: Any) -> None:
        self.sink, self.owners, self.bar = sink, owners, bar

    def takes(self, name: str) -> bool:
        """Whether experts of this name are wanted one by one."""
        decision = self.sink.owners.get(self.owners.get(name, name))
        return decision is not None and decision.weights.kind == "experts"

    def convert(
        self,
        input_dict: dict[str, Any],
        *args: Any,
        missing_keys: set[str] | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        try:
            for name, value in input_dict.items():
                tensor = value[0] if isinstance(value, list) else value
                self.sink.take(self.owners.get(name, name), tensor)
                self.bar.update(tensor.nbytes)
                if missing_keys is not None:
                    missing_keys.difference_update({name, self.owners.get(name, name)})
        except Exception as error:
            raise _Stop from error
        return {}


class _StreamQuantizer(LowbitQuantizer):
    """Claims every tensor of the checkpoint."""

    def __init__(self, divert: _Divert) -> None:
        super().__init__(LowbitConfig(divert.sink.plan.recipe), pre_quantized=False)
        self.divert = divert

    def param_needs_quantization(self, model: Any, param_name: str, **kwargs: Any) -> bool:
        return True

    def get_quantize_ops(self) -> ConversionOps:
        return self.divert


def _read_all(
    model: PreTrainedModel, tensors: dict[str, Any], sink: _Sink, progress: bool
) -> tuple[str, ...]:
    """Read every tensor that the model has a place for, and name the others. Raises InputError."""
    names = _names(model, expert_by_expert(get_model_conversion_mapping(model)), tensors)
    owners, repeated = _tied_owners(model, names, tensors)
    wanted = {name: tensor for name, tensor in tensors.items() if name not in repeated}
    total = sum(_nbytes(tensor) for tensor in wanted.values())
    with tqdm(
        total=total, unit="B", unit_scale=True, desc="quantizing", disable=not progress
    ) as bar:
        divert = _Divert(sink, owners, bar)
        for stored, (name, converter) in names.items():
            readable = converter is None or isinstance(converter, ExpertByExpert)
            if divert.takes(name) and readable and len(tensors[stored].get_shape()) == 3:
                wanted[stored] = ExpertsInFile(tensors[stored])
        try:
            with without_transformers_bars():
                info, _ = convert_and_load_state_dict_in_model(
                    model,
                    wanted,
                    LoadStateDictConfig(
                        hf_quantizer=_StreamQuantizer(divert),
                        weight_mapping=expert_by_expert(get_model_conversion_mapping(model)),
                    ),
                )
        except _Stop as stop:
            assert stop.__cause__ is not None
            raise stop.__cause__ from None
    model._adjust_missing_and_unexpected_keys(info)
    missing = sorted(info.missing_keys - set(model.all_tied_weights_keys))
    if missing:
        raise InputError(
            f"the checkpoint lacks {len(missing)} of the {len(model.state_dict())} tensors of"
            f" {type(model).__name__}: {missing[0]}"
        )
    return tuple(sorted(info.unexpected_keys))


def _names(
    model: PreTrainedModel, mapping: Sequence[WeightTransform], tensors: Iterable[str]
) -> dict[str, tuple[str, WeightConverter | None]]:
    """For each name in the checkpoint that in the model, and what converts the tensor."""
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    by_pattern = {p: converter for converter in converters for p in converter.source_patterns}
    places, prefix = model.state_dict(), model.base_model_prefix
    found = {}
    for stored in tensors:
        name, pattern = rename_source_key(stored, renamings, converters, prefix, places)
        found[stored] = name, by_pattern.get(pattern or "")
    return found


def _tied_owners(
    model: PreTrainedModel,
    names: Mapping[str, tuple[str, WeightConverter | None]],
    tensors: Mapping[str, Any],
) -> tuple[dict[str, str], set[str]]:
    """Where a checkpoint holds a tied weight under another name than its owner's, the owner; and
    the names under which it holds one twice. Raises InputError where the two differ."""
    held = {name: stored for stored, (name, _) in names.items()}
    owners: dict[str, str] = {}
    repeated: set[str] = set()
    for target, source in model.all_tied_weights_keys.items():
        if target not in held:
            continue
        if source not in held:
            owners[target] = source
            held[source] = held[target]
        elif torch.equal(tensors[held[target]][...], tensors[held[source]][...]):
            repeated.add(held[target])
        else:
            raise InputError(
                f"config.json ties {target} to {source}, but the checkpoint holds two different"
                " weights; set tie_word_embeddings to false there"
            )
    return owners, repeated


def _nbytes(tensor: Any) -> int:
    size = torch.tensor([], dtype=str_to_torch_dtype[tensor.get_dtype()]).element_size()
    return math.prod(tensor.get_shape()) * size
