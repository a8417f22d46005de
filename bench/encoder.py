"""BERT-base shape: the whole encoder through transformers, beside other engines.

    pip install ".[bench]"
    python bench/encoder.py [--threads 2] [--rounds 15] [--paths amx,avx512] [--write]

Random weights. One pass of ours, with its own attention, is taken apart by module. Engines with
threads of their own run in processes of their own; what is not installed is left out, by name.
"""

import copy
import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import transformers
from apart import Apart
from engines import Encoder, of_torch, onnx_runtime_int8, openvino, torch_bfloat16, torch_dynamic
from machine import described, finish, speed_page
from torch import Tensor, nn
from transformers import BertConfig, BertModel
from turns import again, parser, ready, seconds, take_turns, times_faster

import lowbit
from lowbit.kernels import native
from lowbit.kernels.linear import KERNELS
from lowbit.kernels.selection import VARIABLE
from lowbit.nn import QuantLinear

RESULT = speed_page("encoder")
SIZES = ((1, 128), (8, 128))
OTHER_RECIPES = ("int8-static", "int8", "int4-dynamic", "int4", "bcq3-dynamic")


def quantized(model: BertModel, recipe: str, path: str, attention: str = "sdpa") -> nn.Module:
    """A copy that has chosen its kernels, which happens at the first forward pass."""
    model = copy.deepcopy(model)
    ids = torch.randint(model.config.vocab_size, (8, 128)) if recipe.endswith("static") else None
    lowbit.quantize(model, recipe, progress=False, calibration=ids)
    model.set_attn_implementation(attention)
    os.environ[VARIABLE] = path
    model(torch.zeros(1, 8, dtype=torch.long))
    del os.environ[VARIABLE]
    return model


def runnable_paths() -> list[str]:
    return [k.name for k in KERNELS["dynamic"] if k.isa and not native.lacks(k.isa)]


def peers(
    model: BertModel, example: Tensor, folder: Path, threads: int
) -> tuple[dict[str, Encoder], list[str]]:
    """The engines that are installed, and what became of the others."""
    of_openvino = partial(Apart, threads, openvino, model, example, threads)
    makers: dict[str, Callable[[], Encoder]] = {
        "torch bfloat16": lambda: torch_bfloat16(copy.deepcopy(model)),
        "torch quantize_dynamic": lambda: torch_dynamic(model),
        "ONNX Runtime int8 dynamic": lambda: Apart(
            threads, onnx_runtime_int8, model, example, folder, threads
        ),
        "OpenVINO bfloat16": lambda: of_openvino("bf16", False),
        "OpenVINO static int8, rest float32": lambda: of_openvino("f32", True),
        "OpenVINO static int8, rest bfloat16": lambda: of_openvino("bf16", True),
    }
    found, absent = {}, []
    for name, make in makers.items():
        try:
            found[name] = make()
        except ImportError as error:
            absent.append(f"{name} ({error})")
    return found, absent


def relative_error(y: Tensor, reference: Tensor) -> float:
    return float((y - reference).norm() / reference.norm())


def measure(contenders: dict[str, Encoder], ids: Tensor, rounds: int) -> list[str]:
    """Table rows: milliseconds, ratio to the first contender, error of the last hidden state."""
    hidden = {name: run(ids) for name, run in contenders.items()}
    turns = {
        name: partial(again, partial(run.timed if isinstance(run, Apart) else run, ids))
        for name, run in contenders.items()
    }
    taken = take_turns(turns, rounds, 0)
    first = next(iter(contenders))
    rows = []
    for name, times in taken.items():
        ratio = times_faster(taken[first], times)
        error = relative_error(hidden[name], hidden[first])
        rows.append(
            f"| {name} | {statistics.median(times) * 1e3:.1f} | {min(times) * 1e3:.1f} |"
            f" {ratio:.2f} | {error:.4f} |"
        )
    return rows


def taken_apart(model: nn.Module, ids: Tensor, rounds: int) -> list[str]:
    """Table rows: milliseconds inside the modules of each kind, less those nested in them."""
    kinds: dict[str, Callable[[nn.Module], bool]] = {
        "products and GELU (QuantLinear)": lambda m: isinstance(m, QuantLinear),
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
        total = seconds(partial(model, ids))
        best = min(best, (total, dict(spent)), key=lambda pair: pair[0])
    for handle in handles:
        handle.remove()
    total, parts = best
    parts["the rest (additions, Python)"] = total - sum(parts.values())
    return [f"| {kind} | {parts[kind] * 1e3:.2f} | {parts[kind] / total:.0%} |" for kind in parts]


def main() -> None:
    asked = parser(__doc__, RESULT, rounds=15)
    asked.add_argument("--paths", default=",".join(runnable_paths()))
    options = asked.parse_args()
    ready(options.threads)

    model = BertModel(BertConfig()).eval()
    paths = options.paths.split(",")
    own = {f"lowbit int8-dynamic, {path}": quantized(model, "int8-dynamic", path) for path in paths}
    best = f"lowbit int8-dynamic, {paths[0]}, its own attention"
    own = {best: quantized(model, "int8-dynamic", paths[0], "lowbit"), **own}
    for recipe in OTHER_RECIPES:
        own[f"lowbit {recipe}, {paths[0]}"] = quantized(model, recipe, paths[0])
    lines = [
        "# BERT-base shape, whole encoder",
        "",
        f"`python bench/encoder.py`, {time.strftime('%Y-%m-%d')}. {described()} transformers"
        f" {transformers.__version__} (eager). Random weights; {options.rounds} rounds, in each the"
        " second of two passes in a row.",
    ]
    for batch, tokens in SIZES:
        ids = torch.randint(0, 30_000, (batch, tokens))
        parts = taken_apart(own[best], ids, options.rounds)
        with tempfile.TemporaryDirectory() as folder:
            others, absent = peers(model, ids, Path(folder), options.threads)
            contenders = {"torch float32": of_torch(model), **others}
            contenders |= {name: of_torch(m) for name, m in own.items()}
            table = measure(contenders, ids, options.rounds)
        lines += [
            "",
            f"## {batch} × {tokens} tokens",
            "",
            "| | median ms | fastest ms | × float32 | relative error |",
            "|---|---|---|---|---|",
            *table,
            *(f"\nLeft out: {name}." for name in absent),
            "",
            f"Where the time goes in the fastest pass of {best}:",
            "",
            "| | ms | share |",
            "|---|---|---|",
            *parts,
        ]
    finish(lines, RESULT, options.write)


if __name__ == "__main__":
    main()
