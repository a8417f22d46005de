"""The compiled kernels, or the reason why there are none.

Installation builds `lowbit._native` from csrc/. Without it, every operator runs its reference. It
looks up torch's threads at the first call, so torch must be imported before that call. It is not
imported here, because `lowbit --version` only reads the instruction sets.
"""

from importlib import import_module
from types import ModuleType
from typing import NamedTuple

BASE = "scalar"  # the feature of every processor

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
    """Why the native module is absent; "" if it is present."""
    return _reason


def features() -> frozenset[str]:
    """The features of csrc/cpu.h that this processor has."""
    return _features


class Path(NamedTuple):
    """An operator compiled for one instruction set: the name of the path, and the feature that the
    processor needs (`lacks`)."""

    name: str
    feature: str


def paths(operator: str) -> tuple[Path, ...]:
    """The paths of a native operator, such as "linear", best first; empty without native code.
    csrc/binding.cpp names the operators in `paths`."""
    return tuple(Path(*path) for path in _paths.get(operator, ()))


def path_names() -> tuple[str, ...]:
    """The names of all operators' paths, without duplicates, best first."""
    return tuple(dict.fromkeys(path.name for operator in _paths for path in paths(operator)))


def instruction_sets() -> str:
    """One line: the paths that this processor can run, best first, or "none" and the reason."""
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
