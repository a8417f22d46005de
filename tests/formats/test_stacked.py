import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lowbit.errors import InputError, UsageError
from lowbit.formats import (
    CHANNEL,
    BinaryLayout,
    StackedLayout,
    group,
    layout_from_dict,
)
from lowbit.formats.stacked import MAX_PARTS, decode, decode_rows, prefix
from tests.stored import Form, stack, values

BINARY = BinaryLayout(2, CHANNEL, offset=False)


@st.composite
def stacks(draw):
    """1 … 4 parts of 1 … 5 rows each: what `built` takes."""
    granularity = draw(st.just(CHANNEL) | st.integers(2, 45).map(group))
    parts = []
    for _ in range(draw(st.integers(1, 4))):
        format = draw(st.sampled_from(["affine", "binary"]))
        bits = draw(st.integers(1, 4) if format == "binary" else st.integers(2, 8))
        dtype = draw(st.sampled_from([np.float16, np.float32]))
        form = Form(format, bits, granularity, draw(st.booleans()), draw(st.booleans()), dtype)
        parts.append((form, draw(st.integers(1, 5)), draw(st.integers(0, 99))))
    return parts, draw(st.integers(1, 40))


def built(case):
    """The parts as Stored, and all together."""
    parts, columns = case
    stored = [form.random(rows, columns, seed) for form, rows, seed in parts]
    return stored, stack(stored)


@settings(max_examples=20)
@given(stacks(), st.sampled_from([torch.float32, torch.float16, torch.bfloat16]))
def test_decode_equals_numpy(case, dtype):
    parts, q = built(case)
    wanted = torch.from_numpy(np.concatenate([values(part) for part in parts]))
    found = decode(q, dtype)
    assert found.dtype == dtype and torch.equal(found, wanted.to(dtype))


@settings(max_examples=20)
@given(stacks(), st.data())
def test_any_rows_decode_as_in_the_whole(case, data):
    _, q = built(case)
    numbers = st.lists(st.integers(-q.shape[0], q.shape[0] - 1), max_size=9)
    rows = torch.tensor(data.draw(numbers), dtype=torch.int64)
    assert torch.equal(decode_rows(q, rows), decode(q)[rows])
    some = slice(*sorted(data.draw(st.tuples(*[st.integers(0, q.shape[0])] * 2))))
    assert torch.equal(decode_rows(q, some), decode(q)[some])
    with pytest.raises(IndexError):
        decode_rows(q, torch.tensor([q.shape[0]]))


@settings(max_examples=20)
@given(stacks())
def test_the_layout_tells_every_tensor_and_comes_back_from_json(case):
    parts, q = built(case)
    stored = {name: (tuple(t.shape), t.dtype) for name, t in q.tensors().items()}
    assert stored == q.layout.tensors(*q.shape) and tuple(stored) == q.layout.names
    assert not any("." in name for name in stored)
    size = sum(tensor.nbytes for tensor in q.tensors().values())
    assert size == sum(t.nbytes for part in parts for t in part.q.tensors().values())
    layout = layout_from_dict(json.loads(json.dumps(q.layout.to_dict())))
    assert layout == q.layout
    again = layout.assemble(q.tensors(), q.in_features)
    assert torch.equal(decode(again), decode(q)) and again.layout == layout


def test_the_planes_of_a_prefix_are_those_of_each_part():
    forms = [Form("binary", bits, CHANNEL, nested=True) for bits in (3, 1)]
    parts = [*(form.random(2, 9) for form in forms), Form("affine", 4).random(3, 9)]
    q = stack(parts)
    assert q.layout.prefixes == (1, 2, 3) and q.layout.bits == 4
    first, second, affine = prefix(q, 2).parts
    assert (first.bits, second.bits, affine) == (2, 1, parts[2].q)
    assert torch.equal(first.alpha, parts[0].q.alphas[1])
    plain = stack([Form("binary", 3).random(2, 9), Form("binary", 1).random(2, 9)])
    assert plain.layout.prefixes == (3,)
    with pytest.raises(UsageError, match=r"a prefix of 2 planes .* supports \[3\]"):
        prefix(plain, 2)


def changed(**part):
    stored = StackedLayout(((3, BINARY), (5, BINARY))).to_dict()
    stored["parts"][1] |= part
    return stored


@pytest.mark.parametrize(
    ("stored", "sentence"),
    [
        (changed(rows=-5), "part 1 of a stack has -5 rows, at least 1 is needed"),
        (changed(rows=0), "part 1 of a stack has 0 rows"),
        (changed(rows=True), "not complete or valid"),
        (changed(rows=5.0), "not complete or valid"),
        (changed(rows="5"), "not complete or valid"),
        (changed(granularity="group:4"), "differ in granularity: channel, group:4"),
        (changed(format="stacked"), "format 'stacked' is unknown: use affine or binary"),
        (changed(bits="2"), "not complete or valid"),
        ({"format": "stacked", "parts": []}, "a stack of 0 parts is outside 1 … 16"),
        ({"format": "stacked"}, "not complete or valid"),
        ({"format": "stacked", "parts": {"rows": 3}}, "not complete or valid"),
        ({"format": "stacked", "parts": ["rows", 7, None]}, "not complete or valid"),
        (
            {"format": "stacked", "parts": changed()["parts"] * MAX_PARTS},
            "a stack of 32 parts is outside 1 … 16",
        ),
    ],
)
def test_what_is_no_stack_is_an_input_error(stored, sentence):
    with pytest.raises(InputError, match=sentence):
        layout_from_dict(stored)


@pytest.mark.parametrize("rows", [7, 9, 10**15])
def test_parts_of_other_rows_than_the_weight_are_an_input_error(rows):
    layout = StackedLayout(((3, BINARY), (5, BINARY)))
    with pytest.raises(InputError, match=f"the parts of a stack hold 8 rows, the weight {rows}"):
        layout.tensors(rows, 16)
