"""Open a folder that lowbit wrote, to write its weights in another format."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping

from lowbit.checkpoint import guard
from lowbit.checkpoint.documents import reading
from lowbit.checkpoint.foreign import METHOD
from lowbit.checkpoint.read import find, open_checkpoint, open_tensors, read_config, skeleton
from lowbit.conversion.config import LowbitConfig
from lowbit.conversion.experts import weight_at
from lowbit.conversion.hf_quantizer import LowbitQuantizer
from lowbit.conversion.module_weights import WeightName, Weights
from lowbit.conversion.skeleton import build, stored_buffers
from lowbit.conversion.streamed_load import dtype_of, lacking, names_in_model
from lowbit.conversion.ties import tied_weights
from lowbit.errors import InputError
from lowbit.formats import Layout, QTensor
from lowbit.formats.validity import faults
from lowbit.nn import QuantModule


@dataclass(frozen=True)
class StoredWeight:
    """A quantized weight of the folder; `read` reads its tensors.

    name: of the float parameter. weights: its use in the float module, with the shape [out, in].
    dtype: of the decoded weight. tied_to: the place of the weight that it shares, if any. A weight
    that is stored once, but whose tie the config of the float model denies, is a weight of its own.
    """

    name: WeightName
    weights: Weights
    layout: Layout
    activations: str
    dtype: torch.dtype
    read: Callable[[], QTensor]
    tied_to: str | None = None


@dataclass(frozen=True)
class StoredModel:
    """A folder that lowbit wrote, with large tensors unread.

    config: of the float model. quantization: the quantization config. model: the float model,
    without data. weights: by their places in config.json, in the order of the model. floats: all
    other tensors of the float model, by name; `tensor[...]` reads one. dtype: of the float model.
    """

    folder: Path
    config: PreTrainedConfig
    quantization: LowbitConfig
    model: PreTrainedModel
    weights: Mapping[str, StoredWeight]
    floats: Mapping[str, Any]
    dtype: torch.dtype

    @property
    def owners(self) -> dict[str, StoredWeight]:
        """The quantized weights, without tied ones."""
        return {place: w for place, w in self.weights.items() if w.tied_to is None}


def is_float(model: str | Path) -> bool:
    """Whether the folder `model` has a float model. Raises InputError if it has no model."""
    return getattr(read_config(find(model)), "quantization_config", None) is None


@contextmanager
def open_stored(model: str | Path) -> Iterator[StoredModel]:
    """Open the folder `model`. Raises InputError if lowbit did not write it or it is incomplete."""
    folder = find(model)
    config = read_config(folder)
    described = getattr(config, "quantization_config", None)
    if described is None or dict(described).get("quant_method") != METHOD:
        raise InputError(f"{folder} was not quantized with lowbit: `lowbit quantize` does that")
    with reading(folder / "config.json"):
        quantization = LowbitConfig.from_dict(dict(described))
    checkpoint = open_checkpoint(folder, config)
    del config.quantization_config
    with open_tensors(checkpoint.files) as tensors:
        dtype = dtype_of(config, tensors)
        float_model, packed = skeleton(checkpoint, dtype), skeleton(checkpoint, dtype)
        with reading(folder / "config.json"):
            build(packed, quantization, dtype)
        places = _places(packed, quantization, tensors)
        ties = tied_weights(float_model)
        weights = {
            name: _weight(name, float_model, packed, places, quantization.modules[name], ties)
            for name in quantization.modules
        }
        wanted = float_model.state_dict()
        floats = {name: tensor for name, tensor in places.items() if name in wanted}
        missing = wanted.keys() - floats.keys() - {str(w.name) for w in weights.values()}
        if lacked := lacking(float_model, missing):
            raise InputError(f"{folder} lacks {lacked[0]}")
        yield StoredModel(folder, config, quantization, float_model, weights, floats, dtype)


def _places(
    packed: PreTrainedModel, quantization: LowbitConfig, tensors: Mapping[str, Any]
) -> dict[str, Any]:
    """The tensors of the files, by their names in the packed model."""
    quantizer = LowbitQuantizer(quantization, pre_quantized=True)
    quantizer.stored_names = frozenset(name for name, _, _ in stored_buffers(packed))
    mapping = quantizer.update_weight_conversions(get_model_conversion_mapping(packed), packed)
    guards = guard.guards(packed.base_model_prefix, quantization.modules)
    names = names_in_model(packed, (n for n in tensors if n not in guards), mapping)
    for stored, place in names.items():
        if place.converter is not None:
            raise InputError(
                f"{stored} is converted to {place.name} by transformers, which is not supported yet"
            )
    return {place.name: tensors[stored] for stored, place in names.items()}


def _weight(
    place: str,
    float_model: PreTrainedModel,
    packed: PreTrainedModel,
    tensors: Mapping[str, Any],
    entry: Mapping[str, Any],
    ties: Mapping[WeightName, WeightName],
) -> StoredWeight:
    name, weights = weight_at(float_model, place)
    assert isinstance(weights, Weights)  # `build` has put a module there
    module = packed.get_submodule(place)
    assert isinstance(module, QuantModule)
    tied_to = entry.get("tied_to")
    source = place if tied_to is None else tied_to
    if tied_to is not None:
        shared, _ = weight_at(float_model, tied_to)
        if ties.get(name, name) != ties.get(shared, shared):
            tied_to = None
    layout, columns = module.layout, module.columns
    held = layout.tensors(module.rows, columns)
    for own, (shape, _) in held.items():
        stored = tensors.get(f"{source}.{own}")
        if stored is None:
            raise InputError(f"the checkpoint lacks the stored tensor {source}.{own}")
        if tuple(stored.get_shape()) != shape:
            raise InputError(
                f"stored tensor {source}.{own} has the shape {stored.get_shape()},"
                f" not {list(shape)}"
            )

    def read() -> QTensor:
        found = {own: tensors[f"{source}.{own}"][...] for own in held}
        for own, told in faults(layout, found, columns):
            raise InputError(f"stored tensor {source}.{own} {told}")
        q: QTensor = layout.assemble(found, columns)
        return q

    activations = entry.get("activations", "float")
    dtype = module.compute.dtype
    return StoredWeight(name, weights, layout, activations, dtype, read, tied_to)
