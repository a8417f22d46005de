"""The operators: schema, fake version, gradient, tracing; and the arithmetic of the references."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lowbit.errors import InputError
from lowbit.formats import CHANNEL, TENSOR, StaticScale, group
from lowbit.kernels import native, ops
from lowbit.kernels.linear.reference import integer_matmul, linear_dynamic, linear_static
from lowbit.kernels.stacked_packed_layout import packed_layout_of
from lowbit.nn import QuantEmbedding, QuantLinear
from lowbit.schemes import Absmax, Binary, Clustered, ZeroPoint

SCHEMES = [
    Absmax(8, CHANNEL),
    Absmax(8, TENSOR),
    Absmax(4, group(16)),
    ZeroPoint(8, CHANNEL),
    ZeroPoint(3, group(16)),
    Binary(2, group(16)),
    Binary(3, CHANNEL, offset=False),
    Clustered(Binary(4, group(16)), ratio=2.0),
]


def stored(scheme, rows=24, columns=40, seed=0):
    torch.manual_seed(seed)
    return scheme.quantize(torch.randn(rows, columns))


def arguments(q):
    return list(q.tensors().values()), ops.layout_text(q.layout)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_operators_pass_opcheck(scheme):
    q = stored(scheme)
    tensors, layout = arguments(q)
    x = torch.randn(5, 40)
    bias = torch.randn(24)
    lowbit_ops = torch.ops.lowbit
    torch.library.opcheck(lowbit_ops.dequantize, (tensors, layout, 40, torch.float32))
    ids = torch.tensor([[0, 23, 7]])
    torch.library.opcheck(lowbit_ops.embedding, (ids, tensors, layout, 40, torch.float32))
    for how in ((layout, "float", "identity"), (layout, "dynamic", "gelu_tanh")):
        torch.library.opcheck(lowbit_ops.linear, (x.detach(), tensors, bias, *how, 0.0, 0))
        torch.library.opcheck(lowbit_ops.linear, (x.requires_grad_(), tensors, None, *how, 0.0, 0))


def test_quantize_rows_passes_opcheck():
    torch.library.opcheck(torch.ops.lowbit.quantize_rows, (torch.randn(3, 40), 16))


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_float_activations_are_within_twice_the_error_of_torch(scheme):
    q = stored(scheme, 64, 96)
    weight = ops.dequantize(q)
    x, bias = torch.randn(2, 7, 96), torch.randn(64)
    exact = x.double() @ weight.double().T + bias.double()
    torch_error = (torch.nn.functional.linear(x, weight, bias).double() - exact).abs().max()
    ours = ops.linear(x, q, bias, "float")
    assert ((ours.double() - exact).abs() <= 2 * torch_error + 1e-12).all()


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_int8_activations_are_exact_products_of_rounded_activations(scheme):
    """NumPy in float64: quantize x per token and group, multiply by the decoded weight."""
    q = stored(scheme, 20, 40)
    x, bias = torch.randn(6, 40), torch.randn(20)
    width = q.granularity.width(40)
    rounded = np.empty((6, 40))
    for start in range(0, 40, width):
        part = x[:, start : start + width].numpy()
        largest = np.abs(part).max(1, keepdims=True)
        codes = np.rint(part * (np.float32(127) / largest))
        rounded[:, start : start + width] = codes * (largest / np.float32(127)).astype(np.float64)
    exact = rounded @ ops.dequantize(q).numpy().astype(np.float64).T + bias.numpy()
    ours = ops.linear(x, q, bias, "dynamic").double().numpy()
    assert (np.abs(ours - exact) <= 1e-5 * np.abs(exact).max()).all()


@settings(max_examples=60)
@given(
    m=st.integers(1, 9),
    n=st.integers(1, 9),
    k=st.integers(1, 2000),
    extreme=st.booleans(),
    seed=st.integers(0, 99),
)
def test_integer_sums_are_exact(m, n, k, extreme, seed):
    rng = np.random.default_rng(seed)
    a = np.full((m, k), 127) if extreme else rng.integers(-127, 128, (m, k))
    b = np.full((n, k), -255) if extreme else rng.integers(-255, 256, (n, k))
    ours = integer_matmul(torch.from_numpy(a).float(), torch.from_numpy(b).float())
    assert ours.dtype == torch.int64
    assert np.array_equal(ours.numpy(), a @ b.T)


@pytest.mark.parametrize("activations", ["float", "dynamic"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_comes_back_in_its_dtype(dtype, activations):
    q = stored(Absmax(8, CHANNEL))
    x = torch.randn(5, 40).to(dtype)
    y = ops.linear(x, q, torch.randn(24), activations)
    assert y.dtype == dtype and y.shape == (5, 24)


@pytest.mark.parametrize("activations", ["float", "dynamic"])
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_odd_inputs(scheme, activations):
    q = stored(scheme)
    assert ops.linear(torch.randn(0, 40), q, None, activations).shape == (0, 24)
    assert ops.linear(torch.randn(40), q, None, activations).shape == (24,)
    strided = torch.randn(40, 6).T
    expected = ops.linear(strided.contiguous(), q, None, activations)
    assert torch.equal(ops.linear(strided, q, None, activations), expected)
    spoiled = torch.randn(3, 40)
    spoiled[1, 3] = torch.nan
    y = ops.linear(spoiled, q, None, activations)
    assert y[1].isnan().all() and y[[0, 2]].isfinite().all()


@pytest.mark.parametrize("activations", ["float", "dynamic"])
def test_the_gradient_is_that_of_the_decoded_weight(activations):
    q = stored(ZeroPoint(4, group(8)))
    x = torch.randn(5, 40, requires_grad=True)
    bias = torch.randn(24, requires_grad=True)
    grad = torch.randn(5, 24)
    ops.linear(x, q, bias, activations).backward(grad)
    torch.testing.assert_close(x.grad, grad @ ops.dequantize(q))
    torch.testing.assert_close(bias.grad, grad.sum(0))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("nonlinearity", "kept"), [("identity", 0), ("gelu", 1)])
def test_activations_are_kept_for_the_backward_pass_only_where_it_reads_them(
    nonlinearity, kept, packed
):
    layer = QuantLinear(stored(ZeroPoint(4, group(16))).layout, 40, 24, None)
    layer.hold(stored(ZeroPoint(4, group(16)))).set_nonlinearity(nonlinearity)
    if not packed:
        layer.pack = lambda: None
    x = torch.randn(64, 40, requires_grad=True)
    found = []

    def note(tensor):
        found.append(tensor.untyped_storage().nbytes() == x.nbytes)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        layer(x)
    assert found and sum(found) == kept


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_embedding_rows_are_rows_of_the_decoded_table(scheme):
    q = stored(scheme)
    ids = torch.tensor([[0, 23], [5, 5]])
    assert torch.equal(ops.embedding(ids, q, torch.float32), ops.dequantize(q)[ids])
    assert ops.embedding(ids[:0], q, torch.float32).shape == (0, 2, 40)


@pytest.mark.parametrize("bad", [-1, 24])
def test_an_id_outside_the_table_raises(bad):
    with pytest.raises(IndexError, match=f"{bad}"):
        ops.embedding(torch.tensor([0, bad]), stored(Absmax(8, CHANNEL)), torch.float32)


def wrong_calls():
    """(operator, arguments) of which each has one thing wrong."""
    q = stored(SCHEMES[4])
    tensors, layout = arguments(q)
    codes, scale, zero = tensors
    x, bias, ids = torch.randn(5, 40), torch.randn(24), torch.tensor([0, 23])
    how = layout, "float", "identity", 0.0, 0
    for bad in (
        [codes, scale],
        [codes.int(), scale, zero],
        [codes, scale.double(), zero],
        [codes[:, :-1], scale, zero],
        [codes, scale[:-1], zero],
        [codes, scale, zero.to(torch.int8)],
    ):
        yield "dequantize", (bad, layout, 40, torch.float32)
        yield "embedding", (ids, bad, layout, 40, torch.float32)
        yield "linear", (x, bad, None, *how)
    for bad in (torch.randn(5, 30), torch.randn(()), torch.ones(5, 40, dtype=torch.int32)):
        yield "linear", (bad, tensors, None, *how)
    for bad in (bias[:-1], bias[None], bias.long(), torch.randn(())):
        yield "linear", (x, tensors, bad, *how)
    yield "linear", (x, tensors, bias, layout, "nothing", "identity", 0.0, 0)
    yield "linear", (x, tensors, bias, layout, "float", "nothing", 0.0, 0)
    yield "embedding", (torch.tensor([24]), tensors, layout, 40, torch.float32)
    yield "embedding", (torch.tensor([-1]), tensors, layout, 40, torch.float32)
    yield "quantize_rows", (x, 0)
    yield "quantize_rows", (x, -3)
    yield "quantize_rows", (torch.randn(40), 8)


@pytest.mark.parametrize("number", range(len(list(wrong_calls()))))
def test_an_operator_called_with_what_does_not_fit_raises(number):
    name, call = list(wrong_calls())[number]
    with pytest.raises((ValueError, IndexError, KeyError, RuntimeError, InputError)):
        getattr(torch.ops.lowbit, name)(*call)


def packed_arguments():
    q = stored(SCHEMES[4])
    packed, layout = packed_layout_of(q.layout, 24, 40).pack(q), ops.layout_text(q.layout)
    rest = "dynamic", "identity", "scalar", 0.0, 0
    return packed, layout, torch.randn(5, 40), torch.tensor([0, 23]), rest


def right_packed_calls():
    packed, layout, x, ids, rest = packed_arguments()
    yield "linear_packed", (x, packed, torch.randn(24), layout, 24, 0, *rest)
    yield "embedding_packed", (ids, packed, layout, 24, 40, 0, torch.float32)


def wrong_packed_calls():
    """(operator, arguments) of which each has one thing wrong."""
    packed, layout, x, ids, rest = packed_arguments()
    for bad in (packed[:-1], packed.int(), packed[None], packed.repeat(2)[::2]):
        yield "linear_packed", (x, bad, None, layout, 24, 0, *rest)
        yield "embedding_packed", (ids, bad, layout, 24, 40, 0, torch.float32)
    for rows, planes in ((0, 0), (-1, 0), (33, 0), (24, 1), (24, -1)):  # panels hold 32 rows
        yield "linear_packed", (x, packed, None, layout, rows, planes, *rest)
        yield "embedding_packed", (ids, packed, layout, rows, 40, planes, torch.float32)
    for bias in (torch.randn(23), torch.randn(1, 24), torch.ones(24, dtype=torch.int8)):
        yield "linear_packed", (x, packed, bias, layout, 24, 0, *rest)
    yield "linear_packed", (x[:, :0], packed, None, layout, 24, 0, *rest)
    yield "linear_packed", (x, packed, None, layout, 24, 0, "dynamic", "identity", "vax", 0.0, 0)
    yield "linear_packed", (x, packed, None, layout, 24, 0, "float", "vax", "scalar", 0.0, 0)
    yield "embedding_packed", (torch.tensor([24]), packed, layout, 24, 40, 0, torch.float32)


@pytest.mark.skipif(not native.available(), reason=native.reason() or "present")
def test_an_operator_on_packed_bytes_called_with_what_does_not_fit_raises():
    calls = list(wrong_packed_calls())
    assert len(calls) > 20
    for name, call in right_packed_calls():
        assert getattr(torch.ops.lowbit, name)(*call).isfinite().all()
    for name, call in calls:
        with pytest.raises((ValueError, IndexError, KeyError, AttributeError, RuntimeError)):
            getattr(torch.ops.lowbit, name)(*call)


@pytest.mark.parametrize("activations", ["dynamic", "static"])
@pytest.mark.parametrize("scheme", [Absmax(8, CHANNEL), Binary(1, CHANNEL)], ids=str)
def test_sums_of_more_codes_than_int32_holds_are_right(scheme, activations):
    columns = 140_000
    q = scheme.quantize(torch.ones(2, columns))
    known = StaticScale(1 / 127, 0) if activations == "static" else None
    y = ops.linear(torch.ones(1, columns), q, None, activations, "identity", known)
    assert ((y.double() - columns).abs() <= 1e-3 * columns).all()


@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_a_default_dtype_changes_nothing(scheme, default):
    q, x, ids = stored(scheme), torch.randn(3, 40), torch.tensor([1, 5])
    static = StaticScale(0.02, 3)

    def all_of_it():
        layer = QuantLinear(q.layout, 40, 24, None, "dynamic").hold(q)
        table = QuantEmbedding(q.layout, 24, 40).hold(q)
        tracked = x.clone().requires_grad_()
        layer(tracked).sum().backward()
        return [
            ops.linear(x, q, None, "float"),
            ops.linear(x, q, None, "dynamic", "gelu"),
            ops.linear(x, q, None, "static", "identity", static),
            linear_static(x, q, None, "identity", static),
            linear_dynamic(x, q, None),
            layer(x),
            table(ids),
            layer.weight + 0,
            tracked.grad,
        ]

    wanted = all_of_it()
    torch.set_default_dtype(default)
    try:
        got = all_of_it()
    finally:
        torch.set_default_dtype(torch.float32)
    for ours, theirs in zip(got, wanted, strict=True):
        assert ours.dtype == theirs.dtype == torch.float32
        assert torch.equal(ours, theirs)
