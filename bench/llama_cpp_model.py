"""A random Llama, GPT-2, Qwen3-MoE or OLMoE shape as llama.cpp runs it, in the types of its own
quantizer."""

import ctypes
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import gguf
import llama_cpp
import numpy as np
from transformers import GPT2Config, LlamaConfig, OlmoeConfig, PreTrainedConfig, Qwen3MoeConfig

CONTEXT = 512
Shapes = Iterator[tuple[str, tuple[int, ...]]]


def llama_tensors(c: LlamaConfig) -> Shapes:
    key_value = c.hidden_size * c.num_key_value_heads // c.num_attention_heads
    yield "output_norm.weight", (c.hidden_size,)
    for i in range(c.num_hidden_layers):
        yield f"blk.{i}.attn_norm.weight", (c.hidden_size,)
        yield f"blk.{i}.attn_q.weight", (c.hidden_size, c.hidden_size)
        yield f"blk.{i}.attn_k.weight", (key_value, c.hidden_size)
        yield f"blk.{i}.attn_v.weight", (key_value, c.hidden_size)
        yield f"blk.{i}.attn_output.weight", (c.hidden_size, c.hidden_size)
        yield f"blk.{i}.ffn_norm.weight", (c.hidden_size,)
        yield f"blk.{i}.ffn_gate.weight", (c.intermediate_size, c.hidden_size)
        yield f"blk.{i}.ffn_up.weight", (c.intermediate_size, c.hidden_size)
        yield f"blk.{i}.ffn_down.weight", (c.hidden_size, c.intermediate_size)


def gpt2_tensors(c: GPT2Config) -> Shapes:
    width = c.hidden_size
    matrices = {
        "attn_qkv": (3 * width, width),
        "attn_output": (width, width),
        "ffn_up": (4 * width, width),
        "ffn_down": (width, 4 * width),
    }
    yield "position_embd.weight", (c.max_position_embeddings, width)
    norms = ["output_norm"]
    for i in range(c.num_hidden_layers):
        norms += [f"blk.{i}.attn_norm", f"blk.{i}.ffn_norm"]
        for name, shape in matrices.items():
            yield f"blk.{i}.{name}.weight", shape
            yield f"blk.{i}.{name}.bias", shape[:1]
    for name in norms:
        yield f"{name}.weight", (width,)
        yield f"{name}.bias", (width,)


def mixture_tensors(c: PreTrainedConfig) -> Shapes:
    head = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
    queries, keys = c.num_attention_heads * head, c.num_key_value_heads * head
    inner = inner_size(c)
    whole = isinstance(c, OlmoeConfig)  # its norms are over all heads together
    yield "output_norm.weight", (c.hidden_size,)
    yield "output.weight", (c.vocab_size, c.hidden_size)
    for i in range(c.num_hidden_layers):
        yield f"blk.{i}.attn_norm.weight", (c.hidden_size,)
        yield f"blk.{i}.attn_q.weight", (queries, c.hidden_size)
        yield f"blk.{i}.attn_k.weight", (keys, c.hidden_size)
        yield f"blk.{i}.attn_v.weight", (keys, c.hidden_size)
        yield f"blk.{i}.attn_q_norm.weight", (queries if whole else head,)
        yield f"blk.{i}.attn_k_norm.weight", (keys if whole else head,)
        yield f"blk.{i}.attn_output.weight", (c.hidden_size, queries)
        yield f"blk.{i}.ffn_norm.weight", (c.hidden_size,)
        yield f"blk.{i}.ffn_gate_inp.weight", (c.num_experts, c.hidden_size)
        yield f"blk.{i}.ffn_gate_exps.weight", (c.num_experts, inner, c.hidden_size)
        yield f"blk.{i}.ffn_up_exps.weight", (c.num_experts, inner, c.hidden_size)
        yield f"blk.{i}.ffn_down_exps.weight", (c.num_experts, c.hidden_size, inner)


def inner_size(config: PreTrainedConfig) -> int:
    """Of an expert."""
    own = isinstance(config, Qwen3MoeConfig)
    return config.moe_intermediate_size if own else config.intermediate_size


def write_float16(config: PreTrainedConfig, path: Path) -> None:
    """A random model of that shape; the head of one without experts is tied to its embedding."""
    mixture = isinstance(config, Qwen3MoeConfig | OlmoeConfig)
    kind = config.model_type.replace("_", "") if mixture else config.model_type
    writer = gguf.GGUFWriter(path, kind, use_temp_file=mixture)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("no_vocab")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    if mixture:
        head = getattr(config, "head_dim", None)
        head = head or config.hidden_size // config.num_attention_heads
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_layer_norm_rms_eps(1e-6)
        writer.add_key_length(head)
        writer.add_value_length(head)
        writer.add_rope_dimension_count(head)
        writer.add_rope_freq_base(10_000.0)
        writer.add_expert_count(config.num_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
        if isinstance(config, Qwen3MoeConfig):
            writer.add_expert_feed_forward_length(config.moe_intermediate_size)
        tensors = mixture_tensors(config)
    elif isinstance(config, LlamaConfig):
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_layer_norm_rms_eps(1e-6)
        writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
        tensors = llama_tensors(config)
    else:
        assert isinstance(config, GPT2Config)
        writer.add_feed_forward_length(4 * config.hidden_size)
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
        tensors = gpt2_tensors(config)
    random = np.random.default_rng(0)
    table = "token_embd.weight", (config.vocab_size, config.hidden_size)
    for name, shape in (table, *tensors):
        if name.endswith("gate_inp.weight"):
            values = random.standard_normal(shape, np.float32) * 0.02
            writer.add_tensor(name, values)
        elif len(shape) == 1:
            writer.add_tensor(name, np.full(shape, name.endswith("norm.weight"), np.float32))
        else:
            values = random.standard_normal(shape, np.float32) * 0.02
            writer.add_tensor(name, values.astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def contexts(
    config: PreTrainedConfig,
    types: tuple[str, ...],
    folder: Path,
    threads: int,
    length: int = CONTEXT,
) -> Iterator[tuple[str, object]]:
    """(type, context of llama.cpp) for each type of file; contexts keep their models."""
    llama_cpp.llama_backend_init()
    llama_cpp.llama_log_set(SILENT, ctypes.c_void_p(0))
    source = folder / "f16.gguf"
    write_float16(config, source)
    for name in types:
        target = folder / f"{name}.gguf"
        options = llama_cpp.llama_model_quantize_default_params()
        options.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{name}")
        options.nthread = threads
        if llama_cpp.llama_model_quantize(
            str(source).encode(), str(target).encode(), ctypes.byref(options)
        ):
            raise RuntimeError(f"llama.cpp could not write {name}")
        model = llama_cpp.llama_model_load_from_file(
            str(target).encode(), llama_cpp.llama_model_default_params()
        )
        asked = llama_cpp.llama_context_default_params()
        asked.n_ctx, asked.n_threads, asked.n_threads_batch = length, threads, threads
        asked.n_batch = asked.n_ubatch = CONTEXT
        context = llama_cpp.llama_init_from_model(model, asked)
        if not context:
            raise RuntimeError(f"llama.cpp could not load {name}")
        KEPT.append(model)
        print(f"{name}: {target.stat().st_size / 2**20:.0f} MiB", flush=True)
        yield name, context
    source.unlink()


SILENT = llama_cpp.llama_log_callback(lambda *_: None)
KEPT: list[object] = []  # models that contexts use


def decode(context: object, tokens: list[int], at_once: int) -> None:
    """Tokens from an empty cache, so many in a call; logits of the last in each."""
    llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
    for start in range(0, len(tokens), at_once):
        part = tokens[start : start + at_once]
        given = (llama_cpp.llama_token * len(part))(*part)  # the batch only points to them
        if llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(given, len(part))):
            raise RuntimeError("llama.cpp could not decode")


def decoders(
    config: PreTrainedConfig, types: tuple[str, ...], tokens: int, folder: Path, threads: int
) -> dict[str, Callable[[], None]]:
    """By type of file, as many single-token calls of llama_decode from an empty cache."""
    return {
        name: partial(decode, context, [5] * tokens, 1)
        for name, context in contexts(config, types, folder, threads)
    }


def mixtures(
    config: PreTrainedConfig,
    types: tuple[str, ...],
    tokens: list[int],
    count: int,
    folder: Path,
    threads: int,
) -> dict[str, tuple[Callable[[], None], Callable[[], None]]]:
    """By type of file, the first `count` of the tokens one by one, and all of them in one call."""
    return {
        name: (
            partial(decode, context, tokens[:count], 1),
            partial(decode, context, tokens, CONTEXT),
        )
        for name, context in contexts(config, types, folder, threads, 2 * CONTEXT)
    }
