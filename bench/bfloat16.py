"""What bfloat16 costs a quantized model: int8-dynamic, and torch, in float32 and in bfloat16.

    python bench/bfloat16.py [--threads 2] [--rounds 5] [--write]

Sizes are BERT-base's and GPT-2's, with random weights and fewer layers (a layer's share is what is
compared). *Encoder*: one call with 128 tokens. *Decode*: one token behind 256 in the cache.
"""

import copy
import os
import statistics
from collections.abc import Callable
from functools import partial

import torch
from machine import described, finish, result_page
from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel, PreTrainedModel
from turns import again, parser, ready, take_turns, times_faster

import lowbit
from lowbit.kernels.selection import VARIABLE

RESULT = result_page("bfloat16.md")
LAYERS, TOKENS, HELD = 2, 128, 256
MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "encoder": lambda: BertModel(BertConfig(num_hidden_layers=LAYERS)),
    "decode": lambda: GPT2LMHeadModel(GPT2Config(n_layer=LAYERS)),
}
CASES = (("encoder", 1), ("encoder", 8), ("decode", 1))
HEAD = (
    "| target | case | attention | torch float32 ms | torch bfloat16 ms | int8 float32 ms"
    " | int8 bfloat16 ms | float32 / bfloat16, time of int8 |",
    "|---|---|---|--:|--:|--:|--:|--:|",
)


def contenders(kind: str) -> dict[str, PreTrainedModel]:
    model = MODELS[kind]().eval()
    quantized = copy.deepcopy(model)
    lowbit.quantize(quantized, "int8-dynamic", progress=False)
    models = {"float32": model, "int8 float32": quantized}
    halves = {name: copy.deepcopy(one).bfloat16() for name, one in models.items()}
    return models | {name.replace("float32", "bfloat16"): one for name, one in halves.items()}


def run(model: PreTrainedModel, kind: str, batch: int) -> Callable[[], object]:
    """One call of the case."""
    ids = torch.randint(1000, (batch, TOKENS))
    if kind == "encoder":
        return partial(again, partial(model, ids))
    held = model(torch.randint(1000, (batch, HELD)), use_cache=True).past_key_values

    def step() -> None:
        model(ids[:, :1], past_key_values=held, use_cache=True)
        held.crop(-1)

    return partial(again, step)


def rows(kind: str, batch: int, models: dict[str, PreTrainedModel], rounds: int) -> list[str]:
    target = os.environ.get(VARIABLE) or "best"
    lines = []
    for attention in ("sdpa", "lowbit"):
        for name, model in models.items():
            if name.startswith("int8"):
                model.set_attn_implementation(attention)
        taken = take_turns({n: run(m, kind, batch) for n, m in models.items()}, rounds)
        ms = {name: f"{statistics.median(times) * 1e3:.2f}" for name, times in taken.items()}
        ratio = times_faster(taken["int8 float32"], taken["int8 bfloat16"])
        size = f"{kind} {batch} × {TOKENS if kind == 'encoder' else 1}"
        cells = (ms[n] for n in ("float32", "bfloat16", "int8 float32", "int8 bfloat16"))
        lines.append(f"| {target} | {size} | {attention} | {' | '.join(cells)} | {ratio:.2f} |")
        print(lines[-1], flush=True)
    return lines


def main() -> None:
    options = parser(__doc__, RESULT, rounds=5).parse_args()
    ready(options.threads)
    models = {kind: contenders(kind) for kind in MODELS}
    lines = ["# bfloat16 and float32", "", described(), ""]
    lines += [f"Medians of {options.rounds} rounds, {LAYERS} layers. Below 1 bfloat16 is slower."]
    lines += ["", *HEAD]
    for kind, batch in CASES:
        lines += rows(kind, batch, models[kind], options.rounds)
    finish(lines, RESULT, options.write)


if __name__ == "__main__":
    main()
