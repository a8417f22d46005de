"""What goes between the front and a worker arrives as it was, and runs nothing."""

import json
import pickle
import socket

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowbit.pipelines.pipeline import Item
from lowbit.serving.channel import Failure, answer_bytes, answer_of, receive_items


@given(st.lists(st.text(), max_size=5))
def test_texts_arrive(texts):
    assert answer_of(answer_bytes(texts)) == texts


@given(st.integers(0, 4), st.integers(0, 5))
def test_numbers_arrive_bit_for_bit(rows, columns):
    numbers = np.random.default_rng(rows).normal(size=(rows, columns)).astype(np.float32)
    numbers[:1, :1] = np.nan
    found = answer_of(answer_bytes(numbers))
    assert found.shape == numbers.shape and found.tobytes() == numbers.tobytes()


@pytest.mark.parametrize("failure", [Failure("too long", 400), Failure()])
def test_failures_arrive(failure):
    assert answer_of(answer_bytes(failure)) == failure


def sent(content):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(len(content).to_bytes(8, "little") + content)
        return receive_items(theirs)


def test_items_arrive():
    items = [Item({"input_ids": [5, 6], "attention_mask": [1, 1]}, 2, False), Item("a", 1, True)]
    said = json.dumps([[i.content, i.length, i.cut] for i in items]).encode()
    assert sent(said) == items


def test_a_pickle_is_not_opened():
    with pytest.raises(ValueError):
        sent(pickle.dumps([Item("a", 1, False)]))


def test_an_end_that_is_closed_is_told():
    ours, theirs = socket.socketpair()
    ours.close()
    with theirs, pytest.raises(EOFError):
        receive_items(theirs)
