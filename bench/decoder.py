"""Decoding one sequence, a 1.04-billion-parameter Llama and GPT-2: lowbit beside llama.cpp.

    pip install ".[bench]"
    python bench/decoder.py [--target avx2] [--only llama] [--seconds 420] [--write]

Random weights, everything quantized (head and tied embedding too). llama.cpp's files are made by
its own quantizer from a float16 file of the same shape. *Model*: `lowbit.generate` with lowbit's
attention, and transformers' `generate` with torch's. *Products*: all linear layers, one after the
other. All take turns with llama.cpp's type of as many bits and with torch's float32, from a single
token on; a row is printed when it is measured.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import random_models as models
import targets
import torch
import transformers
from machine import Page, described
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from turns import Budget, in_turns, ready, times_faster

import lowbit
from lowbit.inspect.environment import processor
from lowbit.nn import QuantLinear

MODELS: dict[str, tuple[str, Callable[[], PreTrainedConfig]]] = {
    "llama": ("Llama of 1.04 billion", models.llama),
    "gpt2": ("GPT-2 of 124 million", models.gpt2),
}
RECIPES = ("int4-dynamic", "int3-dynamic", "int2-dynamic", "bcq3-dynamic", "bcq2-dynamic")
RECIPES += ("int4", "int3", "int2")
THREADS = (2, 1)
NEW_TOKENS, FLOAT_TOKENS = 24, 4
COLUMNS = (
    "processor | target | model | weights | threads | tokens/s | × llama.cpp | × float32 |"
    " products / llama.cpp | by transformers' generate, tokens/s | llama.cpp, tokens/s |"
    " float32, tokens/s | rounds"
)


def products(model: nn.Module) -> Callable[[], None]:
    """Tokens through every linear layer."""
    layers = [m for m in model.modules() if isinstance(m, QuantLinear)]
    inputs = [torch.randn(1, layer.in_features) for layer in layers]

    def run() -> None:
        for _ in range(NEW_TOKENS):
            for layer, x in zip(layers, inputs, strict=True):
                layer(x)

    return run


def generation(
    generate: Callable[..., object], model: PreTrainedModel, attention: str, tokens: int
) -> Callable[[], object]:
    first = torch.tensor([[5]])

    def run() -> None:
        model.set_attn_implementation(attention)
        generate(model, first, max_new_tokens=tokens, do_sample=False)

    return run


def row(recipe: str, model: PreTrainedModel, plain: PreTrainedModel, peer, budget: float) -> str:
    """Cells from tokens/s on."""
    threads = torch.get_num_threads()
    theirs = type(model).generate
    taken = in_turns(
        {
            "float32": generation(theirs, plain, "sdpa", FLOAT_TOKENS),
            "peer": partial(peer.decode, NEW_TOKENS, threads),
            "own": generation(lowbit.generate, model, "lowbit", NEW_TOKENS),
            "generate": generation(theirs, model, "sdpa", NEW_TOKENS),
            "products": products(model),
        },
        budget,
    )
    # Seconds a token.
    of = {
        n: [t / (FLOAT_TOKENS if n == "float32" else NEW_TOKENS) for t in taken[n]] for n in taken
    }
    rate = {name: 1 / statistics.median(times) for name, times in of.items()}
    return (
        f"{rate['own']:.1f} | {times_faster(of['peer'], of['own']):.2f} |"
        f" {times_faster(of['float32'], of['own']):.2f} |"
        f" {times_faster(of['peer'], of['products']):.2f} | {rate['generate']:.1f} |"
        f" {rate['peer']:.1f} | {rate['float32']:.1f} | {len(of['own'])}"
    )


def table(page: Page, name: str, target: str, budget: float) -> None:
    from llama_cpp_model import LlamaCpp, files

    shared = Budget(budget, len(RECIPES) * len(THREADS))
    told, make = MODELS[name]
    config, where = make(), processor().partition(" (")[0]
    plain = models.float_model(config)
    with tempfile.TemporaryDirectory() as folder:
        found = files(config, models.PEERS.values(), Path(folder))
        peers = {kind: LlamaCpp(file, 512) for kind, file in found.items()}
        for recipe in RECIPES:
            kind = models.PEERS[models.SCHEMES[recipe.partition("-")[0]].bits]
            model = models.quantized_model(config, recipe)
            for threads in THREADS:
                torch.set_num_threads(threads)
                cells = row(recipe, model, plain, peers[kind], shared.share())
                what = f"{told} | {recipe} beside {kind} | {threads}"
                page.say(f"| {where} | {target} | {what} | {cells} |")
        for peer in peers.values():
            peer.close()


def main() -> None:
    asked = targets.parser(__doc__)
    asked.add_argument("--only", choices=MODELS, action="append")
    options = asked.parse_args()
    target = targets.enter(options.target)
    ready(max(THREADS))
    import llama_cpp
    from llama_cpp_model import built_for

    page = Page(targets.page("decoder", target) if options.write else None)
    page.say(
        "# Decoding one sequence",
        "",
        f"`python bench/decoder.py`, {time.strftime('%Y-%m-%d')}, target {target}. {described()}"
        f" transformers {transformers.__version__}, llama.cpp as built by llama-cpp-python"
        f" {llama_cpp.__version__} for {built_for()}; {NEW_TOKENS} tokens after one. Recipes are"
        " -all: head and embedding have the same bits. Medians; ratios are medians of those within"
        " a round.",
        "",
        f"| {COLUMNS} |",
        "|---" * (COLUMNS.count("|") + 1) + "|",
    )
    asked_for = options.only or list(MODELS)
    for name in asked_for:
        table(page, name, target, options.seconds / len(asked_for))


if __name__ == "__main__":
    main()
