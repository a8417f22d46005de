"""What a call costs beside its kernel, what loading costs, and whether threads get in the way.

    python bench/overhead.py [--threads 2] [--rounds 300] [--write]

*Eager*: 1 × 64 inputs, 64 outputs, where the product itself takes next to nothing. *Habits*: what
sentence-transformers, pipelines and accelerate call before every batch, on a model that is where
it shall be. *Loading*: the linear layers of BERT-base. *Beside torch*: a torch operation alone, and
the same between two of ours; a second pool of threads, spinning while it waits, would slow it.
"""

import copy
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from machine import described, finish, speed_page
from torch import nn
from transformers import BertConfig, BertModel
from turns import parser, ready, seconds, take_turns, times_faster

import lowbit
from lowbit.conversion.footprint import resident_bytes
from lowbit.formats import CHANNEL, group
from lowbit.nn import QuantLinear, QuantModule
from lowbit.schemes import Absmax, Scheme, ZeroPoint

RESULT = speed_page("overhead")
BATCH = 100  # calls per measurement
SCHEMES: dict[str, tuple[Scheme, str]] = {
    "int8-dynamic": (Absmax(8, CHANNEL), "dynamic"),
    "int8": (Absmax(8, CHANNEL), "float"),
    "int4-dynamic": (ZeroPoint(4, group(64)), "dynamic"),
    "int4": (ZeroPoint(4, group(64)), "float"),
}


def microseconds(runs: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median time of a call; the runs take turns."""

    def often(run: Callable[[], object]) -> None:
        for _ in range(BATCH):
            run()

    taken = take_turns({name: partial(often, run) for name, run in runs.items()}, rounds)
    return {name: statistics.median(times) / BATCH * 1e6 for name, times in taken.items()}


def bare(layer: QuantLinear, x: torch.Tensor, y: torch.Tensor) -> Callable[[], object]:
    """The native function with addresses that are there already."""
    call = layer.packed_call()
    assert call is not None and call.bias is not None
    run, weight, limbs = call.product._target, call.product._layers[0], call.product._limbs
    addresses = x.data_ptr(), call.weight.bytes.data_ptr(), call.bias.data_ptr(), y.data_ptr()
    return lambda: run(weight, *addresses, 1, limbs)


def eager(rounds: int) -> list[str]:
    x, y = torch.randn(1, 64), torch.empty(1, 64)
    plain = nn.Linear(64, 64)
    runs: dict[str, Callable[[], object]] = {"nn.Linear": lambda: plain(x)}
    for name, (scheme, activations) in SCHEMES.items():
        q = scheme.quantize(plain.weight.detach())
        layer = QuantLinear(q.layout, 64, 64, plain.bias, activations).hold(q)
        layer(x)
        runs[name] = lambda layer=layer: layer(x)
        runs[f"{name}, bare"] = bare(layer, x, y)
    taken = microseconds(runs, rounds)
    rows = [f"| nn.Linear, float32 | {taken['nn.Linear']:.2f} | | |"]
    for name in SCHEMES:
        module, kernel = taken[name], taken[f"{name}, bare"]
        rows.append(f"| {name} | {module:.2f} | {kernel:.2f} | {module - kernel:.2f} |")
    return ["| | module, µs | kernel alone, µs | over it, µs |", "|---|---|---|---|", *rows]


HABITS: dict[str, Callable[[nn.Module], object]] = {
    '.to("cpu")': lambda model: model.to("cpu"),
    ".to(dtype)": lambda model: model.to(torch.float32),
    ".eval()": lambda model: model.eval(),
    ".requires_grad_(False)": lambda model: model.requires_grad_(False),
    ".tie_weights()": lambda model: model.tie_weights(),
}


def habits(rounds: int) -> list[str]:
    plain = BertModel(BertConfig()).eval()
    ours = copy.deepcopy(plain)
    lowbit.quantize(ours, "int8-dynamic", progress=False)
    ids = torch.zeros(1, 12, dtype=torch.long)
    rows = []
    for name, habit in HABITS.items():
        runs: dict[str, Callable[[], object]] = {}
        for kind, model in (("float32", plain), ("int8-dynamic", ours)):

            def call(model: nn.Module = model) -> None:
                model(ids)

            def after(model: nn.Module = model, habit: Callable[..., object] = habit) -> None:
                habit(model)
                model(ids)

            runs |= {f"{kind} alone": call, f"{kind} after": after}
        taken = take_turns(runs, rounds)
        more = [
            statistics.median(
                b - a for a, b in zip(taken[f"{kind} alone"], taken[f"{kind} after"], strict=True)
            )
            for kind in ("float32", "int8-dynamic")
        ]
        alone = statistics.median(taken["int8-dynamic alone"])
        rows.append(f"| `{name}` | {more[0] * 1e3:.2f} | {more[1] * 1e3:.2f} | {alone * 1e3:.1f} |")
    head = "| before a call | float32, ms more | int8-dynamic, ms more | its call alone, ms |"
    return [head, "|---|---|---|---|", *rows]


def loading() -> list[str]:
    rows = []
    model = BertModel(BertConfig()).eval()
    for recipe in ("int8-dynamic", "int4", "int4-all", "bcq2"):
        small = copy.deepcopy(model)
        if recipe.startswith("bcq"):  # how well codes fit makes no difference here
            scheme = lowbit.Binary(int(recipe[-1]), group(64), solver="greedy")
            rule = lowbit.Rule("@linear", scheme)
            lowbit.quantize(small, lowbit.Recipe((rule,)), progress=False)
        else:
            lowbit.quantize(small, recipe, progress=False)
        stored = resident_bytes(small)
        layers = [module for module in small.modules() if isinstance(module, QuantModule)]
        taken = seconds(lambda layers=layers: [layer.pack() for layer in layers])
        small(torch.zeros(1, 8, dtype=torch.long))
        after = resident_bytes(small)
        rows.append(
            f"| {recipe} | {taken * 1e3:.0f} | {stored / 2**20:.1f} | {after / 2**20:.1f} |"
            f" {after / stored:.3f} |"
        )
    head = "| recipe | packing, ms | stored, MiB | after the first forward, MiB | ratio |"
    return [head, "|---|---|---|---|---|", *rows]


def beside_torch(rounds: int, most_threads: int) -> list[str]:
    rows = []
    q = Absmax(8, CHANNEL).quantize(torch.randn(768, 768))
    ours = QuantLinear(q.layout, 768, 768, None, "dynamic").hold(q)
    x, weight = torch.randn(128, 768), torch.randn(768, 768)
    for threads in range(1, most_threads + 1):
        torch.set_num_threads(threads)
        theirs, own = partial(torch.mm, x, weight), partial(ours, x)
        order = {
            "first": theirs,
            "after itself": theirs,
            "ours": own,
            "between": theirs,
            "last": own,
        }
        taken = take_turns(order, rounds, unmeasured=10)
        slower = times_faster(taken["between"], taken["after itself"])
        medians = {name: statistics.median(times) * 1e6 for name, times in taken.items()}
        rows.append(
            f"| {threads} | {medians['after itself']:.0f} | {medians['between']:.0f}"
            f" | {slower:.2f} | {medians['ours']:.0f} |"
        )
    head = "| threads | torch.mm after itself, µs | between two of ours, µs | ratio | ours, µs |"
    return [head, "|---|---|---|---|---|", *rows]


def main() -> None:
    options = parser(__doc__, RESULT, rounds=300).parse_args()
    ready(options.threads)
    lines = [
        "# Overhead",
        "",
        f"`python bench/overhead.py`, {time.strftime('%Y-%m-%d')}. {described()} Medians of"
        f" {options.rounds} rounds.",
        "",
        "## An eager call on 1 × 64 inputs",
        "",
        *eager(options.rounds),
        "",
        "## Habits: BERT-base, 12 tokens",
        "",
        *habits(max(10, options.rounds // 10)),
        "",
        "## Loading BERT-base",
        "",
        *loading(),
        "",
        "## Beside torch, on its threads",
        "",
        "Products of 128 × 768 by 768 × 768.",
        "",
        *beside_torch(options.rounds, options.threads),
    ]
    finish(lines, RESULT, options.write)


if __name__ == "__main__":
    main()
