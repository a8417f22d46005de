import random
import unicodedata
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowbit import InputError, UsageError
from lowbit.checkpoint.load import load_tokenizer
from lowbit.training.subwords import train_tokenizer

SIZE = 256 + 2 + 4 * 4  # bytes, special tokens, and four merges a word
# So often each: the order of their ids.
TIMES = {"kana": 60, "bilo": 40, "mudu": 20, "gefe": 5}


def corpus():
    words = [word for word, times in TIMES.items() for _ in range(times)]
    random.Random(0).shuffle(words)
    return [" ".join(words[start : start + 5]) for start in range(0, len(words), 5)]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(corpus(), SIZE, 32)


def test_ids_are_in_the_order_of_frequency(tokenizer):
    assert tokenizer.convert_ids_to_tokens([0, 1]) == ["<pad>", "</s>"]
    counts = Counter()
    for text in corpus():
        *ids, end = tokenizer(text).input_ids
        assert end == 1
        counts.update(ids)
    times = [counts[number] for number in range(2, len(tokenizer))]
    assert times == sorted(times, reverse=True) and times[0] >= 60
    # The words themselves are tokens, the frequent before the rare.
    found = [tokenizer(word).input_ids for word in TIMES]
    assert all(len(ids) == 2 for ids in found) and found == sorted(found)


@settings(max_examples=40, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=20))
def test_every_text_comes_back(tokenizer, text):
    ids = tokenizer(text).input_ids
    wanted = unicodedata.normalize("NFC", text)
    found = tokenizer.decode(ids, skip_special_tokens=True)
    # A text that is a special token's name is that token; one blank before it is not kept.
    if "<pad>" not in wanted and "</s>" not in wanted:
        assert found == wanted or found == wanted.removeprefix(" ")


def test_a_saved_one_is_loaded_as_it_was(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded.get_vocab() == tokenizer.get_vocab() and loaded.model_max_length == 32
    text = "kana ä bilo  €"
    ids = loaded(text).input_ids
    assert ids == tokenizer(text).input_ids
    assert loaded.decode(ids, skip_special_tokens=True) == text


def test_the_same_corpus_gives_the_same_vocabulary(tokenizer):
    again = train_tokenizer(corpus(), SIZE, 32)
    assert again.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()


def test_sizes_that_cannot_be():
    with pytest.raises(InputError, match="25 texts give .* fewer than the vocabulary of 5000"):
        train_tokenizer(corpus(), 5000, 32)
    with pytest.raises(UsageError, match="a vocabulary of 257 is too small: at least 258"):
        train_tokenizer(corpus(), 257, 32)
