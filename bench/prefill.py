"""Reading a prompt: lowbit beside llama.cpp, and torch in float32 and bfloat16.

    pip install ".[bench]"
    python bench/prefill.py [--target avx2] [--only gpt2] [--seconds 420] [--write]

Random weights, everything quantized. The Llama of 1.04 billion has 2 of its 16 layers, which are
all alike, so that a prompt of 2,048 tokens takes seconds on two slow cores: its tokens/s are about
eight times those of the whole. A call reads a prompt into an empty cache and gives the logits of
its last token, as `generate` asks for. Engines take turns with torch's float32; a row is printed
when it is measured. At the end a prompt of 512 tokens is taken apart.
"""

import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import random_models as models
import targets
import torch
import transformers
from machine import Page, described
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from turns import Budget, in_turns, ready, seconds, times_faster

from lowbit.inspect.environment import processor
from lowbit.nn import QuantLinear, QuantModule

MODELS: dict[str, tuple[str, Callable[[], PreTrainedConfig]]] = {
    "llama": ("2 of 16 layers of a Llama of 1.04 billion", partial(models.llama, 2)),
    "gpt2": ("GPT-2 of 124 million", models.gpt2),
}
RECIPES = ("int4-dynamic", "int3-dynamic", "int2-dynamic", "bcq3-dynamic", "bcq2-dynamic")
RECIPES += ("int4", "int3", "int2")
# (threads, tokens)
CASES = ((2, 128), (2, 512), (2, 2048), (1, 512))
LONGEST = 8  # seconds that a prompt may take
COLUMNS = (
    "processor | target | model | weights | threads | prompt | tokens/s | × llama.cpp |"
    " × float32 | llama.cpp, tokens/s | float32, tokens/s | rounds"
)


def reading(model: PreTrainedModel, attention: str, tokens: int) -> Callable[[], object]:
    ids = torch.full((1, tokens), 5)

    def run() -> None:
        model.set_attn_implementation(attention)
        model(ids, logits_to_keep=1, use_cache=True)

    return run


def row(
    own: Callable[[], object], plain: PreTrainedModel, peer, tokens: int, budget: float
) -> tuple[str, float]:
    """Cells from tokens/s on, and tokens/s."""
    runs: dict[str, Callable[[], object]] = {"float32": reading(plain, "sdpa", tokens), "own": own}
    if peer is not None:
        runs["peer"] = partial(peer.read, tokens, torch.get_num_threads())
    taken = in_turns(runs, budget, most=5)
    speed = {name: tokens / statistics.median(times) for name, times in taken.items()}
    rate = {name: f"{per_second:.0f}" for name, per_second in speed.items()}
    peers = f"{times_faster(taken['peer'], taken['own']):.2f}" if peer is not None else ""
    cells = (
        f"{rate['own']} | {peers} | {times_faster(taken['float32'], taken['own']):.2f} |"
        f" {rate.get('peer', '')} | {rate['float32']} | {len(taken['own'])}"
    )
    return cells, speed["own"]


def table(page: Page, name: str, target: str, budget: float) -> None:
    from llama_cpp_model import LlamaCpp, files

    shared = Budget(budget, (len(RECIPES) + 1) * len(CASES))
    told, make = MODELS[name]
    config, where = make(), processor().partition(" (")[0]
    plain = models.float_model(config)

    def rows(label: str, model: PreTrainedModel, attention: str, peer) -> None:
        speed = float("inf")
        for threads, tokens in CASES:
            head = f"| {where} | {target} | {told} | {label} | {threads} | {tokens} |"
            if tokens / speed > LONGEST:
                shared.rows -= 1
                page.say(f"{head} left out: a prompt would take {tokens / speed:.0f} s |")
                continue
            torch.set_num_threads(threads)
            run = reading(model, attention, tokens)
            cells, speed = row(run, plain, peer, tokens, shared.share())
            page.say(f"{head} {cells} |")

    with tempfile.TemporaryDirectory() as folder:
        found = files(config, models.PEERS.values(), Path(folder))
        peers = {kind: LlamaCpp(file, 2048) for kind, file in found.items()}
        for recipe in RECIPES:
            kind = models.PEERS[models.SCHEMES[recipe.partition("-")[0]].bits]
            model = models.quantized_model(config, recipe)
            rows(f"{recipe} beside {kind}", model, "lowbit", peers[kind])
        for peer in peers.values():
            peer.close()
    rows("torch bfloat16", models.float_model(config).bfloat16(), "sdpa", None)


@contextmanager
def timed(spent: dict[str, float], kinds: dict[str, list[nn.Module]]) -> Iterator[None]:
    """Adds up the seconds inside modules, which must not hold each other."""
    handles = []
    for kind, modules in kinds.items():
        for module in modules:
            starts: list[float] = []

            def enter(*_: object, starts: list[float] = starts) -> None:
                starts.append(time.perf_counter())

            def leave(*_: object, starts: list[float] = starts, kind: str = kind) -> None:
                spent[kind] += time.perf_counter() - starts.pop()

            handles += [
                module.register_forward_pre_hook(enter),
                module.register_forward_hook(leave),
            ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def taken_apart(model: PreTrainedModel, tokens: int) -> list[str]:
    """Table rows of the fastest of five passes: where its time goes, in modules of a kind."""
    head = model.get_output_embeddings()
    inside = list(model.modules())
    kinds = {
        "products (linear layers)": [
            m for m in inside if isinstance(m, QuantLinear) and m is not head
        ],
        "head, of the last token": [head],
        "embeddings": [m for m in inside if isinstance(m, QuantModule | nn.Embedding)],
        "norms": [m for m in inside if "norm" in type(m).__name__.lower()],
    }
    linear = {*kinds["products (linear layers)"], head}
    kinds["embeddings"] = [m for m in kinds["embeddings"] if m not in linear]
    best: tuple[float, dict[str, float]] = (float("inf"), {})
    run = reading(model, "lowbit", tokens)
    run()
    for _ in range(5):
        spent: dict[str, float] = defaultdict(float)
        with timed(spent, kinds):
            total = seconds(run)
        best = min(best, (total, spent), key=lambda pair: pair[0])
    total, parts = best
    rest = total - sum(parts.values())
    rows = {**parts, "attention, cache, additions, activation functions and Python": rest}
    return [f"| {kind} | {took * 1e3:.2f} | {took / total:.0%} |" for kind, took in rows.items()]


def main() -> None:
    asked = targets.parser(__doc__)
    asked.add_argument("--only", choices=MODELS, action="append")
    options = asked.parse_args()
    target = targets.enter(options.target)
    ready(2)
    import llama_cpp
    from llama_cpp_model import built_for

    page = Page(targets.page("prefill", target) if options.write else None)
    page.say(
        "# Reading a prompt",
        "",
        f"`python bench/prefill.py`, {time.strftime('%Y-%m-%d')}, target {target}. {described()}"
        f" transformers {transformers.__version__}, llama.cpp as built by llama-cpp-python"
        f" {llama_cpp.__version__} for {built_for()}. Recipes are -all, with lowbit's attention."
        " Medians; ratios are medians of those within a round.",
        "",
        f"| {COLUMNS} |",
        "|---" * (COLUMNS.count("|") + 1) + "|",
    )
    asked_for = options.only or list(MODELS)
    for name in asked_for:
        table(page, name, target, options.seconds / len(asked_for))
    page.say("", "GPT-2, 512 tokens, int4-dynamic, two threads, the fastest of five passes:", "")
    torch.set_num_threads(2)
    model = models.quantized_model(models.gpt2(), "int4-dynamic")
    page.say("| | ms | share |", "|---|---|---|", *taken_apart(model, 512))


if __name__ == "__main__":
    main()
