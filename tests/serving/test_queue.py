"""Which rows become a batch: the oldest, and those that are like it."""

from hypothesis import given
from hypothesis import strategies as st

from lowbit.pipelines.pipeline import Item
from lowbit.serving.queue import Entry, Queue


def entries(*lengths):
    return [Entry(Item(None, length, False), None) for length in lengths]


def lengths(batch):
    return [entry.item.length for entry in batch]


def test_the_oldest_comes_first_and_takes_the_nearest_along():
    queue = Queue()
    queue.add(entries(50, 3, 48, 52, 4, 51))
    assert queue.tokens == 208
    assert lengths(queue.take(160)) == [50, 51, 48]
    assert lengths(queue.take(160)) == [3, 4, 52]
    assert not queue and queue.take(160) == []


def test_a_row_that_is_too_long_for_a_batch_goes_alone():
    queue = Queue()
    queue.add(entries(500, 499))
    assert lengths(queue.take(100)) == [500] and lengths(queue.take(100)) == [499]


def test_rows_of_a_dead_worker_are_first_and_alone():
    queue = Queue()
    queue.add(entries(5, 5, 5))
    lost = queue.take(10)
    for entry in lost:
        entry.deaths = 1
    queue.put_back(lost)
    assert queue.take(100) == lost[:1] and queue.take(100) == lost[1:]
    assert len(queue) == 1


@given(st.lists(st.integers(1, 60), max_size=40), st.integers(1, 200))
def test_every_row_is_in_one_batch_and_no_batch_is_too_large(found, tokens):
    queue = Queue()
    added = entries(*found)
    queue.add(added)
    taken = []
    for oldest in added:
        if oldest in taken:
            continue
        batch = queue.take(tokens)
        assert batch[0] is oldest
        assert len(batch) == 1 or max(lengths(batch)) * len(batch) <= tokens
        taken += batch
    assert len(taken) == len(set(map(id, taken))) == len(added) and not queue
