"""A text in pieces has the tokens of the whole text, and its length costs little memory."""

import resource

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from lowbit.data import tokens
from tests.folders import byte_tokenizer

CORPUS = [
    "The scales of a group are stored beside its codes, and the codes are packed into bytes.",
    "Größe und Gewicht: naïve façades,\n\nnumbers 12 345.678 — and  spaces\tand tabs.",
]


def trained(model, trainer, **parts):
    tokenizer = Tokenizer(model)
    for name, part in parts.items():
        setattr(tokenizer, name, part)
    tokenizer.train_from_iterator(CORPUS * 3, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[B] $A [E]", special_tokens=[("[B]", 0), ("[E]", 1)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[U]")


def special(trainer, **options):
    return trainer(special_tokens=["[B]", "[E]", "[U]"], show_progress=False, **options)


def byte_level():
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return trained(
        models.BPE(unk_token="[U]"),
        special(trainers.BpeTrainer, vocab_size=400, initial_alphabet=alphabet),
        pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoder=decoders.ByteLevel(),
    )


def word_piece():
    return trained(
        models.WordPiece(unk_token="[U]"),
        special(trainers.WordPieceTrainer, vocab_size=200),
        normalizer=normalizers.BertNormalizer(),
        pre_tokenizer=pre_tokenizers.BertPreTokenizer(),
    )


def unigram():
    return trained(
        models.Unigram(),
        special(trainers.UnigramTrainer, vocab_size=120, unk_token="[U]"),
        normalizer=normalizers.NFKC(),
        pre_tokenizer=pre_tokenizers.Metaspace(),
    )


TOKENIZERS = {
    "bytes": byte_tokenizer,
    "BPE": byte_level,
    "WordPiece": word_piece,
    "Unigram": unigram,
}


@pytest.fixture(scope="module", params=TOKENIZERS)
def tokenizer(request):
    return TOKENIZERS[request.param]()


words = st.sampled_from([*" ".join(CORPUS).split(), "\n", "\n\n", "  ", "日本語", "ﬁ", "e\u0301"])


@given(st.lists(words, min_size=1, max_size=30), st.integers(20, 60))
@settings(max_examples=25)
def test_pieces_have_the_tokens_of_the_whole(tokenizer, some, times):
    text = " ".join(some * times)
    size, overlap, alike = tokens.PIECE, tokens.OVERLAP, tokens.ALIKE
    tokens.PIECE, tokens.OVERLAP, tokens.ALIKE = 400, 160, 8
    try:
        found = tokens.token_ids(tokenizer, text)
    finally:
        tokens.PIECE, tokens.OVERLAP, tokens.ALIKE = size, overlap, alike
    assert found.tolist() == tokenizer(text).input_ids and found.dtype == torch.int64


@pytest.mark.slow
def test_a_line_of_any_length_takes_bounded_memory():
    tokenizer = byte_tokenizer()
    text = "x" * 4_000_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ids = tokens.token_ids(tokenizer, text)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert len(ids) == len(text) and bool((ids == ids[0]).all())
    assert grown < 300 << 10  # KiB; at once it takes 700 MiB
