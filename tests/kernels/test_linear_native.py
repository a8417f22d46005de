"""Every target of the native linear layer: exact sums, then float32 step by step, alike on all."""

import threading
from functools import cache
from itertools import product

import numpy as np
import pytest
import torch

from lowbit.formats import CHANNEL, FORMATS, group
from lowbit.formats.binary import prefix
from lowbit.kernels import linear, native
from lowbit.kernels.linear import families, reference
from lowbit.kernels.linear.native import LinearProduct, kernels, together
from lowbit.kernels.packed_layout import MAX_GROUP, PackedLayout
from lowbit.kernels.selection import VARIABLE
from tests.oracles import linear as oracle
from tests.stored import FORMS, GROUPS, Form, affine, binary
from tests.targets import parameters, runnable

NATIVE = kernels("float")
TARGETS = parameters(NATIVE)
HERE = runnable(NATIVE)
KINDS = ("float", "dynamic")
FAMILIES = ("limbs", "fma")
LIMBS = {"float": 4, "dynamic": 1, "fma": 1}  # float activations are limbs but where it says fma


@pytest.fixture
def forced(target, monkeypatch):
    monkeypatch.setenv(VARIABLE, target)
    return target


every_target = pytest.mark.parametrize("target", TARGETS)
every_form = pytest.mark.parametrize("form", FORMS, ids=str)
every_kind = pytest.mark.parametrize("kind", KINDS)
every_family = pytest.mark.parametrize("family", FAMILIES)
needs_native = pytest.mark.skipif(not native.available(), reason=native.reason() or "present")


def form_of(q):
    return PackedLayout(q.layout, *q.shape)


def product_of(q, kind, target, family=None):
    """x and bias -> y."""
    form = form_of(q)
    run, packed = LinearProduct(form, kind, target, family=family), form.pack(q)
    return lambda x, bias=None: run(x, packed, bias)


def activations(rows, cols, seed=1):
    return torch.randn(rows, cols, generator=torch.Generator().manual_seed(seed))


def bits_of(y):
    """So that -0 and 0 differ and nothing is hidden by a NaN."""
    return y.contiguous().view(torch.int32)


class Guarded:
    """A poisoned output between two walls that no kernel may touch."""

    def __init__(self, rows, cols):
        self.all = np.full(rows * cols + 64, np.nan, np.float32)
        self.y = self.all[32:-32].reshape(rows, cols)

    def check(self):
        assert np.isnan(self.all[:32]).all() and np.isnan(self.all[-32:]).all()


class Packed:
    """A weight that is packed once and multiplied by any target."""

    def __init__(self, q):
        self.form = form_of(q)
        self.bytes = self.form.pack(q)
        self.weight = self.form.weight

    def times(self, x, kind, target, bias=None, weight=None):
        x = np.ascontiguousarray(x, np.float32)
        out = Guarded(len(x), self.form.out_features)
        native.module.LinearTarget(target, kind == "fma")(
            native.module.Layer(weight or self.weight, native.module.Nonlinearity.identity),
            x.ctypes.data,
            self.bytes.data_ptr(),
            0 if bias is None else bias.ctypes.data,
            out.y.ctypes.data,
            len(x),
            LIMBS[kind],
        )
        out.check()
        return out.y


EXTREMES = ("lowest", "highest", "alternating", None, None)


def integer_case(random, rows, cols, inputs, form, extreme=None):
    """Activations and a weight of integers, all scales one, and the exact product.

    The largest activation of every group is 127, so that the dynamic scale is one too. Sums stay
    below 2^24 for up to 500 inputs: float32 holds them.
    """
    width = form.granularity.width(inputs)
    groups = -(-inputs // width)
    codes = random.integers(0, 1 << form.bits, (cols, inputs), dtype=np.uint8)
    a = random.integers(-127, 128, (rows, inputs))
    odd = np.arange(inputs) % 2
    if extreme == "lowest":
        a[:], codes[:] = -127, 0
    elif extreme == "highest":
        a[:], codes[:] = 127, (1 << form.bits) - 1
    elif extreme == "alternating":
        a[:], codes[:] = np.where(odd, 127, -127), np.where(odd, 0, (1 << form.bits) - 1)
    starts = np.arange(0, inputs, width)
    a[:, random.integers(starts, np.minimum(starts + width, inputs))] = 127

    ones = np.ones((cols, groups), form.dtype)
    group_of = np.arange(inputs) // width
    if form.format == "affine":
        zero = random.integers(0, 1 << form.bits, (cols, groups)) if form.shift else None
        weight = affine(codes, ones, zero, form.bits, form.granularity)
        w = codes - weight.zero_point[:, group_of]
    else:
        powers = 1 << np.arange(form.bits)
        offset = random.integers(-20, 21, (cols, groups)) if form.shift else None
        weight = binary(
            codes,
            [ones[..., None] * powers.astype(form.dtype)],
            None if offset is None else [offset.astype(form.dtype)],
            form.bits,
            form.granularity,
        )
        w = 2 * codes.astype(int) - powers.sum()  # each plane is -1 or 1, worth its power
        if offset is not None:
            w = w + offset[:, group_of]
    # By torch, whose threads the tests can keep from waiting for each other.
    exact = torch.from_numpy(a).double() @ torch.from_numpy(w).double().T
    return a, weight.q, exact.numpy()


INT8 = Form("affine", 8), Form("affine", 8, shift=True)
NARROW = [
    *(Form("affine", bits, shift=bool(bits % 2)) for bits in range(2, 8)),
    Form("affine", 8, group(32), shift=True),
    Form("affine", 4, group(24)),
    Form("affine", 3, group(16), shift=True),
    Form("affine", 6, group(16)),
    Form("affine", 3, group(96), shift=True, dtype=np.float32),
    *(Form("binary", planes, shift=bool(planes % 2)) for planes in range(1, 5)),
    Form("binary", 3, group(24), shift=True),
]


class TestSums:
    """With scales of one the result is the integer sum itself."""

    @needs_native
    def test_are_exact_for_all_odd_sizes_to_forty(self, one_thread):
        random = np.random.default_rng(0)
        for cols, inputs in product(range(1, 41, 2), repeat=2):
            a, q, wanted = integer_case(random, 39, cols, inputs, INT8[random.integers(2)])
            packed = Packed(q)
            for rows in range(1, 41, 2):
                for target in HERE:
                    got = packed.times(a[:rows], KINDS[rows // 2 % 2], target)
                    assert np.array_equal(got, wanted[:rows]), (target, rows, cols, inputs)

    @needs_native
    @pytest.mark.parametrize("form", NARROW, ids=str)
    def test_of_all_other_codes_are_exact_for_sizes_around_the_blocks(self, form, one_thread):
        random = np.random.default_rng(1)
        for cols in (1, 16, 17, 33):
            for inputs in (1, 31, 33, 64, 65, 129):
                a, q, wanted = integer_case(random, 33, cols, inputs, form)
                packed = Packed(q)
                for rows in (1, 2, 3, 5, 8, 9, 17, 33):
                    for target, kind in product(HERE, KINDS):
                        got = packed.times(a[:rows], kind, target)
                        assert np.array_equal(got, wanted[:rows]), (
                            target,
                            rows,
                            cols,
                            inputs,
                            kind,
                        )

    @needs_native
    @pytest.mark.parametrize("shapes", [300, pytest.param(3000, marks=pytest.mark.nightly)])
    def test_are_exact_for_random_shapes_and_extreme_codes(self, shapes, one_thread):
        random = np.random.default_rng(shapes)
        for number in range(shapes):
            shape, extreme = shape_below(random, 201), EXTREMES[number % 5]
            a, q, wanted = integer_case(random, *shape, INT8[number % 2], extreme)
            packed = Packed(q)
            for target in HERE:
                got = packed.times(a, "dynamic", target)
                assert np.array_equal(got, wanted), (target, shape, extreme)

    @needs_native
    @pytest.mark.parametrize("shapes", [200, pytest.param(2000, marks=pytest.mark.nightly)])
    def test_of_all_other_codes_are_exact_for_random_shapes_and_extremes(self, shapes, one_thread):
        random = np.random.default_rng(shapes)
        for number in range(shapes):
            shape, extreme = shape_below(random, 121), EXTREMES[number % 5]
            form = random_form(random)
            a, q, wanted = integer_case(random, *shape, form, extreme)
            packed, kind = Packed(q), KINDS[number // 5 % 2]
            for target in HERE:
                got = packed.times(a, kind, target)
                assert np.array_equal(got, wanted), (target, shape, extreme, str(form), kind)

    @needs_native
    @pytest.mark.parametrize("extreme", ["lowest", "highest", "alternating", None])
    @pytest.mark.parametrize("shape", [(1, 70, 3072), (40, 17, 5000), (130, 40, 2050)], ids=str)
    def test_of_many_inputs_and_many_rows_are_exact(self, shape, extreme):
        a, q, wanted = integer_case(np.random.default_rng(4), *shape, INT8[1], extreme)
        packed = Packed(q)
        for target in HERE:
            assert np.array_equal(packed.times(a, "dynamic", target), wanted.astype(np.float32)), (
                target
            )

    @every_target
    def test_of_the_most_inputs_under_one_scale_do_not_overflow(self, target):
        ones, zeros = np.ones((17, 1), np.float32), np.zeros((17, 1), np.int64)
        for bits, high in product(range(2, 9), (False, True)):
            # The highest codes without a zero point, or the lowest with the highest zero point.
            top = (1 << bits) - 1
            codes = np.full((17, MAX_GROUP), top * high, np.uint8)
            packed = Packed(affine(codes, ones, zeros + top * (not high), bits).q)
            # One row, a few, and as many as are decoded once.
            for rows, value in product((1, 2, 20), (-127, 127)):
                a = np.full((rows, MAX_GROUP), value)
                sum_ = value * (top if high else -top) * MAX_GROUP
                got = packed.times(a, "dynamic", target)
                assert np.array_equal(got, np.full((rows, 17), sum_, np.float32)), (bits, rows)
        # Three limbs of -128 in all but one input, which makes the scale of all of them one.
        a = np.full((2, MAX_GROUP), -128 * (1 + 2**8 + 2**16))
        a[:, 0] = 2**29
        wanted = oracle.float_affine(a.astype(np.float32), codes, ones, zeros, None, MAX_GROUP)
        assert np.array_equal(packed.times(a, "float", target), wanted)


def shape_below(random, size):
    return [int(n) for n in random.integers(1, size, 3)]


def random_form(random):
    granularity = CHANNEL if random.integers(2) else group(int(random.choice(GROUPS)))
    shift, dtype = bool(random.integers(2)), (np.float16, np.float32)[random.integers(2)]
    if random.integers(3):
        return Form("affine", int(random.integers(2, 9)), granularity, shift, dtype=dtype)
    return Form("binary", int(random.integers(1, 5)), granularity, shift, dtype=dtype)


ROWS = (1, 2, 3, 5, 16, 33, 97)


@cache
def dynamic_case(form, rows):
    """A weight, activations, a bias for some numbers of rows, and the result."""
    q, x = form.random(120, 330).q, activations(rows, 330)
    bias = torch.linspace(-1, 1, 120) if rows % 2 else None
    return q, x, bias, reference.linear_dynamic(x, q, bias)


class TestDynamic:
    """int8 activations: the reference's result, bit for bit."""

    @every_target
    @every_form
    def test_results_are_those_of_the_reference(self, target, form, threads):
        for rows in ROWS:
            threads(1)
            q, x, bias, wanted = dynamic_case(form, rows)
            multiply = product_of(q, "dynamic", target)
            for count in (1, 2):
                threads(count)
                assert torch.equal(multiply(x, bias), wanted), (rows, count)

    @every_target
    @pytest.mark.parametrize(
        "form",
        [
            *INT8,
            Form("affine", 4, group(64), shift=True),
            Form("affine", 2, group(16)),
            Form("binary", 3, group(64)),
        ],
        ids=str,
    )
    def test_results_of_very_many_rows_are_those_of_the_reference(self, forced, form, threads):
        q, x, bias, wanted = dynamic_case(form, 1200)
        kernel, why = linear.kernel(q.layout, 330, torch.device("cpu"), "dynamic")
        assert why.startswith(f"{forced}: forced by {VARIABLE}")
        for count in (1, 2):
            threads(count)
            assert torch.equal(kernel.run(x, q, bias), wanted)

    @needs_native
    @pytest.mark.parametrize("shapes", [100, pytest.param(1000, marks=pytest.mark.nightly)])
    def test_results_for_any_shape_and_form_are_those_of_the_reference(self, shapes, one_thread):
        random = np.random.default_rng(shapes)
        for number in range(shapes):
            rows, cols, inputs = shape_below(random, 140)
            form = random_form(random)
            q, x = form.random(cols, inputs, number).q, activations(rows, inputs, number)
            wanted, packed = reference.linear_dynamic(x, q, None).numpy(), Packed(q)
            for target in HERE:
                got = packed.times(x.numpy(), "dynamic", target)
                assert np.array_equal(got, wanted), (target, rows, cols, inputs, str(form))

    @every_target
    @pytest.mark.parametrize("rows", [8, 9, 16, 17, 40])
    def test_layers_of_all_widths_over_one_input_give_what_they_give_alone(self, target, rows):
        """Around the numbers of rows from which codes are decoded once, which may arrange the
        activations of each width in its own way."""
        forms = [Form("affine", bits, group(64), shift=bits > 3) for bits in (8, 4, 4, 3, 8, 7)]
        forms[3:3] = [Form("binary", planes, group(64), shift=planes == 2) for planes in (2, 3)]
        x = activations(rows, 200)
        q = [form.random(35 + number, 200, number).q for number, form in enumerate(forms)]
        products = [LinearProduct(form_of(each), "dynamic", target) for each in q]
        weights = [(form_of(each).pack(each), None) for each in q]
        for each, got in zip(q, together(products, x, weights), strict=True):
            assert torch.equal(got, reference.linear_dynamic(x, each, None)), str(each.layout)


def by_oracle(x, weight, bias):
    if not weight.binary:
        args = (weight.codes, weight.scale, weight.zero_point)
        return oracle.float_affine(x, *args, bias, weight.width, weight.offset)
    return oracle.float_binary(x, weight.codes, weight.scale, weight.offset, bias, weight.width)


def uneven(random, rows, inputs):
    """Activations of all magnitudes: among them zeros, outliers, and rows of next to nothing."""
    x = random.standard_normal((rows, inputs)) * 10.0 ** random.uniform(-3, 3, (rows, inputs))
    x *= 10.0 ** random.choice([0, 0, 0, -18, -27, -40, 25], (rows, 1))
    x[random.random((rows, inputs)) < 0.05] = 0
    x[random.random((rows, inputs)) < 0.02] *= 1e4
    return x.astype(np.float32)


class TestFloat:
    """Activations of four limbs: the arithmetic of csrc/linear.h, and what it is worth."""

    @needs_native
    @every_form
    def test_results_are_those_of_the_documented_arithmetic(self, form, one_thread):
        random = np.random.default_rng(6)
        for rows in ROWS:
            weight, x = form.random(70, 330, rows), uneven(random, rows, 330)
            bias = random.standard_normal(70).astype(np.float32) if rows % 2 else None
            wanted, packed = by_oracle(x, weight, bias), Packed(weight.q)
            for target in HERE:
                assert np.array_equal(packed.times(x, "float", target, bias), wanted), (
                    target,
                    rows,
                )

    @needs_native
    @pytest.mark.parametrize("shapes", [100, pytest.param(1000, marks=pytest.mark.nightly)])
    def test_results_for_any_shape_and_form_are_those_of_the_documented_arithmetic(
        self, shapes, one_thread
    ):
        random = np.random.default_rng(shapes)
        for number in range(shapes):
            rows, cols, inputs = shape_below(random, 140)
            form = random_form(random)
            weight, x = form.random(cols, inputs, number), uneven(random, rows, inputs)
            wanted, packed = by_oracle(x, weight, None), Packed(weight.q)
            for target in HERE:
                got = packed.times(x, "float", target)
                assert np.array_equal(got, wanted), (target, rows, cols, inputs, str(form))

    @needs_native
    def test_more_rows_than_are_quantized_at_once_come_out_alike(self):
        """Sixteen chunks of some rows of so many inputs are a part of the work."""
        weight = Form("affine", 4, group(96), shift=True).random(17, 4200)
        x = uneven(np.random.default_rng(8), 600, 4200)
        wanted = by_oracle(x, weight, None)
        packed = Packed(weight.q)
        for target in HERE:
            assert np.array_equal(packed.times(x, "float", target), wanted), target

    @every_target
    def test_halves_of_the_last_digit_are_rounded_away_from_zero(self, target):
        ones = np.ones((1, 1), np.float32)
        packed = Packed(affine(np.array([[0, 1]], np.uint8), ones, 0 * ones, 8).q)
        values = np.array([0.5, 1.5, 2.5, -0.5, -1.5, 0.49, -0.51], np.float32)
        x = np.stack([np.full_like(values, 2.0**29), values], 1)  # the scale is one
        got = packed.times(x, "float", target)[:, 0]
        assert got.tolist() == [1, 2, 3, -1, -2, 0, -1]

    @every_target
    def test_inputs_down_to_a_64th_of_the_largest_are_exact_and_others_to_2_to_the_minus_30(
        self, target
    ):
        random, ones = np.random.default_rng(9), np.ones((1, 1), np.float32)
        packed = Packed(affine(np.array([[0, 1]], np.uint8), ones, 0 * ones, 8).q)
        largest = random.uniform(1, 2, 2000).astype(np.float32)
        largest[::10] = 1
        small = (largest * 2.0 ** -random.uniform(0, 40, 2000)).astype(np.float32)
        got = packed.times(np.stack([largest, small], 1), "float", target)[:, 0]
        exact = small >= largest / 64
        assert np.array_equal(got[exact], small[exact])
        assert (np.abs(got.astype(np.float64) - small) <= largest * 2.0**-30).all()

    @needs_native
    @every_form
    @every_family
    @pytest.mark.parametrize("magnitude", ["one", "outlier", "tiny", "huge", "mixed"])
    def test_the_error_is_at_most_twice_that_of_torch(self, form, family, magnitude, one_thread):
        q, x, bias = form.random(96, 330).q, activations(12, 330), torch.linspace(-1, 1, 96)
        if magnitude == "outlier":
            x[:, 100] = 1e4
        elif magnitude == "mixed":
            x *= torch.logspace(-3, 3, 330)
        size = {"tiny": 1e-20, "huge": 1e30}.get(magnitude, 1)
        x, bias = x * size, bias * size
        weight = FORMATS[q.layout.format].decode(q, torch.float32)
        exact = x.double() @ weight.double().T + bias.double()
        error_of_torch = (torch.nn.functional.linear(x, weight, bias).double() - exact).norm()
        for target in HERE:
            y = product_of(q, "float", target, family)(x, bias)
            assert y.isfinite().all()
            error = (y.double() - exact).norm()
            # A float32 can be no nearer than half its last place.
            assert error <= max(2 * error_of_torch, exact.norm() * 2.0**-24), target

    @needs_native
    @every_form
    @every_family
    def test_all_targets_and_numbers_of_threads_give_the_same_bits(self, form, family, threads):
        q, x = form.random(300, 500).q, activations(24, 500)
        threads(1)
        wanted = bits_of(product_of(q, "float", "scalar", family)(x))
        for target in HERE:
            multiply = product_of(q, "float", target, family)
            for count in (1, 2):
                threads(count)
                assert torch.equal(bits_of(multiply(x)), wanted), (target, count)


NESTED = [
    Form("binary", 4, CHANNEL, nested=True, dtype=np.float32),
    Form("binary", 3, group(48), shift=True, nested=True),
    Form("binary", 4, group(64), shift=True, nested=True),
]


@every_target
@pytest.mark.parametrize("form", NESTED, ids=str)
def test_the_first_planes_of_a_nested_weight_are_a_model_of_their_own(target, form, one_thread):
    """From the same codes: only the places of the scales and offsets differ."""
    weight = form.random(50, 210)
    packed = Packed(weight.q)
    for planes in range(1, form.bits + 1):
        q = prefix(weight.q, planes)
        places = packed.form.places
        offset = places[f"offset_{planes}"].start if form.shift else 0
        half = form.dtype is np.float16
        first = native.module.Weight(
            packed.form.native, places[f"alpha_{planes}"].start, 0, offset, planes, half
        )
        own = Packed(q)
        for rows in (1, 3, 40):
            x = activations(rows, 210)
            got = packed.times(x.numpy(), "dynamic", target, weight=first)
            assert np.array_equal(got, reference.linear_dynamic(x, q, None).numpy())
            for kind in ("float", "fma"):
                got = packed.times(x.numpy(), kind, target, weight=first)
                assert np.array_equal(got, own.times(x.numpy(), kind, target))


SOME = [Form("affine", 8), Form("affine", 4, group(24), shift=True), Form("binary", 2, group(64))]
some_forms = pytest.mark.parametrize("form", SOME, ids=str)


@pytest.fixture(params=(*FAMILIES, "dynamic"))
def how(request, monkeypatch):
    """The arithmetic of calls: a family of float activations is in force."""
    if request.param in FAMILIES:
        monkeypatch.setenv(families.VARIABLE, request.param)
    return request.param


@pytest.fixture
def kind(how):
    return "dynamic" if how == "dynamic" else "float"


@every_target
@some_forms
class TestCalls:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
    def test_strided_inputs_of_every_dtype_give_their_own_dtype(self, forced, kind, form, dtype):
        q, bias = form.random(40, 48).q, torch.ones(40, dtype=dtype)
        x = activations(48, 30).to(dtype).t().unflatten(0, (5, 6))[:, ::2]
        y = linear.linear(x, q, bias, kind)
        assert y.dtype == dtype and y.shape == (5, 3, 40)
        plain = linear.linear(x.float().contiguous(), q, bias.float(), kind)
        assert torch.equal(y, plain.to(dtype))
        if kind == "dynamic":
            assert torch.equal(y, reference.linear_dynamic(x, q, bias))

    def test_empty_batches_and_a_single_vector_are_served(self, forced, kind, form):
        q, vector = form.random(40, 48).q, torch.linspace(-1, 1, 48)
        for shape in [(0, 48), (2, 0, 48)]:
            y = linear.linear(vector.expand(shape), q, None, kind)
            assert y.shape == (*shape[:-1], 40)
        y = linear.linear(vector, q, None, kind)
        assert torch.equal(y[None], linear.linear(vector[None], q, None, kind))

    def test_a_weight_without_rows_gives_nothing(self, forced, kind, form):
        assert linear.linear(torch.ones(3, 48), form.random(0, 48).q, None, kind).shape == (3, 0)

    def test_what_is_not_finite_spoils_its_own_row_only(self, forced, how, kind, form):
        q = form.random(70, 100).q
        for rows in (3, 40):
            clean = linear.linear(activations(rows, 100), q, None, kind)
            assert clean.isfinite().all()
            for bad in (np.nan, np.inf, -np.inf):
                x = activations(rows, 100)
                x[1, 7] = bad
                y = linear.linear(x, q, None, kind)
                # Float32 keeps an infinity.
                assert (~y[1].isfinite() if how == "fma" else y[1].isnan()).all()
                assert torch.equal(y[[0, *range(2, rows)]], clean[[0, *range(2, rows)]])

    def test_rows_of_zeros_and_of_next_to_nothing_give_the_bias(self, forced, how, kind, form):
        q, bias = form.random(20, 30).q, torch.arange(20.0)
        bias += how == "fma"  # beside zero, next to nothing is something in float32
        for rows in (2, 40):
            for almost in (0.0, -0.0, 1e-40, -(2.0**-101)):
                y = linear.linear(torch.full((rows, 30), almost), q, bias, kind)
                assert torch.equal(y, bias.expand(rows, 20))

    def test_several_python_threads_may_call_at_once(self, forced, kind, form):
        q, inputs = form.random(300, 256).q, [activations(1 + 11 * i, 256, i) for i in range(6)]
        packed_form = form_of(q)
        multiply, packed = LinearProduct(packed_form, kind, forced), packed_form.pack(q)
        wanted = [multiply(x, packed, None) for x in inputs]
        done, wrong, start = [], [], threading.Barrier(len(inputs))

        def work(number):
            start.wait()
            for _ in range(4):
                if not torch.equal(multiply(inputs[number], packed, None), wanted[number]):
                    wrong.append(number)
            done.append(number)

        workers = [threading.Thread(target=work, args=(i,)) for i in range(len(inputs))]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert not wrong and len(done) == len(inputs)

    def test_the_largest_float32_is_a_number_like_any_other(self, forced, kind, form):
        q = form.random(20, 48).q
        x, largest = torch.zeros(2, 48), torch.finfo(torch.float32).max / 16
        x[:, 3] = largest
        y = linear.linear(x, q, None, kind)
        wanted = FORMATS[form.format].decode(q, torch.float32)[:, 3].double() * largest
        torch.testing.assert_close(y.double(), wanted.expand(2, 20), rtol=1e-6, atol=0)


@needs_native
@every_kind
def test_a_strided_bias_is_taken_as_it_reads(kind):
    multiply = product_of(Form("affine", 8).random(40, 48).q, kind, "scalar")
    x, bias = activations(3, 48), torch.arange(80.0)[::2]
    assert torch.equal(multiply(x, bias), multiply(x, bias.contiguous()))


@needs_native
@every_kind
def test_an_input_that_does_not_fit_is_refused_with_both_shapes(kind):
    multiply = product_of(Form("affine", 8).random(40, 48).q, kind, "scalar")
    with pytest.raises(ValueError, match=r"x \[2, 47\] .* \[40, 48\]"):
        multiply(torch.ones(2, 47))
    with pytest.raises(ValueError, match="x .* on meta"):
        multiply(torch.ones(2, 48, device="meta"))


@needs_native
def test_a_path_that_does_not_exist_is_refused_with_the_known_ones():
    form = form_of(Form("affine", 8).random(40, 48).q)
    with pytest.raises(ValueError, match="no target sse9; there are scalar"):
        LinearProduct(form, "float", "sse9")
