"""Decoding a 1.04-billion-parameter Llama shape, one sequence: lowbit beside llama.cpp.

    pip install ".[bench]"
    python bench/decoder.py [--threads 2] [--rounds 5] [--write]

Random weights, everything quantized (head and tied embedding too). llama.cpp's files are made by
its own quantizer from a float16 file of the same shape. *Products*: all linear layers of one token,
one after the other. *Model*: tokens per second of `generate` (transformers) and of llama_decode.
Contenders take turns within every round.
"""

import copy
import ctypes
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
import transformers
from machine import described, finish, result_page
from torch import nn
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM
from turns import parser, ready, seconds

import lowbit
from lowbit.formats import group
from lowbit.nn import QuantLinear
from lowbit.recipe import Recipe, Rule
from lowbit.schemes import Binary, Scheme, ZeroPoint

RESULT = result_page("decoder.md")
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
CONFIG = LlamaConfig(**SHAPE)
PEERS = ("Q4_0", "Q3_K_M", "Q2_K")
SCHEMES: dict[str, Scheme] = {
    "int4": ZeroPoint(4, group(64)),
    "int3": ZeroPoint(3, group(64)),
    "int2": ZeroPoint(2, group(64)),
    # Speed does not depend on how well codes fit.
    "bcq3": Binary(3, group(64), solver="greedy"),
    "bcq2": Binary(2, group(64), solver="greedy"),
}
NEW_TOKENS = 24


def quantized(model: LlamaForCausalLM, scheme: Scheme) -> LlamaForCausalLM:
    model = copy.deepcopy(model)
    recipe = Recipe((Rule("@embedding", scheme), Rule("@linear", scheme)))
    lowbit.quantize(model, recipe, progress=False)
    return model.eval()


def set_activations(model: nn.Module, activations: str) -> None:
    for module in model.modules():
        if isinstance(module, QuantLinear):
            module.activations, module.product = activations, None


def products(model: nn.Module) -> Callable[[], None]:
    """One token through every linear layer."""
    layers = [m for m in model.modules() if isinstance(m, QuantLinear)]
    inputs = [torch.randn(1, layer.in_features) for layer in layers]

    def run() -> None:
        for layer, x in zip(layers, inputs, strict=True):
            layer(x)

    return run


def generate(model: LlamaForCausalLM) -> Callable[[], None]:
    prompt = torch.arange(8)[None]
    options = {"min_new_tokens": NEW_TOKENS, "max_new_tokens": NEW_TOKENS, "pad_token_id": 0}

    def run() -> None:
        model.generate(prompt, do_sample=False, **options)

    return run


def write_gguf(path: Path) -> None:
    """A random model of the same shape in float16."""
    import gguf

    c = CONFIG
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(c.max_position_embeddings)
    writer.add_embedding_length(c.hidden_size)
    writer.add_block_count(c.num_hidden_layers)
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_head_count(c.num_attention_heads)
    writer.add_head_count_kv(c.num_key_value_heads)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_dimension_count(c.hidden_size // c.num_attention_heads)
    writer.add_vocab_size(c.vocab_size)
    writer.add_tokenizer_model("no_vocab")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    random = np.random.default_rng(0)
    key_value = c.hidden_size * c.num_key_value_heads // c.num_attention_heads

    def add(name: str, *shape: int) -> None:
        if len(shape) == 1:
            writer.add_tensor(name, np.ones(shape, np.float32))
        else:
            values = random.standard_normal(shape, np.float32) * 0.02
            writer.add_tensor(name, values.astype(np.float16))

    add("token_embd.weight", c.vocab_size, c.hidden_size)
    add("output_norm.weight", c.hidden_size)
    for i in range(c.num_hidden_layers):
        add(f"blk.{i}.attn_norm.weight", c.hidden_size)
        add(f"blk.{i}.ffn_norm.weight", c.hidden_size)
        add(f"blk.{i}.attn_q.weight", c.hidden_size, c.hidden_size)
        add(f"blk.{i}.attn_k.weight", key_value, c.hidden_size)
        add(f"blk.{i}.attn_v.weight", key_value, c.hidden_size)
        add(f"blk.{i}.attn_output.weight", c.hidden_size, c.hidden_size)
        add(f"blk.{i}.ffn_gate.weight", c.intermediate_size, c.hidden_size)
        add(f"blk.{i}.ffn_up.weight", c.intermediate_size, c.hidden_size)
        add(f"blk.{i}.ffn_down.weight", c.hidden_size, c.intermediate_size)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def llama_cpp(folder: Path, threads: int) -> dict[str, Callable[[], None]]:
    """By type of file, NEW_TOKENS single-token calls of llama_decode."""
    import llama_cpp

    llama_cpp.llama_backend_init()
    silent = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(silent, ctypes.c_void_p(0))
    source = folder / "f16.gguf"
    write_gguf(source)
    runs = {}
    for name in PEERS:
        target = folder / f"{name}.gguf"
        options = llama_cpp.llama_model_quantize_default_params()
        options.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{name}")
        options.nthread = threads
        failed = llama_cpp.llama_model_quantize(
            str(source).encode(), str(target).encode(), ctypes.byref(options)
        )
        assert not failed, name
        model = llama_cpp.llama_model_load_from_file(
            str(target).encode(), llama_cpp.llama_model_default_params()
        )
        asked = llama_cpp.llama_context_default_params()
        asked.n_ctx, asked.n_threads, asked.n_threads_batch = 512, threads, threads
        context = llama_cpp.llama_init_from_model(model, asked)

        def run(context: ctypes.c_void_p = context, kept: object = (model, silent)) -> None:
            llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
            token = (llama_cpp.llama_token * 1)(5)
            for _ in range(NEW_TOKENS):
                assert llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(token, 1)) == 0

        runs[name] = run
        print(f"{name}: {target.stat().st_size / 2**20:.0f} MiB", flush=True)
    source.unlink()
    return runs


def table(threads: int, rounds: int) -> list[str]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        peers = llama_cpp(folder, threads)
        torch.manual_seed(0)
        float_model = LlamaForCausalLM(CONFIG)
        models = {name: quantized(float_model, s) for name, s in tqdm(SCHEMES.items())}
        del float_model
        times: dict[str, list[float]] = {}
        for i in range(rounds + 1):
            for name, run in peers.items():
                times.setdefault(f"llama.cpp {name}", []).append(seconds(run) / NEW_TOKENS)
            for name, model in models.items():
                for activations in ("dynamic", "float"):
                    set_activations(model, activations)
                    key = name + "-all" + "-dynamic" * (activations == "dynamic")
                    product = products(model)
                    product()
                    times.setdefault(f"products {key}", []).append(seconds(product))
                    if activations == "dynamic" or i < 3:
                        whole = seconds(generate(model)) / NEW_TOKENS
                        times.setdefault(f"lowbit {key}", []).append(whole)
            if i == 0:
                times.clear()
            print(f"round {i}", flush=True)
    rates = {name: 1 / statistics.median(taken) for name, taken in times.items()}
    lines = ["| | tokens/s | products alone, tokens/s | model / peer | products / peer |"]
    lines.append("|---|---|---|---|---|")
    for peer in PEERS:
        lines.append(f"| llama.cpp {peer} | {rates[f'llama.cpp {peer}']:.1f} | | 1 | |")
    against = {"4": "Q4_0", "3": "Q3_K_M", "2": "Q2_K"}
    for name, scheme in SCHEMES.items():
        peer = rates[f"llama.cpp {against[str(scheme.bits)]}"]
        for key in (f"{name}-all-dynamic", f"{name}-all"):
            model, product = rates[f"lowbit {key}"], rates[f"products {key}"]
            lines.append(
                f"| lowbit {key} | {model:.1f} | {product:.1f} | {model / peer:.2f}×"
                f" | {product / peer:.2f}× |"
            )
    return lines


def main() -> None:
    options = parser(__doc__, RESULT, rounds=5).parse_args()
    ready(options.threads)
    import llama_cpp

    finish(
        [
            "# Decoding a 1.04-billion-parameter Llama shape, batch 1",
            "",
            f"`python bench/decoder.py`, {time.strftime('%Y-%m-%d')}. {described()} transformers"
            f" {transformers.__version__}, llama.cpp as built by llama-cpp-python"
            f" {llama_cpp.__version__}; median of {options.rounds} rounds. Each recipe against the"
            " llama.cpp type of as many bits.",
            "",
            *table(options.threads, options.rounds),
        ],
        RESULT,
        options.write,
    )


if __name__ == "__main__":
    main()
