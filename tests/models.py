"""Tiny random models of every architecture that the tests speak of, and inputs for them."""

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MarianConfig,
    MarianMTModel,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

VOCABULARY = 200
# Large enough that every layer changes the result: with the usual 0.02 the residual stream drowns
# what the layers add to it.
DEVIATION = 0.125  # ≈ 1 / sqrt(128 inputs)
BERT = dict(
    vocab_size=VOCABULARY,
    hidden_size=128,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=192,
    max_position_embeddings=64,
    initializer_range=DEVIATION,
)
SEQ2SEQ = dict(
    vocab_size=VOCABULARY,
    d_model=128,
    encoder_layers=1,
    decoder_layers=1,
    encoder_attention_heads=2,
    decoder_attention_heads=2,
    encoder_ffn_dim=192,
    decoder_ffn_dim=192,
    max_position_embeddings=64,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
    decoder_start_token_id=0,
    forced_eos_token_id=2,
    init_std=DEVIATION,
)


def llama(tied: bool) -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=192,
            tie_word_embeddings=tied,
            initializer_range=DEVIATION,
        )
    )


MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "bert": lambda: BertModel(BertConfig(**BERT)),
    "bert-one-head": lambda: BertModel(BertConfig(**BERT | {"num_attention_heads": 1})),
    "bert-classifier": lambda: BertForSequenceClassification(BertConfig(**BERT)),
    "bert-mlm": lambda: BertForMaskedLM(BertConfig(**BERT)),
    "distilbert": lambda: DistilBertForSequenceClassification(
        DistilBertConfig(
            vocab_size=VOCABULARY,
            dim=128,
            n_layers=2,
            n_heads=2,
            hidden_dim=192,
            max_position_embeddings=64,
            initializer_range=DEVIATION,
        )
    ),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY,
            n_embd=128,
            n_layer=2,
            n_head=2,
            n_positions=64,
            initializer_range=DEVIATION,
            bos_token_id=0,
            eos_token_id=0,
        )
    ),
    "llama-tied": lambda: llama(tied=True),
    "llama-untied": lambda: llama(tied=False),
    "bart": lambda: BartForConditionalGeneration(BartConfig(**SEQ2SEQ, scale_embedding=True)),
    "marian": lambda: MarianMTModel(MarianConfig(**SEQ2SEQ, scale_embedding=True)),
    "t5": lambda: T5ForConditionalGeneration(
        T5Config(
            vocab_size=VOCABULARY,
            d_model=128,
            d_kv=64,
            num_heads=8,
            num_layers=1,
            d_ff=192,
            decoder_start_token_id=0,
        )
    ),
}


def make(name: str, seed: int = 0) -> PreTrainedModel:
    """The model in evaluation mode, the same for the same seed. Its biases are not 0 and the
    weights of its norms not 1, as in trained models, so that a lost one changes the result."""
    torch.manual_seed(seed)
    model = MODELS[name]().eval()
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter.data += 0.3 * noise
    return model


def output(model: PreTrainedModel) -> Tensor:
    """Logits, or the last hidden state, for two fixed sequences."""
    ids = torch.arange(3, 35).reshape(2, 16) * 5 % VOCABULARY
    inputs = {"input_ids": ids}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids[:, :7]
    with torch.no_grad():
        result = model(**inputs)
    return result[0]
