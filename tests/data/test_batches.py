import pytest
from transformers import T5Config, T5EncoderModel

from lowbit import UsageError
from lowbit.data.batches import by_length, check_batch_size, check_padding, longest
from tests.models import make


class Tokenizer:
    def __init__(self, most=None, pad=None):
        self.model_max_length = most
        self.pad_token_id = pad


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_every_item_is_in_one_batch_and_the_longest_come_first(size):
    lengths = [3, 9, 1, 9, 4, 7, 0]
    batches = list(by_length(lengths, size))
    assert sorted(index for batch in batches for index in batch) == list(range(7))
    assert all(len(batch) == size for batch in batches[:-1])
    flat = [lengths[index] for batch in batches for index in batch]
    assert flat == sorted(lengths, reverse=True)
    assert list(by_length([], size)) == []


def test_items_are_as_long_as_model_and_tokenizer_allow():
    model = make("bert")
    endless = T5EncoderModel(T5Config(vocab_size=9, d_model=8, d_kv=4, num_heads=2, num_layers=1))
    assert longest(model, Tokenizer(), None) == 64
    assert longest(model, Tokenizer(62), None) == 62
    assert longest(model, Tokenizer(10**30), None) == 64
    assert longest(endless, Tokenizer(10**30), None) is None
    assert longest(endless, object(), None) is None
    assert longest(endless, Tokenizer(10**30), 5000) == 5000
    assert longest(model, Tokenizer(), 64) == longest(model, Tokenizer(62), 64) == 64
    with pytest.raises(UsageError, match="max_length 65 is longer than the model's 64 positions"):
        longest(model, Tokenizer(), 65)
    with pytest.raises(UsageError, match="max_length must be at least 1, not 0"):
        longest(model, Tokenizer(), 0)


def test_batches_that_cannot_be_are_wrong_use():
    with pytest.raises(UsageError, match="batch size must be at least 1, not 0"):
        check_batch_size(0)
    check_batch_size(1)
    check_padding(Tokenizer(pad=0), 8)
    check_padding(Tokenizer(), 1)
    with pytest.raises(UsageError, match="no padding token, which a batch of 8 needs"):
        check_padding(Tokenizer(), 8)
