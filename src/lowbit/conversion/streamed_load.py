"""Read a checkpoint tensor by tensor, and pass each tensor to a sink.

transformers' own loader reads the tensors, so its renaming of old keys and its merging of tensors
apply. Each tensor goes to the sink instead of into a model. Experts of a mixture are read one by
one, even if the checkpoint stores them in one tensor. A weight that is already quantized
(`QuantizedInFile`) passes through unchanged.
"""

import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedConfig, PreTrainedModel
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

from lowbit.conversion.config import LowbitConfig
from lowbit.conversion.expert_by_expert import (
    ExpertByExpert,
    Experts,
    ExpertsInFile,
    expert_by_expert,
)
from lowbit.conversion.hf_quantizer import LowbitQuantizer
from lowbit.conversion.plan import Quantize
from lowbit.conversion.recipe import Recipe
from lowbit.errors import InputError
from lowbit.formats import QTensor
from lowbit.progress import hidden, without_transformers_bars


def dtype_of(config: PreTrainedConfig, tensors: Mapping[str, Any]) -> torch.dtype:
    """The compute dtype of the float model: of its config, or of its first float tensor. Raises
    InputError if the dtype is not a floating-point one."""
    told = config.dtype
    if told is None:
        return float_dtype(tensors)
    if not isinstance(told, torch.dtype) or not told.is_floating_point:
        raise InputError(f"config.json says dtype {told}, which no model computes in")
    return told


class QuantizedInFile:
    """A quantized weight [out, in] in a file. To the loader it is a tensor; it is read when the
    sink calls `read`."""

    def __init__(self, shape: tuple[int, int], nbytes: int, read: Callable[[], QTensor]) -> None:
        self.shape, self.nbytes, self.read = torch.Size(shape), nbytes, read

    def get_shape(self) -> list[int]:
        return list(self.shape)

    def __getitem__(self, index: Any) -> "QuantizedInFile":
        return self

    def to(self, *args: Any, **kwargs: Any) -> "QuantizedInFile":
        """Do nothing: the loader asks for the device that it is read to anyway."""
        return self


class Sink(Protocol):
    """The receiver of tensors. owners: the decision for each weight to quantize, by name."""

    @property
    def recipe(self) -> Recipe: ...

    @property
    def owners(self) -> Mapping[str, Quantize]: ...

    def take(self, name: str, tensor: Tensor | Experts | QuantizedInFile) -> None:
        """Receive one tensor under its name in the float model. Raises InputError."""


def float_dtype(tensors: Mapping[str, Any]) -> torch.dtype:
    """The dtype of the checkpoint's first float tensor. Raises InputError if there is none."""
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


class _Stop(BaseException):
    """Carries an error through transformers' loader, which catches ordinary exceptions."""


class _Divert(ConversionOps):
    """Sends each loaded tensor to the sink, so that none is put into a model."""

    def __init__(self, sink: Sink, owners: Mapping[str, str], bar: Any) -> None:
        self.sink, self.owners, self.bar = sink, owners, bar

    def takes(self, name: str) -> bool:
        """Whether the experts of this name are to be read one by one."""
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
    """Makes the loader pass every tensor of the checkpoint to the sink."""

    def __init__(self, divert: _Divert) -> None:
        super().__init__(LowbitConfig(divert.sink.recipe), pre_quantized=False)
        self.divert = divert

    def param_needs_quantization(self, model: Any, param_name: str, **kwargs: Any) -> bool:
        return True

    def get_quantize_ops(self) -> ConversionOps:
        return self.divert


def read_all(
    model: PreTrainedModel,
    tensors: Mapping[str, Any],
    sink: Sink,
    progress: bool,
    doing: str = "quantizing",
) -> tuple[str, ...]:
    """Read every tensor that the model has, and return the names of the others. Raises
    InputError."""
    names = names_in_model(model, tensors)
    owners, repeated = _tied_owners(model, names, tensors)
    wanted = {name: tensor for name, tensor in tensors.items() if name not in repeated}
    total = sum(_nbytes(tensor) for tensor in wanted.values())
    with tqdm(total=total, unit="B", unit_scale=True, desc=doing, disable=hidden(progress)) as bar:
        divert = _Divert(sink, owners, bar)
        for stored, (name, converter, _) in names.items():
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
    if missing := lacking(model, info.missing_keys):
        raise InputError(
            f"the checkpoint lacks {len(missing)} of the {len(model.state_dict())} tensors of"
            f" {type(model).__name__}: {missing[0]}"
        )
    return tuple(sorted(info.unexpected_keys))


def lacking(model: PreTrainedModel, missing: Collection[str]) -> list[str]:
    """The tensors among `missing` that the files must have: transformers neither ties nor computes
    them, as it does for fixed position tables."""
    filled = tuple(model._keys_to_ignore_on_load_missing or ())
    return sorted(
        name
        for name in set(missing) - set(model.all_tied_weights_keys)
        if not any(re.search(pattern, name) for pattern in filled)
    )


class InModel(NamedTuple):
    """The place of a checkpoint tensor in a model: the name, the converter that joins or changes
    it, and the source pattern of that converter."""

    name: str
    converter: WeightConverter | None
    pattern: str | None


def names_in_model(
    model: PreTrainedModel,
    tensors: Iterable[str],
    mapping: Sequence[WeightTransform] | None = None,
) -> dict[str, InModel]:
    """The place of each checkpoint tensor in the model. mapping: the renamings and converters; by
    default those of float models."""
    if mapping is None:
        mapping = expert_by_expert(get_model_conversion_mapping(model))
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    by_pattern = {p: converter for converter in converters for p in converter.source_patterns}
    places, prefix = model.state_dict(), model.base_model_prefix
    found = {}
    for stored in tensors:
        name, pattern = rename_source_key(stored, renamings, converters, prefix, places)
        found[stored] = InModel(name, by_pattern.get(pattern or ""), pattern)
    return found


def _tied_owners(
    model: PreTrainedModel,
    names: Mapping[str, InModel],
    tensors: Mapping[str, Any],
) -> tuple[dict[str, str], set[str]]:
    """The owners of tied weights that a checkpoint stores under another name, and the names of
    duplicates. Raises InputError if duplicates differ."""
    held = {place.name: stored for stored, place in names.items()}
    owners: dict[str, str] = {}
    repeated: set[str] = set()
    for target, source in model.all_tied_weights_keys.items():
        if target not in held:
            continue
        if source not in held:
            owners[target] = source
            held[source] = held[target]
        elif _alike(tensors[held[target]], tensors[held[source]]):
            repeated.add(held[target])
        else:
            raise InputError(
                f"config.json ties {target} to {source}, but the checkpoint holds two different"
                " weights; set tie_word_embeddings to false there"
            )
    return owners, repeated


def _alike(one: Any, other: Any) -> bool:
    """Whether two tensors of a checkpoint are equal. Quantized ones cannot be compared."""
    quantized = isinstance(one, QuantizedInFile) or isinstance(other, QuantizedInFile)
    return not quantized and torch.equal(one[...], other[...])


def _nbytes(tensor: Any) -> int:
    if isinstance(tensor, QuantizedInFile):
        return tensor.nbytes
    size = torch.tensor([], dtype=str_to_torch_dtype[tensor.get_dtype()]).element_size()
    return math.prod(tensor.get_shape()) * size
