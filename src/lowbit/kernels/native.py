"""The compiled kernels, or the reason why there are none.

`lowbit._native` is built from csrc/ at installation. Without it every op runs its reference.
"""

from importlib import import_module
from types import ModuleType

import torch  # noqa: F401  the kernels run on the threads of the torch that is already loaded

module: ModuleType | None = None
_reason = ""
try:
    module = import_module("lowbit._native")
except ImportError as error:
    _reason = f"lowbit was installed without its compiled kernels ({error})"

_features: frozenset[str] = frozenset(module.features()) if module is not None else frozenset()


def available() -> bool:
    return module is not None


def reason() -> str:
    """Why the native module is absent; "" where it is present."""
    return _reason


def features() -> frozenset[str]:
    """What this processor has of avx2, avxvnni, avx512, avx512vnni, amx (defined in csrc/cpu.h)."""
    return _features


def lacks(isa: str) -> str | None:
    """Why code compiled for `isa` ("scalar" or a feature) cannot run here, or None if it can."""
    if module is None:
        return f"no native module: {_reason}"
    if isa != "scalar" and isa not in _features:
        return f"this processor has no {isa}"
    return None
