"""The demo's model, a small GPT-2, and its tokenizer, byte-level BPE learned from the corpus."""

from collections.abc import Iterable
from dataclasses import dataclass

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"


@dataclass(frozen=True)
class DemoSettings:
    """Everything that decides what is trained. `corpus_limit` counts characters."""

    steps: int = 200
    batch: int = 8
    learning_rate: float = 1e-3
    vocabulary: int = 4096
    context: int = 128
    width: int = 256
    layers: int = 4
    heads: int = 4
    seed: int = 0
    corpus_limit: int | None = None


def new_tokenizer(documents: Iterable[str], settings: DemoSettings) -> PreTrainedTokenizerFast:
    """Merges learned from the documents; every byte is a token of its own, so none is unknown."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=settings.vocabulary,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        model_max_length=settings.context,
    )


def new_model(tokenizer: PreTrainedTokenizerFast, settings: DemoSettings) -> GPT2LMHeadModel:
    """A GPT-2 with random weights, tied embeddings and no dropout.

    Its activation function is GPT-2's own, by the name of its fused implementation.
    """
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokenizer),
            n_positions=settings.context,
            n_embd=settings.width,
            n_layer=settings.layers,
            n_head=settings.heads,
            activation_function="gelu_pytorch_tanh",
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
