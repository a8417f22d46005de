import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lowbit.errors import InputError, UsageError
from lowbit.formats import CHANNEL, TENSOR, BinaryLayout, Granularity, group, layout_from_dict
from lowbit.formats.binary import BinaryTensor, decode, prefix, take_rows
from tests.oracles import binary as oracle
from tests.oracles import packing
from tests.oracles.granularity import units


@st.composite
def cases(draw, min_rows=0, nested=None):
    """What `build` takes."""
    return dict(
        bits=draw(st.integers(1, 4)),
        rows=draw(st.integers(min_rows, 5)),
        columns=draw(st.integers(1, 40)),
        size=draw(st.just("channel") | st.integers(2, 45)),
        nested=draw(st.booleans()) if nested is None else nested,
        with_offset=draw(st.booleans()),
        dtype=draw(st.sampled_from([np.float16, np.float32])),
        seed=draw(st.integers(0, 2**32)),
    )


def build(bits, rows, columns, size, nested, with_offset, dtype, seed):
    """A BinaryTensor of random planes, the size of its groups, and the planes as zeros and ones."""
    random = np.random.default_rng(seed)
    groups = units((rows, columns), size)[0][1]
    planes = random.integers(0, 2, (bits, rows, columns), np.uint8)

    def parameters(*shape):
        return torch.from_numpy(random.standard_normal(shape).astype(dtype))

    prefixes = range(1 if nested else bits, bits + 1)
    q = BinaryTensor(
        planes=torch.from_numpy(packing.pack(planes, 1)),
        alphas=tuple(parameters(groups, p, rows) for p in prefixes),
        offsets=tuple(parameters(groups, rows) for p in prefixes) if with_offset else None,
        granularity=Granularity.parse(size if isinstance(size, str) else f"group:{size}"),
        in_features=columns,
    )
    return q, size, planes


def numpy_values(q, size, planes):
    """Float32, the offset first, then plane 0, 1, …"""
    wanted = np.zeros(q.shape, np.float32)
    alpha = q.alpha.float().numpy()
    offset = None if q.offset is None else q.offset.float().numpy()
    for (row, group_), part in units(q.shape, size)[1]:
        o = np.float32(0) if offset is None else offset[group_, row]
        bits = planes[:, row, part[1]]
        wanted[part] = oracle.values(bits, alpha[group_, :, row], o)
    return wanted


@given(cases(), st.sampled_from([torch.float32, torch.float16, torch.bfloat16]))
def test_decode_equals_numpy(case, dtype):
    q, size, planes = build(**case)
    weight = decode(q, dtype)
    assert weight.dtype == dtype
    assert torch.equal(weight, torch.from_numpy(numpy_values(q, size, planes)).to(dtype))


@given(cases(nested=True))
def test_a_prefix_decodes_with_its_own_parameters_and_the_first_planes(case):
    q, size, planes = build(**case)
    for p in range(1, q.bits + 1):
        short = prefix(q, p)
        assert short.bits == p and not short.layout.nested
        assert short.alpha.shape[1] == p and short.alpha is q.alphas[p - 1]
        wanted = torch.from_numpy(numpy_values(short, size, planes[:p]))
        assert torch.equal(decode(short), wanted)
    assert torch.equal(decode(prefix(q, q.bits)), decode(q))


@given(cases(min_rows=1), st.data())
def test_rows_taken_and_then_decoded_equal_rows_of_the_decoded(case, data):
    q = build(**case)[0]
    rows = torch.tensor(data.draw(st.lists(st.integers(0, q.shape[0] - 1))), dtype=torch.int64)
    assert torch.equal(decode(take_rows(q, rows)), decode(q)[rows])
    assert torch.equal(decode(take_rows(q, slice(1, None))), decode(q)[1:])


@given(cases())
def test_a_layout_tells_shapes_and_dtypes_and_puts_the_tensor_together_again(case):
    q = build(**case)[0]
    layout = layout_from_dict(q.layout.to_dict())
    assert layout == q.layout
    shapes = {name: (tuple(t.shape), t.dtype) for name, t in q.tensors().items()}
    assert layout.tensors(*q.shape) == shapes
    again = layout.assemble(q.tensors(), q.in_features)
    assert again.layout == layout and torch.equal(decode(again), decode(q))


def test_a_plain_tensor_holds_no_shorter_prefix():
    layout = BinaryLayout(3, group(4), offset=True)
    tensors = {
        name: torch.zeros(shape, dtype=d) for name, (shape, d) in layout.tensors(2, 8).items()
    }
    q = layout.assemble(tensors, 8)
    assert set(tensors) == {"planes", "alpha_3", "offset_3"}
    with pytest.raises(UsageError, match=r"a prefix of 2 planes .* supports \[3\]"):
        prefix(q, 2)
    with pytest.raises(UsageError, match="a prefix of 4 planes"):
        prefix(q, 4)


@pytest.mark.parametrize("bits", [-1, 0, 5, 8])
def test_planes_outside_1_to_4_are_a_usage_error(bits):
    with pytest.raises(UsageError, match=f"bits {bits} is outside 1 … 4"):
        BinaryLayout(bits, CHANNEL, offset=False)


def test_scales_per_tensor_are_a_usage_error():
    with pytest.raises(UsageError, match="per channel or group, not per tensor"):
        BinaryLayout(2, TENSOR, offset=False)


def test_a_stored_layout_with_a_missing_key_is_an_input_error():
    stored = BinaryLayout(2, CHANNEL, offset=False).to_dict()
    del stored["nested"]
    with pytest.raises(InputError, match="not complete or valid"):
        layout_from_dict(stored)
