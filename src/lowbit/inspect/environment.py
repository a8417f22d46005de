"""What a result has to say about the machine and the versions it was measured with."""

import importlib.metadata
import platform
from pathlib import Path

import torch

from lowbit.kernels import native

INSTRUCTION_SETS = ("avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512_vnni", "amx_int8", "neon")


def processor() -> str:
    """Model and the instruction sets that matter here, as Linux names them."""
    facts: dict[str, str] = {}
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        key, _, value = line.partition(":")
        facts.setdefault(key.strip(), value.strip())
    flags = (facts.get("flags") or facts.get("Features") or "").split()
    model = facts.get("model name", platform.processor() or platform.machine())
    known = [name for name in INSTRUCTION_SETS if name in flags]
    return f"{model} ({', '.join(known)})" if known else model


def describe() -> dict[str, str | int]:
    """Versions, processor, native kernels and threads, for the record of a measurement."""
    versions = {name: importlib.metadata.version(name) for name in ("lowbit", "transformers")}
    return {
        **versions,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.system(),
        "processor": processor(),
        "native kernels": native.instruction_sets(),
        "threads": torch.get_num_threads(),
    }
