"""Decoding one sequence, a 1.04-billion-parameter Llama and GPT-2: lowbit beside llama.cpp.

    pip install ".[bench]"
    python bench/decoder.py [--threads 2] [--rounds 5] [--only llama] [--write]

Random weights, everything quantized (head and tied embedding too). llama.cpp's files are made by
its own quantizer from a float16 file of the same shape. *Products*: all linear layers, one after
the other, for as many tokens. *Model*: tokens per second of `lowbit.generate` with lowbit's
attention, of transformers' `generate` with torch's, and of llama_decode, all from a single token
on. Contenders take turns within every round.
"""

import copy
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from machine import described, finish, speed_page
from torch import nn
from tqdm import tqdm
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)
from turns import parser, ready, take_turns

import lowbit
from lowbit.conversion.recipe import Recipe, Rule
from lowbit.formats import group
from lowbit.nn import QuantLinear
from lowbit.schemes import Binary, Scheme, ZeroPoint

RESULT = speed_page("decoder")
SHAPE = {
    "vocab_size": 32_000,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
}
MODELS: dict[str, tuple[str, Callable[[], PreTrainedModel]]] = {
    "llama": ("A Llama of 1.04 billion parameters", lambda: LlamaForCausalLM(LlamaConfig(**SHAPE))),
    "gpt2": ("GPT-2 of 124 million", lambda: GPT2LMHeadModel(GPT2Config())),
}
# By bits, llama.cpp's type of as many.
PEERS = {4: "Q4_0", 3: "Q3_K_M", 2: "Q2_K"}
SCHEMES: dict[str, Scheme] = {
    "int4": ZeroPoint(4, group(64)),
    "int3": ZeroPoint(3, group(64)),
    "int2": ZeroPoint(2, group(64)),
    # Speed does not depend on how well codes fit.
    "bcq3": Binary(3, group(64), solver="greedy"),
    "bcq2": Binary(2, group(64), solver="greedy"),
}
NEW_TOKENS = 64
FLOAT = "float32"


def quantized(model: PreTrainedModel, scheme: Scheme, activations: str) -> PreTrainedModel:
    model = copy.deepcopy(model)
    kinds = "@embedding", "@linear"
    recipe = Recipe(tuple(Rule(kind, scheme, activations) for kind in kinds))
    lowbit.quantize(model, recipe, progress=False)
    return model.eval()


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
    generate: Callable[..., object], model: PreTrainedModel, attention: str
) -> Callable[[], object]:
    first = torch.tensor([[5]])

    def run() -> None:
        model.set_attn_implementation(attention)
        generate(model, first, max_new_tokens=NEW_TOKENS, do_sample=False)

    return run


def rates(name: str, threads: int, rounds: int) -> dict[str, float]:
    """Tokens per second: medians over rounds."""
    from llama_cpp_model import decoders

    torch.manual_seed(0)
    float_model = MODELS[name][1]().eval()
    float_model.generation_config.eos_token_id = None  # all of them give as many tokens
    transformers_generate = type(float_model).generate
    runs: dict[str, Callable[[], object]] = {}
    with tempfile.TemporaryDirectory() as folder:
        config, types = float_model.config, tuple(PEERS.values())
        peers = decoders(config, types, NEW_TOKENS, Path(folder), threads)
        runs |= {f"llama.cpp {kind}": run for kind, run in peers.items()}
        runs[f"generate {FLOAT}"] = generation(transformers_generate, float_model, "sdpa")
        for key, scheme in tqdm(SCHEMES.items(), desc=name):
            for activations, suffix in (("dynamic", "-all-dynamic"), ("float", "-all")):
                model = quantized(float_model, scheme, activations)
                runs[f"generate {key}{suffix}"] = generation(transformers_generate, model, "sdpa")
                runs[f"lowbit {key}{suffix}"] = generation(lowbit.generate, model, "lowbit")
                runs[f"products {key}{suffix}"] = products(model)
        taken = take_turns(runs, rounds)
    return {run: NEW_TOKENS / statistics.median(seconds) for run, seconds in taken.items()}


def table(name: str, threads: int, rounds: int) -> list[str]:
    found = rates(name, threads, rounds)
    lines = [
        "",
        f"## {MODELS[name][0]}",
        "",
        "| | tokens/s | by transformers' `generate` | products alone, tokens/s | outside products |"
        " tokens/s / peer's | products / peer |",
        "|---" * 7 + "|",
        f"| {FLOAT} | | {found[f'generate {FLOAT}']:.1f} | | | | |",
    ]
    lines += [
        f"| llama.cpp {p} | {found[f'llama.cpp {p}']:.1f} | | | | 1 | |" for p in PEERS.values()
    ]
    for scheme, of_scheme in SCHEMES.items():
        peer = found[f"llama.cpp {PEERS[of_scheme.bits]}"]
        for key in (f"{scheme}-all-dynamic", f"{scheme}-all"):
            model, product = found[f"lowbit {key}"], found[f"products {key}"]
            lines.append(
                f"| lowbit {key} | {model:.1f} | {found[f'generate {key}']:.1f} | {product:.1f} |"
                f" {1 - model / product:.0%} | {model / peer:.2f}× | {product / peer:.2f}× |"
            )
    return lines


def main() -> None:
    asked = parser(__doc__, RESULT, rounds=5)
    asked.add_argument("--only", choices=MODELS, action="append")
    options = asked.parse_args()
    ready(options.threads)
    import llama_cpp

    lines = [
        "# Decoding one sequence",
        "",
        f"`python bench/decoder.py`, {time.strftime('%Y-%m-%d')}. {described()} transformers"
        f" {transformers.__version__}, llama.cpp as built by llama-cpp-python"
        f" {llama_cpp.__version__}; {NEW_TOKENS} tokens after one, median of {options.rounds}"
        " rounds. Each recipe against the llama.cpp type of as many bits. Models of lowbit by"
        ' `lowbit.generate` with `set_attn_implementation("lowbit")`.',
    ]
    for name in options.only or MODELS:
        lines += table(name, options.threads, options.rounds)
    finish(lines, RESULT, options.write)


if __name__ == "__main__":
    main()
