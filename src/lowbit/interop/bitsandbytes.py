"""bitsandbytes checkpoints: NF4 and FP4 are decoded, LLM.int8() is imported unchanged.

    4 bits  X.weight               uint8, two codes a byte, the first in the high half
            X.weight.absmax        float32, the largest value of each block of consecutive weights;
                                   or uint8, with X.weight.nested_absmax and nested_quant_map
            X.weight.quant_map     float32 [16], the value of each code, −1 … 1
            X.weight.quant_state.bitsandbytes__nf4 (or fp4): JSON as bytes: shape, blocksize, dtype,
                                   nested_blocksize, nested_offset

            w = quant_map[code] · absmax[block]
            absmax = nested_quant_map[absmax] · nested_absmax[nested block] + nested_offset

    8 bits  X.weight               int8 [out, in]
            X.SCB                  float32 [out]

            w = weight · SCB / 127

Values of 4-bit codes are not evenly spaced, so the affine format cannot represent them.
"""

import json
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lowbit.errors import InputError
from lowbit.formats import CHANNEL
from lowbit.interop.affine_parameters import AffineParameters
from lowbit.interop.foreign_folder import (
    Decoded,
    ForeignFolder,
    Found,
    Kind,
    Module,
    folder_reader,
)
from lowbit.interop.held_weight import HeldWeight

METHOD = "bitsandbytes"
STATE = "weight.quant_state.bitsandbytes__"
KINDS = ("nf4", "fp4")
PARTS = ("weight.absmax", "weight.quant_map", "weight.nested_absmax", "weight.nested_quant_map")
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
MOST_JSON = 1 << 16
INT8 = 127


def find(folder: ForeignFolder) -> Found:
    """The weights of a folder. Raises InputError."""
    weights, decoded, modules = {}, {}, {}
    for kind in KINDS:
        for name, module in folder.modules(STATE + kind, ("weight", *PARTS)).items():
            modules[name] = module
            four = FourBits(module, kind)
            reason = f"stored in {kind.upper()} of bitsandbytes"
            decoded[name] = Decoded(four.shape, four.dtype, four.decoded), reason
    for name, module in folder.modules("SCB", ("weight", "weight_format")).items():
        modules[name] = module
        weights[name] = EightBits(module).foreign()
    return Found(weights, modules, "a bitsandbytes checkpoint (LLM.int8())", decoded)


class EightBits(HeldWeight):
    """A weight [out, in] with one int8 scale a row."""

    def __init__(self, module: Module) -> None:
        self.module = module
        self.shape = module.matrix("weight")
        order = "weight_format"
        if order in module and bool(module.read(order, module.shape(order), torch.uint8).any()):
            raise InputError(
                f"{module.name}.weight is in the order of one kind of GPU, not by rows: save the"
                " model with a later release of bitsandbytes"
            )

    def parameters(self) -> AffineParameters:
        largest = self.module.read("SCB", self.shape[:1], torch.float32)
        return AffineParameters.of((largest / INT8)[:, None], None, 8, CHANNEL)

    def codes(self) -> Tensor:
        return self.module.read("weight", self.shape, torch.int8).view(torch.uint8) ^ 0x80


class FourBits:
    """A weight [out, in] of 4-bit codes into a table. Raises InputError."""

    def __init__(self, module: Module, kind: str) -> None:
        self.module = module
        told = self._state(kind)
        shape = told.get("shape")
        if not isinstance(shape, list) or len(shape) != 2 or not all(map(_is_length, shape)):
            raise InputError(f"{module.name}.weight is said to have the shape {shape}")
        self.shape = shape[0], shape[1]
        self.block = self._positive(told, "blocksize")
        self.nested = self._positive(told, "nested_blocksize") if self._is_nested() else 0
        offset = told.get("nested_offset") or 0.0
        if not isinstance(offset, int | float) or not math.isfinite(offset):
            raise InputError(f"{module.name}.weight is said to have the nested_offset {offset!r}")
        self.offset = float(offset)
        self.dtype = DTYPES.get(str(told.get("dtype")), torch.float32)
        numbers = self.shape[0] * self.shape[1]
        held = torch.Size(module.shape("weight")).numel()
        if held != -(-numbers // 2):
            raise InputError(f"{module.name}.weight has {held} bytes for {numbers} codes of 4 bits")

    def decoded(self) -> Tensor:
        """The weight as float32."""
        module, (rows, columns) = self.module, self.shape
        packed = module.read("weight", module.shape("weight"), torch.uint8).flatten()
        codes = torch.stack((packed >> 4, packed & 15), -1).flatten()[: rows * columns]
        table = module.read("weight.quant_map", (16,), torch.float32)
        blocks = -(-rows * columns // self.block)
        largest = self._absmax(blocks).repeat_interleave(self.block)[: rows * columns]
        return (table[codes.int()] * largest).unflatten(0, (rows, columns))

    def _absmax(self, blocks: int) -> Tensor:
        if not self._is_nested():
            return self.module.read("weight.absmax", (blocks,), torch.float32)
        codes = self.module.read("weight.absmax", (blocks,), torch.uint8)
        table = self.module.read("weight.nested_quant_map", (256,), torch.float32)
        groups = -(-blocks // self.nested)
        scale = self.module.read("weight.nested_absmax", (groups,), torch.float32)
        return table[codes.int()] * scale.repeat_interleave(self.nested)[:blocks] + self.offset

    def _is_nested(self) -> bool:
        return "weight.nested_absmax" in self.module

    def _positive(self, told: Mapping[str, Any], key: str) -> int:
        value = told.get(key)
        if type(value) is not int or not 0 < value <= 1 << 20:
            raise InputError(f"{self.module.name}.weight is said to have the {key} {value!r}")
        return value

    def _state(self, kind: str) -> Mapping[str, Any]:
        name = STATE + kind
        shape = self.module.shape(name)
        size = torch.Size(shape).numel()
        if size > MOST_JSON:
            raise InputError(f"{self.module.name}.{name} has {size:,} bytes")
        stored = self.module.read(name, shape, torch.uint8)
        try:
            told = json.loads(bytes(stored.tolist()))
        except (ValueError, RecursionError) as error:
            raise InputError(f"{self.module.name}.{name} is not valid JSON") from error
        if not isinstance(told, dict):
            raise InputError(f"{self.module.name}.{name} is not a mapping")
        return told


def _is_length(value: object) -> bool:
    return type(value) is int and value > 0


def _says(told: Mapping[str, object]) -> bool:
    flagged = bool(told.get("load_in_4bit") or told.get("load_in_8bit"))
    method = told.get("quant_method")
    return method == METHOD or (method is None and flagged)


READER = folder_reader(Kind(_says), find)
