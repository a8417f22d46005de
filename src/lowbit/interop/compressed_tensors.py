"""compressed-tensors checkpoints, as llm-compressor writes them and vLLM serves them.

    pack-quantized          weight_packed     int32 [out, ceil(in·bits/32)], codes − lowest code,
                                              bit-contiguous, least significant bit first
                            weight_shape      [out, in]
                            weight_zero_point int32 [ceil(out·bits/32), groups], packed likewise
                                              down the outputs
    int- or naive-quantized weight            int8 [out, in], codes −2^(bits−1) … 2^(bits−1) − 1
                            weight_zero_point int8 [out, groups]
    all                     weight_scale      float [out, groups], [out, 1] or, by tensor, [1]

    w = weight_scale · (q − weight_zero_point); without a zero point if weights are symmetric

`quantization_config` in config.json describes the quantization of groups of modules. A packed row
equals, byte for byte, a row of the affine format, padded to whole words. The layout is the one of
the library's `PackedQuantizationCompressor`.
"""

import time
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import regex  # transformers requires it; unlike re, it can stop after a time
import torch
from torch import Tensor

from lowbit.errors import InputError
from lowbit.formats import CHANNEL, TENSOR, Granularity, group
from lowbit.formats.packing import pack, packed_width, unpack
from lowbit.interop.affine_parameters import AffineParameters
from lowbit.interop.door import ForeignWeight
from lowbit.interop.foreign_folder import ForeignFolder, Found, Kind, Module, folder_reader
from lowbit.interop.held_weight import HeldWeight

METHOD = "compressed-tensors"
PACKED = "pack-quantized"
PLAIN = ("int-quantized", "naive-quantized")
FLOATS = (torch.float16, torch.bfloat16, torch.float32)
MOST_PATTERN = 200  # characters
MOST_NAME = 1000  # characters of a name
MOST_SECONDS, LEAST = 60.0, 0.001  # of matching all names; of one
PATTERN = "re:"  # before a target that is one
PARTS = ("weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx")


@dataclass(frozen=True)
class Group:
    """How a group of modules is quantized. targets: names and classes. patterns: of names."""

    targets: frozenset[str]
    format: str
    bits: int
    granularity: Granularity
    symmetric: bool
    activations: str
    patterns: tuple[regex.Pattern[str], ...] = ()

    @classmethod
    def parse(cls, stored: Any, format: str, name: str) -> "Group":
        """Parse an entry of `config_groups`. Raises InputError if lowbit does not support it."""
        try:
            weights, inputs = stored["weights"], stored.get("input_activations")
            kind, bits = weights.get("type", "int"), weights["num_bits"]
            strategy, size = weights.get("strategy"), weights.get("group_size")
            targets = [str(target) for target in stored["targets"]]
            format = stored.get("format") or format
            symmetric = weights.get("symmetric", True)
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{name} of config_groups is not complete: {error}") from error
        if kind != "int" or format not in (PACKED, *PLAIN):
            raise InputError(
                f"{name} has weights of {bits} bits of type {kind} in the form {format}; lowbit"
                f" holds integers in the forms {', '.join((PACKED, *PLAIN))}: quantize the float"
                " model"
            )
        if type(bits) is not int or not 2 <= bits <= 8:
            raise InputError(f"{name} has weights of {bits!r} bits; lowbit holds 2 … 8")
        granularities = {"tensor": TENSOR, "channel": CHANNEL, "group": None}
        if strategy not in granularities or (strategy == "group" and type(size) is not int):
            raise InputError(
                f"{name} shares scales by {strategy} (size {size}); lowbit holds"
                f" {', '.join(granularities)}"
            )
        return cls(
            frozenset(target for target in targets if not target.startswith(PATTERN)),
            format,
            bits,
            granularities[strategy] or group(size),
            bool(symmetric),
            _activations(inputs, name),
            tuple(_pattern(target, name) for target in targets if target.startswith(PATTERN)),
        )

    def matches(self, module: str, deadline: float) -> bool:
        """Whether the group applies to a module of this name: by a name, a pattern, or a class. A
        checkpoint has no classes, so the first group with a class applies.

        Raises TimeoutError after `deadline`: some patterns have exponentially many ways to match.
        """
        return module in self.targets or any(
            pattern.match(module, timeout=max(deadline - time.monotonic(), LEAST))
            for pattern in self.patterns
        )

    @property
    def names_classes(self) -> bool:
        return any("." not in target for target in self.targets)


def _pattern(target: str, name: str) -> regex.Pattern[str]:
    """Raises InputError for a pattern that is too long or invalid."""
    text = target.removeprefix(PATTERN)
    if len(text) > MOST_PATTERN:
        raise InputError(
            f"{name} has a target of {len(text):,} characters, {target[:40]!r} …; lowbit reads"
            f" patterns of at most {MOST_PATTERN}"
        )
    try:
        return regex.compile(text)
    except regex.error as error:
        raise InputError(
            f"{name} has the target {target!r}, which is not a valid pattern: {error}"
        ) from error


def find(folder: ForeignFolder) -> Found:
    """The weights of a folder. Raises InputError."""
    told = folder.quantization
    for key in ("transform_config", "sparsity_config"):
        if told.get(key):
            raise InputError(
                f"{folder.path} has a {key}: its weights are transformed or sparse besides being"
                " quantized, which lowbit does not hold; quantize the float model"
            )
    groups = told.get("config_groups")
    if not isinstance(groups, dict) or not groups:
        raise InputError(f"{folder.path} has no config_groups that say how it is quantized")
    form = folder.option("format", str, PACKED)
    parsed = [Group.parse(stored, form, name) for name, stored in groups.items()]
    packed, plain = folder.modules("weight_packed", PARTS), folder.modules("weight", PARTS)
    plain = {name: m for name, m in plain.items() if "weight_scale" in m}
    longest = max((packed | plain).keys(), key=len, default="")
    if len(longest) > MOST_NAME:
        raise InputError(
            f"{folder.path} has a name of {len(longest):,} characters, {longest[:40]!r} …; lowbit"
            f" reads names of at most {MOST_NAME:,}"
        )
    deadline = time.monotonic() + MOST_SECONDS
    modules: dict[str, Module] = {}
    weights: dict[str, ForeignWeight] = {}
    for name, module in (packed | plain).items():
        found = _group(parsed, name, folder, deadline)
        modules[name] = module
        weight = (PackedWeight if name in packed else PlainWeight)(module, found)
        weights[name] = weight.foreign(found.activations)
    kinds = sorted({f"{g.bits} bits by {g.granularity} ({g.format})" for g in parsed})
    return Found(weights, modules, f"a compressed-tensors checkpoint of {', '.join(kinds)}")


def _group(groups: list[Group], name: str, folder: ForeignFolder, deadline: float) -> Group:
    """The group of a module. Raises InputError if there is none, or if it is not found in time."""
    try:
        found = next((g for g in groups if g.matches(name, deadline)), None)
    except TimeoutError as error:
        raise InputError(
            f"{folder.path} has patterns of names that take more than {MOST_SECONDS:g} seconds to"
            f" match, at {name[:80]!r}: list the names of the modules, or use simpler patterns"
        ) from error
    found = found or next((g for g in groups if g.names_classes), None)
    if found is None:
        raise InputError(f"{folder.path} has no entry of config_groups for {name}")
    return found


def _activations(stored: Any, name: str) -> str:
    """The activations of a group, by lowbit's names. Raises InputError."""
    if stored is None:
        return "float"
    try:
        told = (stored.get("type", "int"), stored["num_bits"], stored.get("dynamic", False))
        known = told == ("int", 8, True) and stored.get("symmetric", True)
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{name} has no valid input_activations: {error}") from error
    if not known:
        raise InputError(
            f"{name} has activations of {told[1]} bits of type {told[0]},"
            f" {'dynamic' if told[2] else 'static'}; lowbit converts symmetric int8 ones that are"
            " dynamic: quantize the float model"
        )
    return "dynamic"


class Weight(HeldWeight):
    """One weight [out, in]; subclasses read its codes and zero points."""

    scale_name: ClassVar[str] = "weight_scale"

    def __init__(self, module: Module, group: Group) -> None:
        self.module, self.group = module, group
        if "weight_g_idx" in module:
            raise InputError(
                f"{module.name} is quantized in another order of its inputs (weight_g_idx), which"
                " lowbit does not hold: quantize the float model"
            )
        self.shape = self.found_shape()
        self.units = group.granularity.parameter_shape(*self.shape)

    @abstractmethod
    def found_shape(self) -> tuple[int, int]:
        """[out, in]. Raises InputError."""

    @abstractmethod
    def zero_points(self) -> Tensor:
        """uint8 [out, groups], the lowest code 0."""

    def parameters(self) -> AffineParameters:
        module, group = self.module, self.group
        stored = module.shape(self.scale_name)
        if torch.Size(stored).numel() != self.units[0] * self.units[1]:
            raise InputError(
                f"{module.name}.{self.scale_name} has the shape {list(stored)}; a weight"
                f" {list(self.shape)} by {group.granularity} has {list(self.units)}"
            )
        scale = module.read(self.scale_name, stored, *FLOATS).reshape(self.units)
        zero_point = None if group.symmetric else self.zero_points()
        return AffineParameters.of(scale, zero_point, group.bits, group.granularity)


class PackedWeight(Weight):
    """A weight in the format pack-quantized."""

    def found_shape(self) -> tuple[int, int]:
        module = self.module
        told = module.read("weight_shape", (2,), torch.int64, torch.int32)
        rows, columns = (int(n) for n in told)
        stored = module.matrix("weight_packed")
        if rows < 1 or columns < 1 or stored != (rows, words(columns, self.group.bits)):
            raise InputError(
                f"{module.name}.weight_packed has the shape {list(stored)}, which {rows} ×"
                f" {columns} codes of {self.group.bits} bits do not have (older releases padded"
                " words of 3, 5, 6 and 7 bits: write the model with a later one)"
            )
        return rows, columns

    def codes(self) -> Tensor:
        rows, columns = self.shape
        shape = rows, words(columns, self.group.bits)
        stored = self.module.read("weight_packed", shape, torch.int32).view(torch.uint8)
        return stored[:, : packed_width(columns, self.group.bits)].contiguous()

    def zero_points(self) -> Tensor:
        bits, (rows, groups) = self.group.bits, self.units
        stored = self.module.read("weight_zero_point", (words(rows, bits), groups), torch.int32)
        return unpack(stored.t().contiguous().view(torch.uint8), bits, rows).t().contiguous()


class PlainWeight(Weight):
    """A weight in a format with one code per byte."""

    codes_name: ClassVar[str] = "weight"
    zeros_name: ClassVar[str] = "weight_zero_point"

    def found_shape(self) -> tuple[int, int]:
        return self.module.matrix(self.codes_name)

    def codes(self) -> Tensor:
        stored = self.module.read(self.codes_name, self.shape, torch.int8)
        return pack(self._unsigned(stored), self.group.bits)

    def zero_points(self) -> Tensor:
        shape = self.module.shape(self.zeros_name)
        if torch.Size(shape).numel() != self.units[0] * self.units[1]:
            raise InputError(f"{self.module.name}.{self.zeros_name} has the shape {list(shape)}")
        stored = self.module.read(self.zeros_name, shape, torch.int8)
        return self._unsigned(stored).reshape(self.units)

    def _unsigned(self, stored: Tensor) -> Tensor:
        """Codes from 0 on. Raises InputError if a code has too many bits."""
        half = 1 << (self.group.bits - 1)
        low, high = (int(end) for end in torch.aminmax(stored))
        if low < -half or high >= half:
            raise InputError(
                f"{self.module.name} holds codes {low} … {high}, outside {-half} … {half - 1}"
            )
        return (stored.to(torch.int16) + half).to(torch.uint8)


def words(codes: int, bits: int) -> int:
    """The number of 32-bit words for this number of codes."""
    return -(-codes * bits // 32)


READER = folder_reader(Kind(lambda told: told.get("quant_method") == METHOD), find)
