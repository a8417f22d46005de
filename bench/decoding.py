"""`lowbit.generate` beside `model.generate`: speed, and what a token costs.

    python bench/decoding.py [--threads 1] [--rounds 3] [--only marian] [--write]

Random weights; recipes quantize embeddings and head too. Both run the same model in turns, and the
ids must be equal. *Products* are the linear layers of a step alone, by the native code at known
addresses (float32: by torch's function), one after the other. Processor time counts the process's
own work, whatever else the machine does; ratios are medians over rounds. Prompt and encoder count.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import transformers
from machine import described, finish, speed_page
from random_models import LLAMA as SHAPE
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MarianConfig,
    MarianMTModel,
    PreTrainedModel,
)
from transformers.pytorch_utils import Conv1D
from turns import parser, ready, times_faster

import lowbit
from lowbit.kernels.linear.native import in_place
from lowbit.nn import QuantLinear

RESULT = speed_page("decoding")
PROMPT, NEW_TOKENS = 16, 20
MARIAN = MarianConfig(
    vocab_size=8000,
    d_model=256,
    encoder_layers=4,
    decoder_layers=4,
    encoder_attention_heads=8,
    decoder_attention_heads=8,
    encoder_ffn_dim=1024,
    decoder_ffn_dim=1024,
    max_position_embeddings=256,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
    decoder_start_token_id=0,
)
LLAMA = LlamaConfig(**SHAPE | {"num_hidden_layers": 4})
MODELS: dict[str, tuple[str, Callable[[], PreTrainedModel]]] = {
    "marian": ("Marian of 9.5 M", lambda: MarianMTModel(MARIAN)),
    "gpt2": ("GPT-2 of 124 M", lambda: GPT2LMHeadModel(GPT2Config())),
    "llama": ("4 of the 16 layers of a Llama of 1.04 billion", lambda: LlamaForCausalLM(LLAMA)),
}
RECIPES = ("float32", "int8-all-dynamic", "int4-all-dynamic")
CASES = {"marian": ((1, 1), (16, 1), (1, 4), (16, 4)), "gpt2": ((1, 1), (16, 1))}
CASES["llama"] = CASES["gpt2"]


def step_products(model: PreTrainedModel, rows: int) -> list[Callable[[], object]]:
    """The linear layers that the last of three steps calls, without anything around them."""
    seen: list[tuple[nn.Module, Tensor]] = []
    steps: list[int] = []  # how many were seen before each
    hooks = [
        module.register_forward_pre_hook(lambda layer, args: seen.append((layer, args[0])))
        for module in model.modules()
        if isinstance(module, (nn.Linear, Conv1D, QuantLinear))
    ]

    def stop(ids: Tensor, scores: object) -> Tensor:
        steps.append(len(seen))
        return torch.zeros(len(ids), dtype=torch.bool)

    model.generate(
        torch.full((rows, 2), 5), max_new_tokens=3, stopping_criteria=[stop], **options(model)
    )
    for hook in hooks:
        hook.remove()
    return [product(layer, x) for layer, x in seen[steps[-2] : steps[-1]]]


def product(layer: nn.Module, x: Tensor) -> Callable[[], object]:
    if isinstance(layer, QuantLinear):
        packed = layer.packed_call()
        assert packed is not None
        x = x.contiguous()
        y = torch.empty(*x.shape[:-1], layer.out_features)
        call = in_place([packed.product], [(packed.weight.bytes, packed.bias)], [y])
        return lambda: call(x.data_ptr())
    weight = layer.weight.T if isinstance(layer, Conv1D) else layer.weight
    return lambda: F.linear(x, weight, layer.bias)


def options(model: PreTrainedModel) -> dict[str, Any]:
    """No token that there is ends a row."""
    return {"do_sample": False, "eos_token_id": model.config.vocab_size, "pad_token_id": 0}


def timed(function: Callable[[], Any]) -> tuple[float, float, Any]:
    wall, processor = time.perf_counter(), time.process_time()
    result = function()
    return time.perf_counter() - wall, time.process_time() - processor, result


def case(model: PreTrainedModel, rows: int, beams: int, rounds: int) -> str:
    torch.manual_seed(1)
    ids = torch.randint(3, 8000, (rows, PROMPT))
    settings = options(model) | {"num_beams": beams, "max_new_tokens": NEW_TOKENS}
    products = step_products(model, rows * beams)
    lean, theirs = lowbit.generate, type(model).generate
    lean(model, ids, **settings)  # records
    wall: dict[str, list[float]] = {"theirs": [], "ours": [], "products": []}
    work: dict[str, list[float]] = {"theirs": [], "ours": [], "products": []}
    equal = True
    for _ in range(rounds):
        *theirs_took, expected = timed(lambda: theirs(model, ids, **settings))
        *ours_took, got = timed(lambda: lean(model, ids, **settings))
        *products_took, _ = timed(lambda: [run() for _ in range(NEW_TOKENS) for run in products])
        equal &= torch.equal(expected, got)
        for name, took in zip(wall, (theirs_took, ours_took, products_took), strict=True):
            wall[name].append(took[0] / NEW_TOKENS)
            work[name].append(took[1] / NEW_TOKENS)
    w = {name: statistics.median(taken) for name, taken in wall.items()}
    c = {name: statistics.median(taken) for name, taken in work.items()}
    faster = times_faster(wall["theirs"], wall["ours"])
    less = times_faster(work["theirs"], work["ours"])
    outside = [f"{max(0.0, 1 - c['products'] / c[name]):.0%}" for name in ("theirs", "ours")]
    return (
        f"| {rows} | {beams} | {rows / w['theirs']:.0f} | {rows / w['ours']:.0f} | {faster:.2f}× |"
        f" {c['theirs'] * 1e3:.2f} | {c['ours'] * 1e3:.2f} | {c['products'] * 1e3:.2f} |"
        f" {less:.2f}× | {outside[0]} → {outside[1]} | {'yes' if equal else 'NO'} |"
    )


def table(names: list[str], rounds: int) -> list[str]:
    head = (
        "| | batch | beams | generate, tokens/s | lowbit, tokens/s | faster | generate, ms of"
        " processor a step | lowbit | products | less | outside products | ids equal |"
    )
    lines = [head, "|---" * 12 + "|"]
    for name in names:
        told, make = MODELS[name]
        for recipe in RECIPES:
            torch.manual_seed(0)
            model = make().eval()
            if recipe != "float32":
                lowbit.quantize(model, recipe, progress=False)
            for rows, beams in CASES[name]:
                lines.append(f"| {told}, {recipe} {case(model, rows, beams, rounds)}")
                print(lines[-1], flush=True)
    return lines


def main() -> None:
    asked = parser(__doc__, RESULT, rounds=3, threads=1)
    asked.add_argument("--only", choices=MODELS, action="append")
    chosen = asked.parse_args()
    ready(chosen.threads)
    lines = [
        "# Decoding without transformers' Python",
        "",
        f"`python bench/decoding.py`, {time.strftime('%Y-%m-%d')}. {described()} transformers"
        f" {transformers.__version__}; {chosen.rounds} rounds, {PROMPT} tokens of prompt or"
        f" source, {NEW_TOKENS} new ones. The machine was busy with other work: times are long, and"
        " ratios of processor time say most. Prompt and encoder are part of each call, and so of a"
        " step's time and of what is outside products.",
        "",
        *table(chosen.only or list(MODELS), chosen.rounds),
    ]
    finish(lines, RESULT, chosen.write)


if __name__ == "__main__":
    main()
