"""What bfloat16 costs a quantized model: int8-dynamic, and torch, in float32 and in bfloat16.

    python bench/bfloat16.py [--threads 1] [--rounds 10] [--target NAME] [--write]

Sizes are BERT-base's and GPT-2's, with random weights and fewer layers (a layer's share is what is
compared). *Encoder* and *prefill*: one call with 128 tokens. *Decode*: one token behind 256 in the
cache. Contenders take turns; the best time of each counts. Each target runs in a process of its
own: what this processor has, and AVX2, to which torch is held as well. Neither model has a head.
"""

import copy
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial

import torch
from machine import described, finish, result_page
from transformers import BertConfig, BertModel, GPT2Config, GPT2Model, PreTrainedModel
from turns import again, parser, ready, take_turns

import lowbit
from lowbit.kernels.selection import VARIABLE

RESULT = result_page("bfloat16.md")
LAYERS, TOKENS, HELD = 2, 128, 256
MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "encoder": lambda: BertModel(BertConfig(num_hidden_layers=LAYERS)),
    "decoder": lambda: GPT2Model(GPT2Config(n_layer=LAYERS)),
}
CASES = {
    "encoder": (("call", 1), ("call", 8)),
    "decoder": (("prefill", 1), ("prefill", 8), ("decode", 1)),
}
TARGETS = {
    "best": {},
    "avx2": {VARIABLE: "avx2", "ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"},
}
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


def run(model: PreTrainedModel, case: str, batch: int) -> Callable[[], object]:
    """One call of the case."""
    ids = torch.randint(1000, (batch, TOKENS))
    if case != "decode":
        return partial(again, partial(model, ids))
    held = model(torch.randint(1000, (batch, HELD)), use_cache=True).past_key_values

    def step() -> None:
        model(ids[:, :1], past_key_values=held, use_cache=True)
        held.crop(-1)

    return partial(again, step)


def rows(
    target: str, kind: str, case: str, batch: int, models: dict[str, PreTrainedModel], rounds: int
) -> None:
    for attention in ("sdpa", "lowbit"):
        for name, model in models.items():
            if name.startswith("int8"):
                model.set_attn_implementation(attention)
        taken = take_turns({n: run(m, case, batch) for n, m in models.items()}, rounds)
        best = {name: min(times) * 1e3 for name, times in taken.items()}
        ratio = best["int8 float32"] / best["int8 bfloat16"]
        size = f"{kind}, {case} {batch} × {1 if case == 'decode' else TOKENS}"
        cells = (f"{best[n]:.2f}" for n in ("float32", "bfloat16", "int8 float32", "int8 bfloat16"))
        print(
            f"| {target} | {size} | {attention} | {' | '.join(cells)} | {ratio:.2f} |", flush=True
        )


def measure(target: str, rounds: int) -> None:
    for kind, cases in CASES.items():
        models = contenders(kind)
        for case, batch in cases:
            rows(target, kind, case, batch, models, rounds)


def in_a_process(target: str, rounds: int, threads: int) -> list[str]:
    command = [sys.executable, __file__, f"--rounds={rounds}", f"--threads={threads}"]
    done = subprocess.run(
        [*command, f"--target={target}"],
        env=os.environ | TARGETS[target],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    print(done.stdout, end="", flush=True)
    return [line for line in done.stdout.splitlines() if line.startswith("|")]


def main() -> None:
    arguments = parser(__doc__, RESULT, rounds=10, threads=1)
    arguments.add_argument("--target", choices=TARGETS)
    options = arguments.parse_args()
    ready(options.threads)
    if options.target:
        measure(options.target, options.rounds)
        return
    lines = ["# bfloat16 and float32", "", described(), ""]
    lines += [
        f"`python bench/bfloat16.py`: best of {options.rounds} rounds in milliseconds,"
        f" {LAYERS} layers. Below 1 bfloat16 is slower.",
        "",
        "Targets: *best* is what this processor has; *avx2* forces lowbit (LOWBIT_KERNEL=avx2),"
        " torch (ATEN_CPU_CAPABILITY=avx2) and oneDNN (ONEDNN_MAX_CPU_ISA=AVX2) to AVX2.",
    ]
    lines += ["", *HEAD]
    for target in TARGETS:
        lines += in_a_process(target, options.rounds, options.threads)
    finish(lines, RESULT, options.write)


if __name__ == "__main__":
    main()
