import copy
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch

from lowbit.accounting import resident_bytes
from lowbit.formats import CHANNEL, TENSOR, AffineTensor, group
from lowbit.formats.affine import encode
from lowbit.kernels import linear, native, ops
from lowbit.kernels.linear import KERNELS, reference
from lowbit.kernels.linear.interleaved import Interleaved
from lowbit.kernels.linear.native import KERNELS as NATIVE
from lowbit.kernels.linear.native import MAX_INPUTS, Int8Linear
from lowbit.kernels.selection import VARIABLE, select
from lowbit.nn import QuantLinear

PATHS = [pytest.param(kernel.name, id=kernel.name) for kernel in NATIVE]


@pytest.fixture
def path(request):
    (kernel,) = [kernel for kernel in NATIVE if kernel.name == request.param]
    missing = native.lacks(kernel.isa)
    if missing:
        pytest.skip(missing)
    return kernel.name


@pytest.fixture
def forced(path, monkeypatch):
    monkeypatch.setenv(VARIABLE, path)
    return path


@pytest.fixture
def one_thread():
    """Small products are not split anyway, and a busy machine makes threads wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


every_path = pytest.mark.parametrize("path", PATHS, indirect=True)
needs_native = pytest.mark.skipif(not native.available(), reason=native.reason() or "present")


def weight(codes, scale, zero_point=None, granularity=CHANNEL):
    """Codes as integers: signed without a zero point."""
    dtype = np.int8 if zero_point is None else np.uint8
    zeros = None if zero_point is None else torch.from_numpy(zero_point.astype(np.uint8))
    return AffineTensor(
        torch.from_numpy(np.ascontiguousarray(codes, dtype)),
        scale,
        zeros,
        8,
        granularity,
        codes.shape[1],
    )


def quantized(out_features, in_features, seed=0, zero_point=False, granularity=CHANNEL):
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(out_features, in_features, generator=generator)
    shape = granularity.parameter_shape(out_features, in_features)
    scale = torch.full(shape, 0.03, dtype=torch.float16)
    scale += torch.rand(shape, generator=generator).half() / 100
    zero = None
    if zero_point:
        zero = torch.randint(90, 160, shape, dtype=torch.uint8, generator=generator)
    return encode(w, scale, zero, 8, granularity)


def activations(rows, cols, seed=1):
    return torch.randn(rows, cols, generator=torch.Generator().manual_seed(seed))


class Guarded:
    """A poisoned output between two walls that no kernel may touch."""

    def __init__(self, rows, cols):
        self.all = np.full(rows * cols + 64, np.nan, np.float32)
        self.walls = np.concatenate([self.all[:32], self.all[-32:]])
        self.y = self.all[32:-32].reshape(rows, cols)

    def check(self):
        assert np.isnan(self.all[:32]).all() and np.isnan(self.all[-32:]).all()


def sums(a, q, packed, path):
    """The integer sums: with scales of one the result is their float32 rounding."""
    rows, cols = len(a), q.shape[0]
    product = Int8Linear(Interleaved(q.layout, *q.shape), path)
    x = a.astype(np.float32)
    out = Guarded(rows, cols)
    weight = packed.data_ptr()
    native.module.linear_int8(
        x.ctypes.data,
        weight,
        weight + product.scale_at,
        weight + product.zero_point_at if product.zero_point_at else 0,
        0,
        out.y.ctypes.data,
        rows,
        product.in_features,
        cols,
        product.half_scale,
        product.one_scale,
        path,
    )
    out.check()
    return out.y


def integer_case(random, rows, cols, inputs, extreme=None, zero_point=False):
    """Codes of activations and of a weight, and their exact product as float32 rounds it."""
    a = random.integers(-127, 128, (rows, inputs))
    low, high = (0, 256) if zero_point else (-128, 128)
    w = random.integers(low, high, (cols, inputs))
    if extreme == "lowest":
        a, w = np.full_like(a, -127), np.full_like(w, low)
    elif extreme == "highest":
        a, w = np.full_like(a, 127), np.full_like(w, high - 1)
    elif extreme == "alternating":
        a = np.where(np.arange(inputs) % 2, 127, -127) + np.zeros_like(a)
        w = np.where(np.arange(inputs) % 2, low, high - 1) + np.zeros_like(w)
    a[:, random.integers(inputs)] = 127  # the largest code, so that the scale is one
    z = random.integers(0, 256, (cols, 1)) if zero_point else None
    exact = a.astype(np.float64) @ (w - (0 if z is None else z)).astype(np.float64).T
    q = weight(w, torch.ones(cols, 1, dtype=torch.float16), z)
    return a, q, exact.astype(np.float32)


@every_path
def test_sums_are_exact_for_all_odd_sizes_to_forty(path, one_thread):
    random = np.random.default_rng(0)
    for cols in range(1, 41, 2):
        for inputs in range(1, 41, 2):
            a, q, wanted = integer_case(random, 39, cols, inputs)
            packed = Interleaved(q.layout, *q.shape).pack(q)
            for rows in range(1, 41, 2):
                got = sums(a[:rows], q, packed, path)
                assert np.array_equal(got, wanted[:rows]), (rows, cols, inputs)


@needs_native
def test_sums_are_exact_for_random_shapes_and_extreme_codes(one_thread):
    paths = [kernel.name for kernel in NATIVE if not native.lacks(kernel.isa)]
    random = np.random.default_rng(1)
    for number in range(3000):
        shape = random.integers(1, 201, 3)
        extreme = ("lowest", "highest", "alternating", None, None)[number % 5]
        a, q, wanted = integer_case(random, *shape, extreme, zero_point=number % 2 == 1)
        packed = Interleaved(q.layout, *q.shape).pack(q)
        for path in paths:
            assert np.array_equal(sums(a, q, packed, path), wanted), (path, shape, extreme)


@every_path
@pytest.mark.parametrize("extreme", ["lowest", "highest", "alternating", None])
@pytest.mark.parametrize("shape", [(1, 70, 3072), (40, 33, 5000), (300, 100, 2050)])
def test_sums_of_many_inputs_and_many_rows_are_exact(path, shape, extreme):
    a, q, wanted = integer_case(np.random.default_rng(2), *shape, extreme, zero_point=True)
    assert np.array_equal(sums(a, q, Interleaved(q.layout, *q.shape).pack(q), path), wanted)


@every_path
def test_the_largest_number_of_inputs_does_not_overflow(path):
    a, q, wanted = integer_case(np.random.default_rng(3), 2, 17, MAX_INPUTS, "highest", True)
    q.zero_point[:] = 0
    wanted = np.full_like(wanted, 127 * 255 * MAX_INPUTS)
    assert np.array_equal(sums(a, q, Interleaved(q.layout, *q.shape).pack(q), path), wanted)


@every_path
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("rows", [1, 3, 4, 5, 16, 17, 33, 130, 1200])
@pytest.mark.parametrize("zero_point", [False, True])
def test_results_are_those_of_the_reference_bit_for_bit(forced, threads, rows, zero_point):
    q, bias = quantized(200, 520, zero_point=zero_point), torch.linspace(-1, 1, 200)
    x = activations(rows, 520)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        kernel, why = select(KERNELS["dynamic"], x, q)
        assert why == f"{forced}: forced by {VARIABLE}"
        for b in (bias, None):
            assert torch.equal(kernel.run(x, q, b), reference.linear_dynamic(x, q, b))
    finally:
        torch.set_num_threads(before)


@every_path
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_scale_per_tensor_and_either_dtype_of_scales_are_served(path, dtype):
    q = quantized(50, 65, granularity=TENSOR)
    q = AffineTensor(q.codes, q.scale.to(dtype), None, 8, TENSOR, 65)
    x = activations(9, 65)
    got = Int8Linear(Interleaved(q.layout, *q.shape), path)(
        x, Interleaved(q.layout, *q.shape).pack(q), None
    )
    assert torch.equal(got, reference.linear_dynamic(x, q, None))


@every_path
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_strided_inputs_of_every_dtype_give_their_own_dtype(forced, dtype):
    q, bias = quantized(40, 48), torch.ones(40, dtype=dtype)
    x = activations(48, 30).to(dtype).t().unflatten(0, (5, 6))[:, ::2]
    y = linear.linear(x, q, bias, "dynamic")
    assert y.dtype == dtype and y.shape == (5, 3, 40)
    assert torch.equal(y, reference.linear_dynamic(x, q, bias))


@every_path
@pytest.mark.parametrize("shape", [(0, 48), (2, 0, 48), (48,)])
def test_empty_batches_and_a_single_vector_are_served(forced, shape):
    q = quantized(40, 48)
    x = torch.ones(shape)
    y = linear.linear(x, q, None, "dynamic")
    assert y.shape == (*shape[:-1], 40)
    assert torch.equal(y, reference.linear_dynamic(x, q, None))


@every_path
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("rows", [3, 40])
def test_what_is_not_finite_spoils_its_own_row_only(forced, bad, rows):
    q, x = quantized(70, 100), activations(rows, 100)
    clean = linear.linear(x, q, None, "dynamic")
    x[1, 7] = bad
    y = linear.linear(x, q, None, "dynamic")
    assert y[1].isnan().all()
    assert torch.equal(y[[0, *range(2, rows)]], clean[[0, *range(2, rows)]])


@every_path
def test_rows_of_zeros_give_the_bias(forced):
    q, bias = quantized(20, 30), torch.arange(20.0)
    assert torch.equal(linear.linear(torch.zeros(2, 30), q, bias, "dynamic"), bias.expand(2, 20))


@every_path
def test_several_python_threads_may_call_at_once(forced):
    q, inputs = quantized(300, 256), [activations(1 + 37 * i, 256, seed=i) for i in range(6)]
    wanted = [reference.linear_dynamic(x, q, None) for x in inputs]
    form = Interleaved(q.layout, *q.shape)
    product, packed = Int8Linear(form, forced), form.pack(q)
    wrong = []

    def work(number):
        for _ in range(30):
            if not torch.equal(product(inputs[number], packed, None), wanted[number]):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("zero_point", [False, True])
@pytest.mark.parametrize("granularity", [CHANNEL, TENSOR], ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (16, 64), (17, 5), (100, 30), (3, 257)])
def test_interleaving_loses_nothing(shape, granularity, zero_point):
    q = quantized(*shape, zero_point=zero_point, granularity=granularity)
    form = Interleaved(q.layout, *shape)
    again = form.unpack(form.pack(q))
    assert again.layout == q.layout and again.shape == q.shape
    for name, tensor in q.tensors().items():
        assert torch.equal(again.tensors()[name], tensor)


def test_interleaved_codes_lie_as_documented():
    codes = np.arange(-100, -100 + 17 * 6).reshape(17, 6)
    form = Interleaved(weight(codes, torch.ones(17, 1)).layout, 17, 6)
    packed = form.pack(weight(codes, torch.ones(17, 1)))
    lanes = packed[: form.codes_size].view(2, 2, 16, 4)
    assert lanes[0, 0, 3].tolist() == [c + 128 for c in codes[3, :4]]
    assert lanes[0, 1, 3].tolist() == [c + 128 for c in codes[3, 4:]] + [0, 0]
    assert lanes[1, 0, 0].tolist() == [c + 128 for c in codes[16, :4]]
    assert packed[form.places["scale"]].view(torch.float32).tolist() == [1.0] * 17


@pytest.mark.parametrize(
    ("q", "reason"),
    [
        (quantized(8, 64, granularity=group(32)), "a scale per group:32"),
        (encode(torch.ones(8, 64), torch.ones(8, 1), None, 4, CHANNEL), "of 4 bits, not affine"),
    ],
    ids=["groups", "4 bits"],
)
def test_what_the_native_code_cannot_do_is_left_to_the_reference_with_the_reason(q, reason):
    x = torch.ones(1, 64)
    for kernel in NATIVE:
        assert reason in kernel.unsupported(x, q)
    assert select(KERNELS["dynamic"], x, q)[0].name == "reference"
    assert linear.prepacked(q, "dynamic") is None


@needs_native
def test_an_input_that_does_not_fit_is_refused_with_both_shapes():
    q = quantized(40, 48)
    form = Interleaved(q.layout, *q.shape)
    with pytest.raises(ValueError, match=r"x \[2, 47\] .* \[40, 48\]"):
        Int8Linear(form, "scalar")(torch.ones(2, 47), form.pack(q), None)


def module(out_features=40, in_features=64, activations="dynamic", bias=True):
    q = quantized(out_features, in_features)
    own_bias = torch.nn.Parameter(torch.linspace(-1, 1, out_features)) if bias else None
    return QuantLinear(q.layout, in_features, out_features, own_bias, activations).hold(q), q


def same_stored(state, q):
    return all(torch.equal(state[name], tensor) for name, tensor in q.tensors().items())


# In a process of its own: the shape checks that tests put around functions cannot be traced.
COMPILE = """
import torch
from lowbit.formats import CHANNEL
from lowbit.nn import QuantLinear
from lowbit.schemes import Absmax

torch.manual_seed(0)
q, x = Absmax(8, CHANNEL).quantize(torch.randn(40, 64)), torch.randn(3, 64, requires_grad=True)
wanted, gradients = [], []
for prepacked in (False, True):
    m = QuantLinear(q.layout, 64, 40, torch.nn.Parameter(torch.ones(40)), "dynamic").hold(q)
    if prepacked:
        m(x)
    for call in (torch.compile(m, fullgraph=True, backend="aot_eager"), m):
        x.grad = None
        y = call(x)
        y.sum().backward()
        wanted.append(y.detach())
        gradients.append(x.grad)
        assert call is m or (m.prepacked is not None) == prepacked
assert all(torch.equal(y, wanted[0]) for y in wanted)
assert all(torch.equal(g, gradients[0]) for g in gradients)
print("compiled")
"""


@needs_native
class TestModule:
    def test_the_first_forward_prepacks_and_keeps_one_copy(self):
        m, q = module(512, 768)
        stored = resident_bytes(m)
        with torch.no_grad():
            y = m(activations(3, 768))
        assert m.prepacked is not None and m.codes.is_meta and m.codes.shape == (512, 768)
        assert resident_bytes(m) <= 1.01 * stored
        assert torch.equal(y, reference.linear_dynamic(activations(3, 768), q, m.bias))

    def test_float_activations_keep_the_stored_form(self):
        m, _ = module(activations="float")
        m(activations(3, 64))
        assert m.prepacked is None and not m.codes.is_meta

    def test_the_stored_weight_comes_back_bit_for_bit(self):
        m, q = module()
        x = activations(3, 64)
        y = m(x)
        assert same_stored(m.state_dict(), q) and m.prepacked is None
        assert torch.equal(m(x), y) and m.prepacked is not None
        assert same_stored(m.qweight.tensors(), q)
        m(x)
        assert torch.equal(ops.dequantize(m.qweight), ops.dequantize(q))

    def test_a_copy_computes_the_same_and_is_a_copy(self):
        m, q = module()
        x = activations(3, 64)
        y = m(x)
        twin = copy.deepcopy(m)
        assert twin.prepacked.data_ptr() != m.prepacked.data_ptr()
        m.prepacked.zero_()
        assert torch.equal(twin(x), y) and same_stored(twin.state_dict(), q)

    def test_a_change_of_dtype_leaves_the_codes_alone(self):
        m, q = module()
        x = activations(3, 64)
        m(x)
        m.to(torch.bfloat16)
        assert m(x.bfloat16()).dtype == torch.bfloat16
        assert same_stored(m.state_dict(), q)

    def test_loading_other_weights_replaces_the_prepacked_ones(self):
        m, _ = module()
        q = quantized(40, 64, seed=9)
        x = activations(3, 64)
        m(x)
        m.load_state_dict({**q.tensors(), "bias": torch.zeros(40)})
        assert torch.equal(m(x), reference.linear_dynamic(x, q, None))

    @pytest.mark.parametrize("prepacked", [False, True])
    def test_gradients_are_those_of_the_stored_weight(self, prepacked):
        m, q = module()
        x = activations(3, 64).requires_grad_()
        m.product_chosen = not prepacked  # as if there were nothing to choose from
        y = m(x)
        y.backward(torch.ones_like(y))
        assert (m.prepacked is not None) == prepacked
        assert torch.equal(y, reference.linear_dynamic(x, q, m.bias))
        torch.testing.assert_close(x.grad, ops.dequantize(q).sum(0).expand(3, 64))
        assert torch.equal(m.bias.grad, torch.full((40,), 3.0))

    def test_modules_compile_to_one_graph_prepacked_or_not(self):
        done = subprocess.run([sys.executable, "-c", COMPILE], capture_output=True, text=True)
        assert done.returncode == 0 and done.stdout == "compiled\n", done.stderr[-2000:]

    def test_the_operator_meets_opcheck(self):
        m, _ = module()
        x = activations(3, 64)
        m(x)
        layout = ops.layout_text(m.layout)
        for bias in (None, m.bias.detach().requires_grad_()):
            arguments = (x.requires_grad_(), m.prepacked, bias, layout, 40, m.product.path)
            torch.library.opcheck(torch.ops.lowbit.linear_prepacked.default, arguments)
        arguments = (m.prepacked, layout, 40, 64, torch.float32)
        torch.library.opcheck(torch.ops.lowbit.dequantize_prepacked.default, arguments)

    def test_threads_may_meet_at_the_first_forward(self):
        m, q = module(300, 256)
        x = activations(5, 256)
        wanted = reference.linear_dynamic(x, q, m.bias)
        wrong, start = [], threading.Barrier(4)

        def work():
            start.wait()
            for number in range(20):
                with torch.no_grad():
                    if not torch.equal(m(x), wanted):
                        wrong.append(number)
                if number % 5 == 0 and not same_stored(m.state_dict(), q):
                    wrong.append(number)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
