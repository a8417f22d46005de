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
_targets: dict[str, list[tuple[str, str]]] = module.targets if module is not None else {}


def available() -> bool:
    return module is not None


def reason() -> str:
    """Why the native module is absent; "" if it is present."""
    return _reason


def features() -> frozenset[str]:
    """The features of csrc/cpu.h that this processor has."""
    return _features


class Target(NamedTuple):
    """An operator compiled for one instruction set: the name of the target, and the feature that
    the processor needs (`lacks`)."""

    name: str
    feature: str


def targets(operator: str) -> tuple[Target, ...]:
    """The targets of a native operator, such as "linear", best first; empty without native code.
    csrc/binding.cpp names the operators in `targets`."""
    return tuple(Target(*target) for target in _targets.get(operator, ()))


def target_names() -> tuple[str, ...]:
    """The names of all operators' targets, without duplicates, best first."""
    return tuple(
        dict.fromkeys(target.name for operator in _targets for target in targets(operator))
    )


def instruction_sets() -> str:
    """One line: the targets that this processor can run, best first, or "none" and the reason."""
    if module is None:
        return f"none: {_reason}"
    runnable = [
        target for operator in _targets for target in targets(operator) if not lacks(target.feature)
    ]
    return ", ".join(dict.fromkeys(target.name for target in runnable))


def lacks(feature: str) -> str | None:
    """Why code compiled for a feature cannot run here, or None if it can."""
    if module is None:
        return f"no native module: {_reason}"
    if feature not in _features:
        return f"this processor has no {feature}"
    if all(target.feature != feature for operator in _targets for target in targets(operator)):
        return f"the compiler that built the native module knew no {feature}"
    return None
