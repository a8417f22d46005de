"""A subword vocabulary from a corpus: byte-pair encoding (Sennrich et al. 2016) over bytes.

Every text can be written in it, and comes back as it was. Ids are in the order of frequency in the
corpus, after the special tokens, so that the rows of an embedding are too: rows that are seldom
read, which need fewer bits, are its last ones.
"""

import json
from collections import Counter
from collections.abc import Sequence

import numpy as np
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

from lowbit.errors import InputError, UsageError

PAD, END = "<pad>", "</s>"
SPECIAL = (PAD, END)
BYTES = 256
AT_ONCE = 10_000  # texts that are counted together


def train_tokenizer(texts: Sequence[str], size: int, max_length: int) -> PreTrainedTokenizerFast:
    """A tokenizer of `size` tokens for texts of at most `max_length`; each text ends in `</s>`.

    Raises UsageError for fewer tokens than there are bytes, InputError where the corpus does not
    give so many.
    """
    least = BYTES + len(SPECIAL)
    if size < least:
        raise UsageError(f"a vocabulary of {size} is too small: at least {least}, for every byte")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    found = tokenizer.get_vocab_size()
    if found < size:
        raise InputError(
            f"the {len(texts):,} texts give {found} tokens, fewer than the vocabulary of {size}"
        )
    tokenizer = by_frequency(tokenizer, texts)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {END}", special_tokens=[(END, tokenizer.token_to_id(END))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        model_max_length=max_length,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )


def by_frequency(tokenizer: Tokenizer, texts: Sequence[str]) -> Tokenizer:
    """The same tokens under other ids: special ones first, then from frequent to rare."""
    counts = token_counts(tokenizer, texts)
    ids = tokenizer.get_vocab()

    def place(token: str) -> tuple[bool, int, int]:
        return token not in SPECIAL, -counts[ids[token]], ids[token]

    stored = json.loads(tokenizer.to_str())
    # Merges are in the order of their rank, whatever the ids.
    stored["model"]["vocab"] = {
        token: number
        for number, token in enumerate([*SPECIAL, *sorted(ids.keys() - {*SPECIAL}, key=place)])
    }
    return Tokenizer.from_str(json.dumps(stored))


def token_counts(tokenizer: Tokenizer, texts: Sequence[str]) -> Counter[int]:
    """How often each id occurs in the texts."""
    counts: Counter[int] = Counter()
    for start in range(0, len(texts), AT_ONCE):
        encoded = tokenizer.encode_batch(
            list(texts[start : start + AT_ONCE]), add_special_tokens=False
        )
        ids, times = np.unique(
            np.concatenate([np.array(e.ids, dtype=np.int64) for e in encoded]), return_counts=True
        )
        counts.update(dict(zip(ids.tolist(), times.tolist(), strict=True)))
    return counts
