"""What a result has to say about the machine and the code it was measured with."""

import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path

import torch

INSTRUCTION_SETS = ("avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512_vnni", "amx_int8", "neon")


def processor() -> str:
    """Model and the instruction sets that matter here, as Linux names them."""
    facts: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        facts.setdefault(key.strip(), value.strip())
    flags = (facts.get("flags") or facts.get("Features") or "").split()
    model = facts.get("model name", platform.machine())
    return f"{model} ({', '.join(name for name in INSTRUCTION_SETS if name in flags)})"


def commit() -> str:
    told = [
        "git",
        "-C",
        str(Path(__file__).parent),
        "describe",
        "--always",
        "--dirty",
        "--exclude=*",
    ]
    return subprocess.run(told, capture_output=True, text=True).stdout.strip() or "unknown"


def described() -> str:
    """One line: processor, threads, commit and torch."""
    return (
        f"Processor: {processor()}, {torch.get_num_threads()} threads; lowbit {commit()},"
        f" torch {torch.__version__}."
    )


def result_page(name: str) -> Path:
    """Where a bench keeps its result."""
    return Path(__file__).parent.parent / "docs" / "results" / name


def finish(lines: Sequence[str], page: Path, write: bool) -> None:
    """Print a result and, if so asked, keep it."""
    text = "\n".join(lines) + "\n"
    print(text)
    if write:
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(text, encoding="utf-8")
