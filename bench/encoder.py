"""BERT-base shape, 8-bit weights and activations: the whole encoder through transformers.

    python bench/encoder.py [--threads 2] [--rounds 15] [--paths amx,avx512] [--write]

Random weights. Contenders take turns within every round, so that a busy machine slows all of them;
the time of each is its median, the ratio the median of the ratios within a round. Then one pass of
ours is taken apart by module.
"""

import argparse
import copy
import os
import platform
import statistics
import subprocess
import time
import warnings
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from torch import Tensor, nn
from transformers import BertConfig, BertModel

import lowbit
from lowbit.kernels import native
from lowbit.kernels.linear import KERNELS
from lowbit.kernels.selection import VARIABLE
from lowbit.nn import QuantLinear

RESULT = Path(__file__).parent.parent / "docs" / "results" / "encoder.md"
SIZES = ((1, 128), (8, 128))


def torch_dynamic(model: BertModel) -> nn.Module:
    """PyTorch's own int8 with dynamic activation scales."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, and still the one to beat
        quantized: nn.Module = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})
    return quantized


def ours(model: BertModel, path: str) -> nn.Module:
    """A quantized copy that has chosen its kernels, which happens at the first forward pass."""
    model = copy.deepcopy(model)
    lowbit.quantize(model, "int8-dynamic", progress=False)
    os.environ[VARIABLE] = path
    model(torch.zeros(1, 8, dtype=torch.long))
    del os.environ[VARIABLE]
    return model


def runnable_paths() -> list[str]:
    return [k.name for k in KERNELS["dynamic"] if k.isa and not native.lacks(k.isa)]


def time_of(model: nn.Module, ids: Tensor) -> float:
    start = time.perf_counter()
    model(ids)
    return time.perf_counter() - start


def relative_error(y: Tensor, reference: Tensor) -> float:
    return float((y - reference).norm() / reference.norm())


def measure(contenders: dict[str, nn.Module], ids: Tensor, rounds: int) -> list[str]:
    """Table rows: milliseconds, ratio to the first contender, error of the last hidden state."""
    hidden = {name: model(ids).last_hidden_state for name, model in contenders.items()}
    seconds: dict[str, list[float]] = defaultdict(list)
    for _ in range(rounds):
        for name, model in contenders.items():
            seconds[name].append(time_of(model, ids))
    first = next(iter(contenders))
    rows = []
    for name, times in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(seconds[first], times, strict=True))
        error = relative_error(hidden[name], hidden[first])
        rows.append(
            f"| {name} | {statistics.median(times) * 1e3:.1f} | {min(times) * 1e3:.1f} |"
            f" {ratio:.2f} | {error:.4f} |"
        )
    return rows


def taken_apart(model: nn.Module, ids: Tensor, rounds: int) -> list[str]:
    """Table rows: milliseconds inside the modules of each kind, less those nested in them."""
    kinds: dict[str, Callable[[nn.Module], bool]] = {
        "products (QuantLinear)": lambda m: isinstance(m, QuantLinear),
        "GELU": lambda m: "GELU" in type(m).__name__,
        "LayerNorm": lambda m: isinstance(m, nn.LayerNorm),
        "attention without its products": lambda m: type(m).__name__.endswith("SelfAttention"),
        "embeddings": lambda m: type(m).__name__ == "BertEmbeddings",
    }
    spent: dict[str, float] = defaultdict(float)
    open_calls: list[float] = []  # time spent in timed modules inside each open call
    handles = []
    for module in model.modules():
        kind = next((name for name, test in kinds.items() if test(module)), None)
        if kind is None:
            continue
        starts: list[float] = []

        def enter(*_: object, starts: list[float] = starts) -> None:
            open_calls.append(0.0)
            starts.append(time.perf_counter())

        def leave(*_: object, starts: list[float] = starts, kind: str = kind) -> None:
            taken = time.perf_counter() - starts.pop()
            spent[kind] += taken - open_calls.pop()
            if open_calls:
                open_calls[-1] += taken

        handles += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    best: tuple[float, dict[str, float]] = (float("inf"), {})
    for _ in range(rounds):
        spent.clear()
        total = time_of(model, ids)
        best = min(best, (total, dict(spent)), key=lambda pair: pair[0])
    for handle in handles:
        handle.remove()
    total, parts = best
    parts["the rest (additions, Python)"] = total - sum(parts.values())
    return [f"| {kind} | {parts[kind] * 1e3:.2f} | {parts[kind] / total:.0%} |" for kind in parts]


def processor() -> str:
    names = [
        line.split(":", 1)[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return f"{names[0] if names else platform.machine()} ({', '.join(sorted(native.features()))})"


def commit() -> str:
    root = Path(__file__).parent
    told = ["git", "-C", str(root), "describe", "--always", "--dirty", "--exclude=*"]
    return subprocess.run(told, capture_output=True, text=True).stdout.strip() or "unknown"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--paths", default=",".join(runnable_paths()))
    parser.add_argument("--write", action="store_true", help=f"write {RESULT.name}")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    torch.set_grad_enabled(False)

    model = BertModel(BertConfig()).eval()
    contenders: dict[str, nn.Module] = {"torch float32": model}
    contenders["torch quantize_dynamic"] = torch_dynamic(model)
    paths = options.paths.split(",")
    contenders |= {f"lowbit int8-dynamic, {path}": ours(model, path) for path in paths}
    lines = [
        "# BERT-base shape, int8 with dynamic activation scales",
        "",
        f"`python bench/encoder.py`, {time.strftime('%Y-%m-%d')}, {processor()},"
        f" {options.threads} threads, torch {torch.__version__}, transformers"
        f" {transformers.__version__} (eager), commit {commit()}. Random weights;"
        f" {options.rounds} rounds.",
    ]
    for batch, tokens in SIZES:
        ids = torch.randint(0, 30_000, (batch, tokens))
        lines += [
            "",
            f"## {batch} × {tokens} tokens",
            "",
            "| | median ms | fastest ms | × float32 | relative error |",
            "|---|---|---|---|---|",
            *measure(contenders, ids, options.rounds),
            "",
            f"Where the time goes in the fastest pass with {paths[0]}:",
            "",
            "| | ms | share |",
            "|---|---|---|",
            *taken_apart(contenders[f"lowbit int8-dynamic, {paths[0]}"], ids, options.rounds),
        ]
    text = "\n".join(lines) + "\n"
    print(text)
    if options.write:
        RESULT.parent.mkdir(parents=True, exist_ok=True)
        RESULT.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
