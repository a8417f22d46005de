"""Folders as a user has them: a tiny model with a tokenizer that reads plain text."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.models import VOCABULARY, make


def byte_tokenizer():
    """One token per byte, as many as the tiny models have; ASCII and its white space among them."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet(), key=lambda c: (c not in "ĠĊ", c))
    vocabulary = {token: i for i, token in enumerate(["<end>", *letters][:VOCABULARY])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<end>")


def save(name, folder, seed=0):
    """The tiny model `name` of tests.models, and its tokenizer, in `folder`."""
    make(name, seed).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder
