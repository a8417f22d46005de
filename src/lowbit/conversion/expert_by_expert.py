"""Read a mixture one expert at a time.

A checkpoint stores the weights of experts separately or in one tensor. transformers' loader joins
them to one float parameter, perhaps of a gigabyte, before a quantizer sees it. This module applies
the loader's conversions to each expert only when its weight is read.
"""

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from transformers.core_model_loading import (
    Concatenate,
    ConversionOps,
    Interleave,
    MergeModulelist,
    Transpose,
    WeightConverter,
    WeightTransform,
    log_conversion_errors,
)


class Experts:
    """The weights of all experts, in the form of their float parameter, read one by one: `read(i)`
    reads expert i."""

    def __init__(self, shape: Sequence[int], read: Callable[[int], Tensor]) -> None:
        self.shape, self.read = torch.Size(shape), read

    def __getitem__(self, index: Any) -> Any:
        """The weight of one expert. `...` returns the experts themselves, unread, because the
        loader reads files with `[...]`."""
        return self if index is ... else self.read(index)

    def to(self, *args: Any, **kwargs: Any) -> "Experts":
        """Do nothing: the loader asks for the device that they are read to anyway."""
        return self

    @property
    def nbytes(self) -> int:
        return self.shape.numel() * self.like.element_size()

    @property
    def like(self) -> Tensor:
        """An empty tensor with the dtype and device of the experts."""
        return self.read(0).new_empty(0)


class ExpertsInFile(Experts):
    """The experts in one tensor of a file, which is opened but not read."""

    def __init__(self, opened: Any) -> None:
        super().__init__(opened.get_shape(), lambda i: opened[i : i + 1][0])
        self.opened = opened

    def get_shape(self) -> Any:
        return self.opened.get_shape()

    def get_dtype(self) -> Any:
        return self.opened.get_dtype()


@runtime_checkable
class TakesExperts(Protocol):
    """A quantizing operation that accepts Experts."""

    def takes(self, name: str) -> bool:
        """Whether it quantizes the parameter of this name, and it belongs to experts."""


class ExpertByExpert(WeightConverter):
    """A conversion that results in Experts if a quantizing operation accepts them."""

    __slots__ = ()

    def convert(
        self,
        layer_name: str,
        model: Any = None,
        config: Any = None,
        hf_quantizer: Any = None,
        loading_info: Any = None,
    ) -> dict[str, Any]:
        operation = self.quantization_operation
        if not isinstance(operation, TakesExperts) or not operation.takes(layer_name):
            made: dict[str, Any] = super().convert(
                layer_name, model, config, hf_quantizer, loading_info
            )
            return made
        # A tensor with all experts is opened once; a tensor of one expert is read with this expert.
        merges = isinstance(self.operations[0], MergeModulelist)
        sources = {
            pattern: found if merges else found[0]()
            for pattern, found in self.collected_tensors.items()
        }
        self.collected_tensors.clear()
        missing = None if loading_info is None else loading_info.missing_keys
        common = {"full_layer_name": layer_name, "model": model, "config": config}

        def read(expert: int) -> Tensor:
            tensors = {pattern: [_one(found, expert)] for pattern, found in sources.items()}
            for op in self.operations:
                patterns = self.source_patterns, self.target_patterns
                tensors = op.convert(tensors, *patterns, missing_keys=missing, **common)
            (value,) = tensors.values()
            weight: Tensor = value[0] if isinstance(value, list) else value
            return weight[0]

        with log_conversion_errors(layer_name, loading_info, (len(sources), layer_name), operation):
            shape = _shape(model, layer_name, sources)
            kept: dict[str, Any] = operation.convert(  # type: ignore[attr-defined]
                {layer_name: Experts(shape, read)}, model=model, missing_keys=missing
            )
            return kept
        raise AssertionError  # unreachable: the context has raised


def _one(found: Any, expert: int) -> Tensor:
    """The tensor of one expert, for conversions: one of several, or a part of the only one."""
    if isinstance(found, list):
        one: Tensor = found[expert]()
        return one
    part: Tensor = found[expert]
    return part[None]


def _shape(model: Any, name: str, sources: Mapping[str, Any]) -> torch.Size:
    """The shape of the parameter, with the checkpoint's number of experts."""
    expected = model.get_parameter(name).shape
    counts = {len(f) if isinstance(f, list) else f.shape[0] for f in sources.values()}
    return torch.Size([counts.pop() if len(counts) == 1 else 0, *expected[1:]])


def expert_by_expert(entries: Sequence[WeightTransform]) -> list[WeightTransform]:
    """The loader's conversions, changed to work expert by expert if possible."""
    found = []
    for entry in entries:
        if isinstance(entry, WeightConverter) and _within_experts(entry.operations):
            entry = copy(entry)
            entry.__class__ = ExpertByExpert
        found.append(entry)
    return found


def _within_experts(operations: Sequence[ConversionOps]) -> bool:
    """Whether no operation changes the first dimension, the experts. An operation that merges a
    list of tensors creates that dimension."""
    first, *others = operations
    merges = type(first) is MergeModulelist and first.dim == 0
    return all(_leaves_first(op) for op in (others if merges else operations))


def _leaves_first(op: ConversionOps) -> bool:
    dims = [getattr(op, name) for name in ("dim", "dim0", "dim1") if hasattr(op, name)]
    known = type(op) in (Concatenate, Interleave, Transpose)
    return known and all(dim >= 1 for dim in dims) and not getattr(op, "check_dims", False)
