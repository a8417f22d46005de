import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lowbit.errors import UsageError
from lowbit.formats.granularity import (
    CHANNEL,
    TENSOR,
    Granularity,
    by_row_blocks,
    group,
    row_blocks,
)
from tests.oracles.granularity import units


@pytest.mark.parametrize(
    "text, granularity", [("tensor", TENSOR), ("channel", CHANNEL), ("group:64", group(64))]
)
def test_text_and_granularity_are_inverse(text, granularity):
    assert Granularity.parse(text) == granularity and str(granularity) == text
    assert Granularity.parse(granularity) == granularity


@pytest.mark.parametrize(
    "text, message",
    [
        ("row", "'row' is unknown: use tensor, channel or group:SIZE"),
        ("", "'' is unknown"),
        ("group", "needs a size"),
        ("channel:4", "'channel' with size 4"),
        ("group:", "not of the form group:SIZE"),
        ("group:-4", "not of the form group:SIZE"),
        ("group:4.0", "not of the form group:SIZE"),
        ("group:1", "group size 1 is outside 2 … 65536"),
        ("group:65537", "group size 65537 is outside 2 … 65536"),
    ],
)
def test_a_malformed_granularity_is_a_usage_error_that_names_it(text, message):
    with pytest.raises(UsageError, match=message):
        Granularity.parse(text)


@given(st.integers(0, 5), st.integers(1, 20), st.integers(2, 25))
def test_parameters_are_one_per_unit(rows, columns, size):
    for granularity, name in [(TENSOR, "tensor"), (CHANNEL, "channel"), (group(size), size)]:
        assert granularity.parameter_shape(rows, columns) == units((rows, columns), name)[0]


@given(st.integers(0, 5), st.integers(1, 20), st.integers(2, 25))
def test_split_cuts_rows_into_groups_and_pads_the_last_with_zeros(rows, columns, size):
    x = np.arange(1, rows * columns + 1, dtype=np.float32).reshape(rows, columns)
    groups = group(size).split(torch.from_numpy(x)).numpy()
    assert groups.shape == (rows, -(-columns // size), size)
    flat = groups.reshape(rows, -1) if rows else np.zeros((0, columns))
    np.testing.assert_array_equal(flat[:, :columns], x)
    assert (flat[:, columns:] == 0).all()


def test_split_is_a_view_where_groups_divide_the_row():
    x = torch.randn(3, 8)
    assert group(4).split(x).data_ptr() == x.data_ptr()
    assert CHANNEL.split(x).shape == TENSOR.split(x).shape == (3, 1, 8)


@pytest.mark.parametrize(("rows", "columns"), [(1, 3), (700, 300), (5, 1 << 16)])
def test_a_weight_by_row_blocks_is_the_same_with_gradients(rows, columns):
    scale = torch.arange(1.0, rows + 1, requires_grad=True)
    values = torch.arange(float(rows * columns)).reshape(rows, columns) + 1

    def of(block):
        return values[block] * scale[block, None]

    found, plain = (
        by_row_blocks((rows, columns), torch.float32, scale.device, of, gradients)
        for gradients in (True, False)
    )
    assert torch.equal(found, plain) and torch.equal(found, values * scale[:, None])
    found.sum().backward()
    assert torch.equal(scale.grad, values.sum(1))


@given(st.integers(0, 3000), st.sampled_from([1, 100, 1 << 17, 1 << 20]))
def test_row_blocks_cover_every_row_once(rows, columns):
    seen = [row for rows_at_once in row_blocks(rows, columns) for row in range(rows)[rows_at_once]]
    assert seen == list(range(rows))
