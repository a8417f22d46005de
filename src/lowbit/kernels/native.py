"""The compiled kernels, or the reason why there are none.

`lowbit._native` is built from csrc/ at installation. Without it every op runs its reference. It
finds torch's threads at the first call, so torch must be imported by then, but not here:
`lowbit --version` asks for the instruction sets alone.
"""

from importlib import import_module
from types import ModuleType
from typing import NamedTuple

BASE = "scalar"  # the feature that every processor has

module: ModuleType | None = None
_reason = ""
try:
    module = import_module("lowbit._native")
except ImportError as error:
    _reason = f"lowbit was installed without its compiled kernels ({error})"

_features: frozenset[str] = frozenset(module.features()) if module is not None else frozenset()
_paths: dict[str, list[tuple[str, str]]] = module.paths if module is not None else {}


def available() -> bool:
    return module is not None


def reason() -> str:
    """Why the native module is absent; "" where it is present."""
    return _reason


def features() -> frozenset[str]:
    """What this processor has of the features in csrc/cpu.h."""
    return _features


class Path(NamedTuple):
    """An operator as compiled for one instruction set: its name, and what a processor must have
    (`lacks`)."""

    name: str
    feature: str


def paths(operator: str) -> tuple[Path, ...]:
    """The paths of a native operator, best first; none without native code. "linear",
    "quantize_rows", "decode_packed", "attention_float32" and "attention_bfloat16" are operators."""
    return tuple(Path(*path) for path in _paths.get(operator, ()))


def path_names() -> tuple[str, ...]:
    """The names of all operators' paths, each once: best first."""
    return tuple(dict.fromkeys(path.name for operator in _paths for path in paths(operator)))


def instruction_sets() -> str:
    """In one line: the paths that this processor can run, best first; or the word none, and
    why."""
    if module is None:
        return f"none: {_reason}"
    runnable = [path for operator in _paths for path in paths(operator) if not lacks(path.feature)]
    return ", ".join(dict.fromkeys(path.name for path in runnable))


def lacks(feature: str) -> str | None:
    """Why code compiled for a feature cannot run here, or None if it can."""
    if module is None:
        return f"no native module: {_reason}"
    if feature not in _features:
        return f"this processor has no {feature}"
    if all(path.feature != feature for operator in _paths for path in paths(operator)):
        return f"the compiler that built the native module knew no {feature}"
    return None
