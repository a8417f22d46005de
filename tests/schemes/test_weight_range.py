import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lowbit.errors import InputError, UsageError
from lowbit.formats import FORMATS, TENSOR, Granularity, decode, group
from lowbit.schemes import Absmax, Binary, KQuant, ZeroPoint
from lowbit.schemes.weight_range import weight_range
from tests.oracles import affine as oracle
from tests.weights import units_of, weights

SCHEMES = [
    Absmax(),
    Absmax(4, group(4), "minmax"),
    Absmax(4, TENSOR),
    ZeroPoint(8),
    ZeroPoint(3, group(4)),
    ZeroPoint(3, group(4), zero="float"),
    Binary(3, group(4)),
    Binary(1, group(5)),
    Binary(2, group(4), solver="greedy", nested=True),
]
each_scheme = pytest.mark.parametrize("scheme", SCHEMES, ids=str)


@given(weights(), st.data())
def test_ranges_equal_numpys_and_include_zero(weight, data):
    size = data.draw(units_of(weight))
    granularity = Granularity.parse(size if isinstance(size, str) else f"group:{size}")
    wanted = oracle.ranges(weight.float().numpy(), size)
    for got, ours in zip(weight_range(weight, granularity), wanted, strict=True):
        np.testing.assert_array_equal(got.numpy(), ours)


@pytest.mark.parametrize("columns", [7, 8, 9, 15])
def test_ranges_without_zero_are_those_of_the_weights_alone(columns):
    weight = torch.rand(3, columns, generator=torch.Generator().manual_seed(0)) - 3
    low, high = weight_range(weight, group(4), with_zero=False)
    parts = [weight.numpy()[:, i : i + 4] for i in range(0, columns, 4)]
    np.testing.assert_array_equal(low.numpy(), np.stack([p.min(1) for p in parts], 1))
    np.testing.assert_array_equal(high.numpy(), np.stack([p.max(1) for p in parts], 1))


def test_offsets_serve_a_short_last_group_as_well_as_the_others():
    weight = 10 + torch.rand(8, 36, generator=torch.Generator().manual_seed(0))
    away = (decode(ZeroPoint(2, group(32), zero="float").quantize(weight)) - weight).abs()
    # A quarter unit is a step and a bit; with 0 in the range a step would be more than 3.
    assert away[:, 32:].max() < 0.2 and away[:, :32].max() < 0.2


LARGEST = torch.finfo(torch.float32).max


@pytest.mark.parametrize(
    "scheme", [Absmax(b) for b in (6, 8)]
    + [Absmax(4, range="minmax"), ZeroPoint(4), ZeroPoint(5), ZeroPoint(4, zero="float")]
    + [Binary(2, group(8)), Binary(4, group(8))],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("signs", [(1, 0), (-1, 0), (-1, 1)])
def test_weights_that_would_decode_to_infinity_are_refused_with_their_size(scheme, signs):
    weight = torch.tensor([[1.0, 3, 5, 0, 0.2, 7, *(sign * LARGEST for sign in signs)]])
    with pytest.raises(InputError, match=r"a weight of 3.40282e\+38 is too large"):
        scheme.quantize(weight)
    assert torch.isfinite(decode(scheme.quantize(weight / 4))).all()


@each_scheme
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_weights_that_are_not_finite_are_counted_in_an_input_error(scheme, bad, dtype):
    weight = torch.ones(3, 10, dtype=dtype)
    weight[1, 9] = bad
    with pytest.raises(InputError, match="1 of 30 weights are NaN or infinite"):
        scheme.quantize(weight)
    weight[2, 0], weight[0, 0] = float("inf"), -float("inf")
    with pytest.raises(InputError, match="3 of 30 weights are NaN or infinite"):
        scheme.quantize(weight)


@each_scheme
def test_float64_weights_beyond_float32_are_an_input_error(scheme):
    weight = torch.ones(3, 10, dtype=torch.float64)
    weight[0, 0] = 1e300
    with pytest.raises(InputError, match="1 of 30 weights are NaN or infinite in float32"):
        scheme.quantize(weight)


@each_scheme
@pytest.mark.parametrize(
    "weight, message",
    [
        (torch.ones(8), r"a float matrix \[out, in\], not torch.float32 \[8\]"),
        (torch.ones(2, 8, 8), r"not torch.float32 \[2, 8, 8\]"),
        (torch.ones(8, 8, dtype=torch.int8), r"not torch.int8 \[8, 8\]"),
        (torch.ones(8, 8, dtype=torch.bool), r"not torch.bool \[8, 8\]"),
        (torch.ones(8, 0), r"a weight of shape \[8, 0\] has no inputs"),
    ],
)
def test_what_is_no_float_matrix_is_a_usage_error(scheme, weight, message):
    with pytest.raises(UsageError, match=message):
        scheme.quantize(weight)


@pytest.mark.parametrize(
    "scheme", [Absmax(8, group(9)), ZeroPoint(4, group(9)), Binary(1, group(9))]
)
def test_a_group_larger_than_the_inputs_is_a_usage_error(scheme):
    with pytest.raises(UsageError, match="group size 9 is larger than the 8 inputs"):
        scheme.quantize(torch.ones(2, 8))


@pytest.mark.parametrize("scheme", [*SCHEMES, *map(KQuant, (2, 3, 4, 5, 6))], ids=str)
def test_a_weight_without_rows_is_stored_and_decoded(scheme):
    q = scheme.quantize(torch.ones(0, 256))
    shapes = {name: (tuple(t.shape), t.dtype) for name, t in q.tensors().items()}
    assert q.layout.tensors(0, 256) == shapes
    assert FORMATS[q.layout.format].decode(q).shape == (0, 256)


@each_scheme
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_strided_weights_are_quantized_as_contiguous_ones(scheme, dtype):
    weight = torch.randn(10, 14, generator=torch.Generator().manual_seed(0)).to(dtype)
    strided = weight.t()[::2]
    one, other = scheme.quantize(strided), scheme.quantize(strided.contiguous().float())
    for name, tensor in one.tensors().items():
        assert tensor.is_contiguous() and torch.equal(tensor, other.tensors()[name]), name
