"""What was measured, as plain data: one JSON schema for `eval`, `report` and `compare`.

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
# How `json_safe` writes the floats that JSON cannot.
NOT_SAID = ("nan", "inf", "-inf")


@dataclass(frozen=True)
class Metric:
    """A number and which way is better.

    `note` says how it was computed if that needs saying, such as a sacreBLEU signature. low, high:
    where the value lies with 95 % confidence, if the reference's is exact: items are paired.
    """

    value: float
    better: Literal["higher", "lower"]
    note: str = ""
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Sample:
    """One item to read: what went in, what came out, and what was expected where that is known."""

    source: str
    output: str
    reference: str | None = None


@dataclass(frozen=True)
class Measurement:
    """What one task found of one model.

    task: its name, such as "perplexity" or "glue mrpc"; data: where the items came from.
    items, unit: how many were scored, of what ("tokens", "sentences", …).
    settings: what changes the numbers: context, stride, beams, lengths.
    metrics: the first is the one that decides. predictions: one per item, empty where the task
    predicts none; two models agree on an item where these are equal.
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
        """The metric that decides; None where the task has only samples."""
        return next(iter(self.metrics), None)


@dataclass(frozen=True)
class Timing:
    """One shape. Seconds are medians over `rounds`; `spread` is the distance of their quartiles.

    new_tokens: 0 for one forward pass over [batch, length], else so many tokens generated after a
    prompt of `length`. reference_seconds: the reference model in the same rounds, or None.
    """

    batch: int
    length: int
    new_tokens: int
    rounds: int
    threads: int
    seconds: float
    spread: float
    reference_seconds: float | None = None

    @property
    def tokens(self) -> int:
        """Those of one round, read or generated."""
        return self.batch * (self.new_tokens or self.length)

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds

    @property
    def speedup(self) -> float | None:
        """Of the model over the reference; None without one."""
        return None if self.reference_seconds is None else self.reference_seconds / self.seconds


@dataclass(frozen=True)
class Histogram:
    """Counts in equal bins over [−edge, edge]; `outside` counts what lies beyond."""

    edge: float
    counts: tuple[int, ...]
    outside: int


@dataclass(frozen=True)
class ModuleRecord:
    """One module with weights. `relative_error` is Σ(w − ŵ)² / Σw², None where it stayed float or
    is not known; `kernel` is empty for a float module."""

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

    name: what tables call it; path: where it lies, or None for one that was never saved.
    recipe: that of its quantization, or None for a float model.
    stored: a checkpoint's tensors; disk: its files; resident: in memory after loading, and after
    one forward pass; peak: of a fresh process that loads it and runs it once, less what the
    process held before. None where it was not measured.
    slow: in sentences, which layers were slower than in float32 where the model was measured.
    experts: of a mixture, for each of its layers by name, how many tokens of the tasks chose each
    expert.
    weights: all matrices in one histogram, whose edges are those of the reference's.
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
    """Several models, measured alike. `environment` is lowbit.inspect.environment.describe()."""

    models: tuple[ModelRecord, ...]
    environment: dict[str, str | int]
    seed: int
    commands: tuple[str, ...] = field(default=())

    @property
    def reference(self) -> ModelRecord:
        return self.models[0]

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON, as `json_safe` makes it."""
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
    """A record of this dataclass, and of those inside it, from what JSON holds.

    A field that is not stored has its default. Raises TypeError for an unknown field, a missing one
    without a default, and a value of another type than the field's.
    """
    hints = get_type_hints(cls)
    if unknown := sorted(set(stored) - set(hints)):
        raise TypeError(f"{cls.__name__} has no {unknown[0]}")
    for each in fields(cls):  # type: ignore[arg-type]
        if each.name not in stored and each.default is each.default_factory is MISSING:
            raise TypeError(f"{cls.__name__} lacks {each.name}")
    return cls(**{k: _value(v, hints[k], f"{cls.__name__}.{k}") for k, v in stored.items()})


def _value(value: Any, hint: Any, where: str) -> Any:
    """`value` as the type `hint`; floats may be integers, or texts as `json_safe` has."""
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
    """Whether a value is of a type, but for what is inside it."""
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
    """Ready for JSON: a number that JSON cannot say (NaN, an infinity) is its name as text."""
    if isinstance(value, dict):
        return {key: json_safe(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_safe(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
