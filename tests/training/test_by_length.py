from hypothesis import given
from hypothesis import strategies as st

from lowbit.training.by_length import BATCHES, ByLength


@given(st.lists(st.integers(1, 60), min_size=1, max_size=500), st.integers(1, 9), st.integers(0, 5))
def test_every_example_comes_once_in_batches_of_like_lengths(lengths, batch_size, seed):
    order = list(ByLength(lengths, batch_size, seed))
    assert sorted(order) == list(range(len(lengths)))
    assert order == list(ByLength(lengths, batch_size, seed))
    if len(lengths) <= BATCHES * batch_size:
        # Each batch is a piece of the list of lengths in order.
        pieces = [
            tuple(sorted(lengths[i] for i in order[at : at + batch_size]))
            for at in range(0, len(order), batch_size)
        ]
        wanted = sorted(lengths, reverse=True)
        cut = [
            tuple(sorted(wanted[at : at + batch_size])) for at in range(0, len(wanted), batch_size)
        ]
        assert sorted(pieces) == sorted(cut)


def test_epochs_differ_and_long_batches_come_anywhere():
    sampler = ByLength(list(range(1000)), 10, 0)
    first = list(sampler)
    sampler.epoch = 1
    second = list(sampler)
    assert first != second and sorted(first) == sorted(second)
    longest = [max(first[at : at + 10]) for at in range(0, 500, 10)]
    falling = sum(a > b for a, b in zip(longest, longest[1:], strict=False))
    assert 10 < falling < 40  # of 49: in order of length it would be 49
