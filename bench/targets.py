"""The instruction set that a bench is held to: the best of the processor, or a lower one by
`--target`, for all engines that can be held.

lowbit obeys LOWBIT_KERNEL, torch ATEN_CPU_CAPABILITY, ONEDNN_MAX_CPU_ISA and
MKL_ENABLE_INSTRUCTIONS, OpenVINO ONEDNN_MAX_CPU_ISA in its products alone. ONNX Runtime asks the
processor and cannot be held. llama.cpp is what it was built for: name another build by
LLAMA_CPP_LIB_PATH.
"""

import argparse
import os
import sys
from pathlib import Path

from machine import speed_page

from lowbit.kernels import native
from lowbit.kernels.selection import VARIABLE

_256_BITS = {"ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
# What holds the engines beside lowbit to one of its targets.
HELD = {
    "avx512": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_VNNI"},
    "avx512bw": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"},
    "avxvnni": _256_BITS | {"ONEDNN_MAX_CPU_ISA": "AVX2_VNNI"},
    "avx2": _256_BITS | {"ONEDNN_MAX_CPU_ISA": "AVX2"},
}
CANNOT_BE_HELD = "not held"


def runnable() -> list[str]:
    """The targets of the products that this processor has, best first."""
    return [target.name for target in native.targets("linear") if not native.lacks(target.feature)]


def enter(target: str | None) -> str:
    """Start this program again as the environment must be before torch is loaded. Returns the
    target; by default the best of the processor, where nothing is held."""
    if target is not None and os.environ.get(VARIABLE) != target:
        held = os.environ | {VARIABLE: target} | HELD.get(target, {})
        os.execve(sys.executable, [sys.executable, *sys.argv], held)
    return target or (runnable() or ["reference"])[0]


def forced() -> bool:
    """Whether other engines could use more than the target has."""
    return VARIABLE in os.environ


def page(name: str, target: str) -> Path:
    """Where a bench keeps the result of a target."""
    features = {target.name: target.feature for target in native.targets("linear")}
    return speed_page(name, features.get(target, target))


def parser(description: str | None) -> argparse.ArgumentParser:
    """Options that every bench has which is held to a target and prints as it goes."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--target", choices=runnable(), help="default: the best of the processor")
    made.add_argument("--seconds", type=float, default=420, help="how long the tables may take")
    made.add_argument("--write", action="store_true", help="keep the page in docs/results")
    return made
