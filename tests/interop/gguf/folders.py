"""Tiny random models with real tokenizers of every kind that GGUF holds, as folders."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from lowbit.interop.gguf.vocabulary import SPLITS

TEXT = "A quick brown fox, it's 1905: jumps over the lazy dogs  of the town. They weren't amused!"
CORPUS = [TEXT, TEXT.lower(), "the thing that they thought of then there was nothing to it"] * 3
VOCABULARY = 400
DECODER = dict(
    vocab_size=VOCABULARY,
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=96,
    max_position_embeddings=128,
    bos_token_id=0,
    eos_token_id=0,
)


def byte_level(pre: str) -> PreTrainedTokenizerFast:
    """BPE over bytes, with text split as llama.cpp calls it."""
    (pattern,) = next(steps for steps, name in SPLITS.items() if name == pre)
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 10,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|end|>", eos_token="<|end|>"
    )


def sentence_pieces() -> PreTrainedTokenizerFast:
    """BPE over characters with bytes to fall back on, as that of the first Llamas."""
    special = [AddedToken(t, special=True) for t in ("<unk>", "<s>", "</s>")]
    pieces = [f"<0x{byte:02X}>" for byte in range(256)]
    base = Tokenizer(models.BPE())
    base.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    trainer = trainers.BpeTrainer(vocab_size=100, show_progress=False)
    base.train_from_iterator(CORPUS, trainer)
    learned = json.loads(base.to_str())["model"]
    order = sorted(learned["vocab"], key=learned["vocab"].get)
    vocab = {t: i for i, t in enumerate([*map(str, special), *pieces, *order])}
    merges = [tuple(m) for m in learned["merges"]]
    tokenizer = Tokenizer(
        models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = base.normalizer
    tokenizer.add_special_tokens(special)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


def word_pieces() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(
        vocab_size=VOCABULARY - 10, special_tokens=special, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = dict(zip(("pad", "unk", "cls", "sep", "mask"), special, strict=True))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **{f"{name}_token": token for name, token in names.items()}
    )


def unigrams() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Replace(Regex(" {2,}"), " ")
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=VOCABULARY - 10, special_tokens=special, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


def gpt2() -> GPT2LMHeadModel:
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=VOCABULARY, n_embd=64, n_layer=2, n_head=2, n_positions=128)
    )


def t5() -> T5ForConditionalGeneration:
    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=VOCABULARY,
            d_model=64,
            d_kv=16,
            d_ff=96,
            num_layers=2,
            num_heads=4,
            feed_forward_proj="gated-gelu",
            decoder_start_token_id=0,
        )
    )


def bert() -> BertModel:
    return BertModel(
        BertConfig(
            vocab_size=VOCABULARY,
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=96,
            max_position_embeddings=128,
        )
    )


LLAMA3_ROPE = dict(
    rope_type="llama3",
    rope_theta=500_000.0,
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=8192,
)
Made = tuple[Callable[[], PreTrainedModel], Callable[[], PreTrainedTokenizerFast]]
# By what is special about each.
MODELS: dict[str, Made] = {
    "gpt2": (gpt2, lambda: byte_level("gpt-2")),
    "llama": (
        lambda: LlamaForCausalLM(LlamaConfig(**DECODER, tie_word_embeddings=False)),
        sentence_pieces,
    ),
    "llama3": (
        lambda: LlamaForCausalLM(
            LlamaConfig(
                **DECODER | {"num_key_value_heads": 4},
                rope_parameters=LLAMA3_ROPE,
                tie_word_embeddings=True,
            )
        ),
        lambda: byte_level("llama-bpe"),
    ),
    "qwen2": (lambda: Qwen2ForCausalLM(Qwen2Config(**DECODER)), lambda: byte_level("qwen2")),
    "qwen3": (
        lambda: Qwen3ForCausalLM(Qwen3Config(**DECODER, head_dim=32)),
        lambda: byte_level("qwen2"),
    ),
    "mixtral": (
        lambda: MixtralForCausalLM(
            MixtralConfig(**DECODER, num_local_experts=4, num_experts_per_tok=2)
        ),
        sentence_pieces,
    ),
    "qwen2-moe": (
        lambda: Qwen2MoeForCausalLM(
            Qwen2MoeConfig(
                **DECODER,
                num_experts=6,
                num_experts_per_tok=2,
                moe_intermediate_size=64,
                shared_expert_intermediate_size=96,
            )
        ),
        lambda: byte_level("qwen2"),
    ),
    "bert": (bert, word_pieces),
    "t5": (t5, unigrams),
}


def folder(name: str, to: Path) -> Path:
    """A float model of that kind, saved."""
    torch.manual_seed(0)
    model, tokenizer = (make() for make in MODELS[name])
    with torch.no_grad():
        for parameter in model.parameters():  # biases too, which would be zeros
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    model.eval().save_pretrained(to)
    tokenizer.save_pretrained(to)
    return to
