"""Random language models of the shapes that benches of decoding and prefill measure.

Time does not depend on the numbers. So a quantized model is made from one quantized matrix of each
shape, in seconds where quantizing every layer would take minutes.
"""

import copy

import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.initialization import no_init_weights

from lowbit.conversion.fuse import fuse
from lowbit.conversion.one_weight import put_quantized, put_tied
from lowbit.conversion.plan import make_plan
from lowbit.conversion.recipe import Recipe, Rule
from lowbit.conversion.ties import untie
from lowbit.formats import QTensor, group
from lowbit.schemes import Binary, Scheme, ZeroPoint

LLAMA = {
    "vocab_size": 32_000,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
}
# GPT-2 of 124 million, with positions for a prompt of 2,048 tokens.
GPT2 = {"n_positions": 4096}
# By bits, llama.cpp's type of as many.
PEERS = {4: "Q4_0", 3: "Q3_K_M", 2: "Q2_K"}
SCHEMES: dict[str, Scheme] = {
    "int4": ZeroPoint(4, group(64)),
    "int3": ZeroPoint(3, group(64)),
    "int2": ZeroPoint(2, group(64)),
    "bcq3": Binary(3, group(64), solver="greedy"),
    "bcq2": Binary(2, group(64), solver="greedy"),
}


def llama(layers: int = 16) -> LlamaConfig:
    """The Llama of 1.04 billion parameters, or its first layers."""
    return LlamaConfig(**LLAMA | {"num_hidden_layers": layers})


def gpt2() -> GPT2Config:
    return GPT2Config(**GPT2)


def _empty(config: PreTrainedConfig) -> PreTrainedModel:
    with no_init_weights():
        model = AutoModelForCausalLM.from_config(config).eval()
    model.generation_config.eos_token_id = None  # all of them give as many tokens
    return model


def _fill(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.data.uniform_(-0.03, 0.03)


def float_model(config: PreTrainedConfig) -> PreTrainedModel:
    model = _empty(config)
    _fill(model)
    return model


def quantized_model(config: PreTrainedConfig, name: str) -> PreTrainedModel:
    """Everything quantized, head and embeddings too, by one of SCHEMES: its name, with "-dynamic"
    for int8 activations."""
    base, dynamic, _ = name.partition("-dynamic")
    rules = (
        Rule(kind, SCHEMES[base], "dynamic" if dynamic else "float")
        for kind in ("@embedding", "@linear")
    )
    model = _empty(config)
    plan = make_plan(model, Recipe(tuple(rules)))
    untie(model, {d.weight for d in plan.tied})
    made: dict[tuple[int, int], QTensor] = {}
    for d in plan.owners:
        shape = d.weights.shape
        if shape not in made:
            made[shape] = d.scheme.quantize(torch.randn(shape))
        put_quantized(model, d, copy.deepcopy(made[shape]), torch.empty(0))
    for tied in plan.tied:
        put_tied(model, tied)
    _fill(model)
    fuse(model)
    return model
