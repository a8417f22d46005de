"""A random Llama, GPT-2, Qwen3-MoE or OLMoE shape as llama.cpp runs it, in the types of its own
quantizer."""

import ctypes
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import gguf
import llama_cpp
import numpy as np
from transformers import GPT2Config, LlamaConfig, OlmoeConfig, PreTrainedConfig, Qwen3MoeConfig

_SILENT = llama_cpp.llama_log_callback(lambda *_: None)
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
    block = (random.standard_normal(1 << 20, np.float32) * 0.02).astype(np.float16)
    table = "token_embd.weight", (config.vocab_size, config.hidden_size)
    for name, shape in (table, *tensors):
        if name.endswith("gate_inp.weight"):
            values = random.standard_normal(shape, np.float32) * 0.02
            writer.add_tensor(name, values)
        elif len(shape) == 1:
            writer.add_tensor(name, np.full(shape, name.endswith("norm.weight"), np.float32))
        else:
            writer.add_tensor(name, np.resize(block, shape))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def files(config: PreTrainedConfig, types: Iterable[str], folder: Path) -> dict[str, Path]:
    """By type, a file of such a model that llama.cpp's own quantizer made, in `folder`; those that
    are there are taken."""
    llama_cpp.llama_backend_init()
    llama_cpp.llama_log_set(_SILENT, ctypes.c_void_p(0))
    source = folder / "f16.gguf"
    made = {name: folder / f"{name}.gguf" for name in types}
    missing = [name for name, file in made.items() if not file.exists()]
    if missing:
        write_float16(config, source)
    for name in missing:
        options = llama_cpp.llama_model_quantize_default_params()
        options.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{name}")
        options.nthread = os.cpu_count()
        paths = str(source).encode(), str(made[name]).encode()
        if llama_cpp.llama_model_quantize(*paths, ctypes.byref(options)):
            raise RuntimeError(f"llama.cpp could not write {name}")
    source.unlink(missing_ok=True)
    return made


def built_for() -> str:
    """The best instruction set that llama.cpp was built for."""
    told = llama_cpp.llama_print_system_info().decode()
    known = ("AMX_INT8", "AVX512_VNNI", "AVX512", "AVX_VNNI", "AVX2", "AVX")
    return next((name for name in known if f"{name} = 1" in told), "none that is told")


class LlamaCpp:
    """A file as llama.cpp runs it, from an empty cache at each call."""

    def __init__(self, file: Path, tokens: int) -> None:
        model = llama_cpp.llama_model_load_from_file(
            str(file).encode(), llama_cpp.llama_model_default_params()
        )
        asked = llama_cpp.llama_context_default_params()
        asked.n_ctx = asked.n_batch = tokens
        self._model, self._context = model, llama_cpp.llama_init_from_model(model, asked)
        if not self._context:
            raise RuntimeError(f"llama.cpp could not load {file}")

    def close(self) -> None:
        llama_cpp.llama_free(self._context)
        llama_cpp.llama_model_free(self._model)

    def decode(self, tokens: int, threads: int) -> None:
        """So many tokens, one after the other."""
        self.run([5] * tokens, 1, threads)

    def read(self, tokens: int, threads: int) -> None:
        """A prompt of so many tokens at once; the logits of the last."""
        self.run([5] * tokens, tokens, threads)

    def run(self, tokens: Sequence[int], at_once: int, threads: int) -> None:
        """Tokens, so many in a call; logits of the last in each."""
        llama_cpp.llama_set_n_threads(self._context, threads, threads)
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)
        for start in range(0, len(tokens), at_once):
            part = tokens[start : start + at_once]
            ids = (llama_cpp.llama_token * len(part))(*part)  # the batch only points to them
            batch = llama_cpp.llama_batch_get_one(ids, len(part))
            if llama_cpp.llama_decode(self._context, batch):
                raise RuntimeError("llama.cpp could not decode")
