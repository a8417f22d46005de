"""Calibration samples out of a text."""

import pytest
import torch

from lowbit import InputError, UsageError
from lowbit.calibration import texts
from tests.models import make
from tests.small_tokenizers import words

TOKENIZER = words(*"abcdefghij")  # a is 4


@pytest.fixture
def file(tmp_path):
    def write(text):
        (tmp_path / "text.txt").write_text(text)
        return tmp_path / "text.txt"

    return write


def test_windows_are_spread_over_the_text(file):
    text = " ".join("abcdefghij" * 10)  # 102 tokens with [CLS] and [SEP]: 20 windows of 5
    found = texts.read(file(text), make("gpt2"), TOKENIZER, samples=4, length=5)
    ids = torch.tensor(TOKENIZER(text).input_ids)
    expected = torch.stack([ids[i : i + 5] for i in (0, 25, 50, 75)])
    assert torch.equal(torch.cat([batch["input_ids"] for batch in found.batches]), expected)
    assert found.notes == ()


def test_fewer_samples_than_asked_are_said(file):
    path = file(" ".join("abcdefghij" * 2))
    found = texts.read(path, make("gpt2"), TOKENIZER, samples=128, length=10)
    assert sum(len(batch["input_ids"]) for batch in found.batches) == 2
    assert found.notes == (f"{path} has 2 windows of 10 tokens; 128 samples were requested",)


def test_an_encoder_reads_lines(file):
    path = file("a b c\n\n  \nd\r\ne f g h i j\n")
    found = texts.read(path, make("bert"), TOKENIZER, samples=3, length=6)
    (batch,) = found.batches
    assert batch["input_ids"].tolist() == [
        [2, 4, 5, 6, 3, 0],
        [2, 7, 3, 0, 0, 0],
        [2, 8, 9, 10, 11, 3],
    ]
    assert batch["attention_mask"].sum().item() == 5 + 3 + 6


def test_an_encoder_decoder_reads_pairs_where_lines_hold_them(file):
    found = texts.read(file("a b c\tc d\ne"), make("bart"), TOKENIZER, samples=2)
    (batch,) = found.batches
    assert batch["input_ids"].tolist() == [[2, 4, 5, 6, 3], [2, 8, 3, 0, 0]]
    # The decoder starts with 0 and reads what it has predicted so far.
    assert batch["decoder_input_ids"].tolist() == [[0, 2, 6, 7], [0, 2, 8, 3]]
    assert batch["decoder_attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]


def test_the_masks_of_both_sides_never_have_one_shape(file):
    found = texts.read(file("a b\tc d\ne\tf"), make("bart"), TOKENIZER, samples=2)
    (batch,) = found.batches
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]
    assert batch["decoder_attention_mask"].tolist() == [[1, 1, 1, 1, 0], [1, 1, 1, 0, 0]]
    assert batch["decoder_input_ids"].shape == (2, 5)


@pytest.mark.parametrize(
    ("name", "text", "options", "error", "sentence"),
    [
        ("gpt2", "a b c", {"length": 9}, InputError, "has 5 tokens, fewer than one window of 9"),
        ("bert", " \n \n", {}, InputError, "no line with text"),
        ("gpt2", "a b c", {"length": 65}, UsageError, "65 tokens are outside 2 … 64"),
        ("gpt2", "a b c", {"length": 1}, UsageError, "1 tokens are outside"),
        ("gpt2", "a b c", {"samples": 0}, UsageError, "samples must be at least 1"),
    ],
)
def test_bad_input_gets_one_sentence(name, text, options, error, sentence, file):
    with pytest.raises(error, match=sentence):
        texts.read(file(text), make(name), TOKENIZER, **options)
