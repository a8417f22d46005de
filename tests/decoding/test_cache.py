"""A cache that grows holds what was appended, row by row."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lowbit.decoding.cache import GrowingLayer


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.integers(0, 2**16))
def test_appending_and_reordering_are_those_of_a_plain_tensor(lengths, seed):
    generator = torch.Generator().manual_seed(seed)
    layer, keys, values = GrowingLayer(), torch.empty(3, 2, 0, 4), torch.empty(3, 2, 0, 4)
    for length in lengths:
        new = torch.randn(2, 3, 2, length, 4, generator=generator)
        keys, values = torch.cat([keys, new[0]], 2), torch.cat([values, new[1]], 2)
        got = layer.update(*new)
        assert torch.equal(got[0], keys) and torch.equal(got[1], values)
        assert layer.get_seq_length() == keys.shape[2]
        rows = torch.randint(3, (3,), generator=generator)
        layer.reorder_cache(rows)
        keys, values = keys[rows], values[rows]
