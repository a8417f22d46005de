"""Which models llama.cpp runs of those that are exported, and what it wants to know of each.

Names of architectures stand here and nowhere else. Sources: llama.cpp's `src/models/*.cpp` and
`src/llama-arch.cpp`; the names of tensors are those of the package gguf.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float32, Int64
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from lowbit.errors import InputError

# An attribute of the config, or what is made of it.
Value = str | Callable[[PreTrainedConfig], Any]
# The numbers of the rows of a tensor, in the order in which llama.cpp has them.
Order = Callable[[PreTrainedConfig, int], Int64[Tensor, " rows"]]


@dataclass(frozen=True)
class Architecture:
    """`name` is llama.cpp's. numbers: key of the metadata, after the name -> value. needs: what an
    attribute of the config must be, as llama.cpp computes nothing else. left_out: beginnings of
    names that llama.cpp has no place for and no need of. added: ends of names of tables that
    llama.cpp adds as they lie there, which it does with floats alone. vectors: ends of names of
    matrices of one row, which it has as vectors of floats. order: end of a module's name
    -> its rows. factors: end of a tensor's name -> what it is multiplied with. pools: whether it
    makes embeddings of texts, and no logits."""

    name: str
    numbers: Mapping[str, Value]
    needs: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    added: tuple[str, ...] = ()
    vectors: tuple[str, ...] = ()
    order: Mapping[str, Order] = field(default_factory=dict)
    factors: Mapping[str, Callable[[PreTrainedConfig], float]] = field(default_factory=dict)
    pools: bool = False


def _head(config: PreTrainedConfig) -> int:
    """Dimensions of one head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _interleaved(heads: str) -> Order:
    """llama.cpp turns pairs of neighbouring rows, transformers those half a head apart."""

    def order(config: PreTrainedConfig, rows: int) -> Int64[Tensor, " rows"]:
        numbers = torch.arange(rows).unflatten(0, (getattr(config, heads), 2, -1))
        return numbers.transpose(1, 2).flatten()

    return order


def _theta(config: PreTrainedConfig) -> float:
    return float(config.rope_parameters["rope_theta"])


_TRANSFORMER: dict[str, Value] = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "vocab_size": "vocab_size",
}
_ROTARY: dict[str, Value] = _TRANSFORMER | {
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": _head,
    "attention.value_length": _head,
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.dimension_count": _head,
    "rope.freq_base": _theta,
}
_HALVES = {
    "q_proj": _interleaved("num_attention_heads"),
    "k_proj": _interleaved("num_key_value_heads"),
}
_SILU: dict[str, tuple[Any, ...]] = {"hidden_act": ("silu",)}
_MIXTURE = _ROTARY | {
    "expert_count": "num_experts",
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
}
_EVERY_LAYER: dict[str, tuple[Any, ...]] = _SILU | {
    "use_sliding_window": (False,),
    "decoder_sparse_step": (1,),
    "mlp_only_layers": ([], None),
}
# transformers' model_type -> what llama.cpp makes of it.
ARCHITECTURES = {
    "llama": Architecture("llama", _ROTARY, _SILU, order=_HALVES),
    "mistral": Architecture("llama", _ROTARY, _SILU | {"sliding_window": (None,)}, order=_HALVES),
    "qwen2": Architecture("qwen2", _ROTARY, _SILU | {"use_sliding_window": (False,)}),
    "qwen3": Architecture("qwen3", _ROTARY, _SILU | {"use_sliding_window": (False,)}),
    # llama.cpp makes the shares of Mixtral's and Qwen3's chosen experts add up to 1, and those of
    # Qwen2's not.
    "mixtral": Architecture(
        "llama",
        _ROTARY | {"expert_count": "num_local_experts", "expert_used_count": "num_experts_per_tok"},
        _SILU | {"sliding_window": (None,)},
        order=_HALVES,
    ),
    "qwen2_moe": Architecture(
        "qwen2moe",
        _MIXTURE | {"expert_shared_feed_forward_length": "shared_expert_intermediate_size"},
        _EVERY_LAYER | {"norm_topk_prob": (False,)},
        vectors=("shared_expert_gate",),
    ),
    "qwen3_moe": Architecture("qwen3moe", _MIXTURE, _EVERY_LAYER | {"norm_topk_prob": (True,)}),
    "gpt2": Architecture(
        "gpt2",
        _TRANSFORMER
        | {
            "feed_forward_length": lambda config: config.n_inner or 4 * config.n_embd,
            "attention.layer_norm_epsilon": "layer_norm_epsilon",
        },
        {
            "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
            "scale_attn_weights": (True,),
            "scale_attn_by_inverse_layer_idx": (False,),
            "add_cross_attention": (False,),
        },
    ),
    "bert": Architecture(
        "bert",
        _TRANSFORMER
        | {
            "attention.layer_norm_epsilon": "layer_norm_eps",
            "attention.causal": lambda config: False,
        },
        {"hidden_act": ("gelu",), "is_decoder": (False,)},
        # llama.cpp uses it for embeddings alone.
        left_out=("pooler.", "cls."),
        added=("token_type_embeddings",),
        pools=True,
    ),
    "t5": Architecture(
        "t5",
        _TRANSFORMER
        | {
            "context_length": lambda config: getattr(config, "n_positions", 512),
            "feed_forward_length": "d_ff",
            "attention.key_length": "d_kv",
            "attention.value_length": "d_kv",
            "attention.layer_norm_epsilon": "layer_norm_epsilon",
            "attention.layer_norm_rms_epsilon": "layer_norm_epsilon",
            "attention.relative_buckets_count": "relative_attention_num_buckets",
            "decoder_block_count": "num_decoder_layers",
            "decoder_start_token_id": "decoder_start_token_id",
        },
        {"feed_forward_proj": ("relu", "gated-gelu"), "relative_attention_max_distance": (128,)},
        # transformers scales the last hidden state of a model whose head is its table.
        factors={
            "decoder.final_layer_norm.weight": lambda config: (
                config.d_model**-0.5 if config.tie_word_embeddings else 1.0
            )
        },
    ),
}

# A parameter of experts -> the tensors of llama.cpp that hold equal parts of each expert's rows, by
# the names that they have in checkpoints.
EXPERTS = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}


def choices_of(config: PreTrainedConfig) -> dict[str, bool]:
    """Attributes that turn something on or off in transformers, as llama.cpp computes every file of
    this architecture."""
    known = ARCHITECTURES.get(config.model_type)
    needs = {} if known is None else known.needs
    single = {name: values[0] for name, values in needs.items() if len(values) == 1}
    return {name: value for name, value in single.items() if isinstance(value, bool)}


def architecture_of(config: PreTrainedConfig) -> Architecture:
    """Raises InputError for a model that llama.cpp computes otherwise, or not at all."""
    known = ARCHITECTURES.get(config.model_type)
    if known is None:
        raise InputError(
            f"models of the type {config.model_type} are not exported to GGUF;"
            f" those of {', '.join(ARCHITECTURES)} are"
        )
    for attribute, values in known.needs.items():
        if (found := getattr(config, attribute, values[0])) not in values:
            raise InputError(
                f"config.json says {attribute} = {found!r}; llama.cpp computes a"
                f" {config.model_type} with {' or '.join(map(repr, values))} alone"
            )
    return known


def numbers_of(architecture: Architecture, config: PreTrainedConfig) -> dict[str, Any]:
    """The keys of the metadata that describe the model, and their values."""
    found = {
        f"{architecture.name}.{key}": (
            getattr(config, value, None) if isinstance(value, str) else value(config)
        )
        for key, value in architecture.numbers.items()
    }
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") == "linear":
        found[f"{architecture.name}.rope.scaling.type"] = "linear"
        found[f"{architecture.name}.rope.scaling.factor"] = float(rope["factor"])
    return {key: value for key, value in found.items() if value is not None}


def rope_factors(config: PreTrainedConfig) -> Float32[Tensor, " pairs"] | None:
    """What llama.cpp divides each frequency of the rotation by, for a model that scales them one by
    one. Raises InputError for a scaling that cannot be said so."""
    rope = getattr(config, "rope_parameters", None) or {}
    kind = rope.get("rope_type", "default")
    if kind in ("default", "linear"):
        return None
    if kind != "llama3":
        raise InputError(f"its rope_type {kind!r} is not exported; default, linear and llama3 are")
    scaled, _ = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"))
    plain = _theta(config) ** -(torch.arange(0, _head(config), 2).float() / _head(config))
    return plain / scaled.float()
