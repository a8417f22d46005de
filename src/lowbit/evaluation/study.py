"""Measurements as plain data: one JSON schema for `eval`, `report` and `compare`.

    Study            environment, seed, commands, and one record per model
      ModelRecord    sizes, kernels, coverage, and
        Measurement    what one task found: metrics, samples, predictions
        Timing         one shape, timed beside the reference in the same rounds
        ModuleRecord   one module: how it is stored, its error, its weights as a histogram

The first model of a study is the reference that the others are compared with.
"""

import math
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Self, TypeVar, Union, get_args, get_origin, get_type_hints

from lowbit.checkpoint.documents import read_json
from lowbit.conversion.plan import Summary
from lowbit.errors import InputError

SCHEMA = "lowbit-study"
VERSION = 1

Prediction = str | int | float
Record = TypeVar("Record")
# The texts of floats that JSON does not have.
NOT_SAID = ("nan", "inf", "-inf")


@dataclass(frozen=True)
class Metric:
    """A number and which way is better.

    note: how it was computed, if necessary, such as a sacreBLEU signature. low, high: the 95 %
    interval of the value, from items paired with those of the reference.
    """

    value: float
    better: Literal["higher", "lower"]
    note: str = ""
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Sample:
    """One item to read: the input, the output, and the expected output if known."""

    source: str
    output: str
    reference: str | None = None


@dataclass(frozen=True)
class Measurement:
    """The result of one task for one model.

    task: its name, such as "perplexity" or "glue mrpc"; data: where the items came from.
    items, unit: the number of scored items, and their unit ("tokens", "sentences", …).
    settings: the settings that affect the numbers: context, stride, beams, lengths.
    metrics: the first is the deciding one. predictions: one per item; empty if the task has none.
    Two models agree on an item if their predictions are equal.
    """

    task: str
    data: str
    items: int
    unit: str
    settings: dict[str, str | int | float | None]
    metrics: dict[str, Metric]
    samples: tuple[Sample, ...] = ()
    predictions: tuple[Prediction, ...] = ()

    @property
    def main_metric(self) -> str | None:
        """The deciding metric; None if the task has only samples."""
        return next(iter(self.metrics), None)


@dataclass(frozen=True)
class Timing:
    """One shape. Seconds are medians over `rounds`; `spread` is the distance of their quartiles.

    new_tokens: 0 for one forward pass over [batch, length]; else the number of tokens generated
    after a prompt of `length`. reference_seconds: of the reference model in the same rounds, or
    None. faster_in: the number of rounds in which the reference took longer, or None.
    """

    batch: int
    length: int
    new_tokens: int
    rounds: int
    threads: int
    seconds: float
    spread: float
    reference_seconds: float | None = None
    faster_in: int | None = None

    @property
    def within_noise(self) -> bool:
        """Whether more than a quarter of the rounds contradict the others: faster, or slower."""
        if self.faster_in is None:
            return False
        return 4 * min(self.faster_in, self.rounds - self.faster_in) > self.rounds

    @property
    def tokens(self) -> int:
        """The tokens of one round, read or generated."""
        return self.batch * (self.new_tokens or self.length)

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds

    @property
    def speedup(self) -> float | None:
        """The speedup over the reference; None without a reference."""
        return None if self.reference_seconds is None else self.reference_seconds / self.seconds


@dataclass(frozen=True)
class Histogram:
    """Counts in equal bins over [−edge, edge]; `outside` counts what lies beyond."""

    edge: float
    counts: tuple[int, ...]
    outside: int


@dataclass(frozen=True)
class ModuleRecord:
    """One module with weights. `relative_error` is Σ(w − ŵ)² / Σw²; None if the module is float or
    the error is unknown. `kernel` is empty for a float module."""

    name: str
    stored_as: str
    parameters: int
    stored_bytes: int
    kernel: str = ""
    why: str = ""
    relative_error: float | None = None
    histogram: Histogram | None = None


@dataclass(frozen=True)
class ModelRecord:
    """One model. Bytes count everything: codes, scales, zero points, padding, what stayed float.

    name: its name in tables; path: its folder, or None if it was never saved.
    recipe: of its quantization, or None for a float model.
    stored: a checkpoint's tensors; disk: its files; resident: in memory after loading, and after
    one forward pass; peak: of a fresh process that loads it and runs it once, less what the
    process held before. None where it was not measured.
    slow: sentences about layers that are slower than in float32 on this machine.
    experts: for a mixture, the number of tokens that chose each expert, by layer name.
    weights: all matrices in one histogram, with the edges of the reference's histogram.
    """

    name: str
    path: str | None
    architecture: str
    recipe: dict[str, Any] | None
    parameters: int
    bits_per_weight: float
    stored_bytes: int
    disk_bytes: int | None
    resident_bytes: int
    resident_after_forward_bytes: int | None
    peak_bytes: int | None
    kernels: tuple[str, ...] = ()
    coverage: tuple[Summary, ...] = ()
    measurements: tuple[Measurement, ...] = ()
    timings: tuple[Timing, ...] = ()
    modules: tuple[ModuleRecord, ...] = ()
    slow: tuple[str, ...] = ()
    experts: dict[str, tuple[int, ...]] = field(default_factory=dict)
    weights: Histogram | None = None


@dataclass(frozen=True)
class Study:
    """Several models with the same measurements. environment:
    lowbit.inspect.environment.describe()."""

    models: tuple[ModelRecord, ...]
    environment: dict[str, str | int]
    seed: int
    commands: tuple[str, ...] = field(default=())

    @property
    def reference(self) -> ModelRecord:
        return self.models[0]

    def to_dict(self) -> dict[str, Any]:
        """The study as JSON values (`json_safe`)."""
        return {"schema": SCHEMA, "version": VERSION, **json_safe(asdict(self))}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`. Raises InputError for anything else."""
        if stored.get("schema") != SCHEMA or stored.get("version") != VERSION:
            raise InputError(
                f"this is {stored.get('schema')!r} version {stored.get('version')!r},"
                f" not {SCHEMA!r} version {VERSION}"
            )
        try:
            return structured(
                cls, {k: v for k, v in stored.items() if k not in ("schema", "version")}
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"this study is damaged: {error}") from error

    @classmethod
    def load(cls, file: str | Path) -> Self:
        """A study that was written as JSON. Raises InputError."""
        stored = read_json(Path(file))
        if not isinstance(stored, dict):
            raise InputError(f"{file} does not hold a study but a {type(stored).__name__}")
        return cls.from_dict(stored)


def structured(cls: type[Record], stored: Mapping[str, Any]) -> Record:
    """Build a record of this dataclass, with nested records, from JSON values.

    A missing field gets its default. Raises TypeError if a field is unknown, missing without a
    default, or has a value of another type.
    """
    hints = get_type_hints(cls)
    if unknown := sorted(set(stored) - set(hints)):
        raise TypeError(f"{cls.__name__} has no {unknown[0]}")
    for each in fields(cls):  # type: ignore[arg-type]
        if each.name not in stored and each.default is each.default_factory is MISSING:
            raise TypeError(f"{cls.__name__} lacks {each.name}")
    return cls(**{k: _value(v, hints[k], f"{cls.__name__}.{k}") for k, v in stored.items()})


def _value(value: Any, hint: Any, where: str) -> Any:
    """`value` converted to the type `hint`; floats may be integers, or texts of `json_safe`."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        kinds = sorted(inner, key=lambda kind: kind is float)  # integers stay what they are
        fitting = [kind for kind in kinds if _fits(value, kind)]
        if fitting:
            return _value(value, fitting[0], where)
    elif not _fits(value, hint):
        pass
    elif isinstance(hint, type) and is_dataclass(hint):
        return structured(hint, value)
    elif hint is float:
        return float(value)
    elif origin is tuple:
        return tuple(_value(item, inner[0], where) for item in value)
    elif origin is dict:
        return {key: _value(item, inner[1], where) for key, item in value.items()}
    else:
        return value
    raise TypeError(f"{where} is {value!r}")


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value has a type, without checking its contents."""
    origin = get_origin(hint)
    if hint is Any:
        return True
    if origin is Literal:
        return value in get_args(hint)
    if origin is tuple:
        return isinstance(value, list | tuple)
    if origin is dict:
        return isinstance(value, dict) and all(isinstance(key, str) for key in value)
    if is_dataclass(hint):
        return isinstance(value, Mapping)
    if hint is float:
        return (isinstance(value, int | float) and not isinstance(value, bool)) or value in NOT_SAID
    return isinstance(value, hint) and not (hint is int and isinstance(value, bool))


def json_safe(value: Any) -> Any:
    """JSON values: numbers that JSON does not have (NaN, infinity) become texts."""
    if isinstance(value, dict):
        return {key: json_safe(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_safe(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
