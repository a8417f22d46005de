"""The packed layout: nothing is lost, all lies as documented, and any row can be read."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lowbit.formats import CHANNEL, FORMATS, TENSOR, AffineLayout, BinaryLayout, group
from lowbit.kernels import linear, native
from lowbit.kernels.packed_layout import MAX_GROUP, PackedLayout, unsupported
from lowbit.kernels.selection import VARIABLE, target_here
from tests.oracles import packed_layout as oracle
from tests.stored import FORMS as EXAMPLES
from tests.stored import Form, affine, forms
from tests.targets import runnable

pytestmark = pytest.mark.skipif(not native.available(), reason=native.reason() or "present")

CPU = torch.device("cpu")
DECODERS = runnable(native.targets("decode_packed"))
WIDTHS = [CHANNEL, TENSOR, group(64), group(24), group(50)]
DTYPES = (np.float16, np.float32)
AFFINE = [
    Form("affine", bits, granularity, shift, dtype=DTYPES[(bits + shift) % 2])
    for bits in range(2, 9)
    for granularity in WIDTHS
    for shift in (False, True)
]
BINARY = [
    Form("binary", planes, granularity, shift, nested, DTYPES[(planes + shift) % 2])
    for planes in range(1, 5)
    for granularity in WIDTHS
    if granularity is not TENSOR
    for shift in (False, True)
    for nested in (False, True)
]
every_form = pytest.mark.parametrize("form", AFFINE + BINARY, ids=str)
shapes = st.tuples(st.integers(1, 40), st.integers(1, 200))


def form_of(q):
    return PackedLayout(q.layout, *q.shape)


def assert_same(got, wanted):
    """Layouts, shapes, dtypes and every bit."""
    assert got.layout == wanted.layout and got.shape == wanted.shape
    for name, tensor in wanted.tensors().items():
        ours = got.tensors()[name]
        assert ours.dtype == tensor.dtype and ours.shape == tensor.shape, name
        assert ours.numpy().tobytes() == tensor.numpy().tobytes(), name


def assert_as_documented(weight, packed):
    """Codes, then the parameters in the order of the layout, sixteen rows side by side."""
    q, form = weight.q, form_of(weight.q)
    codes = oracle.pack(weight.codes, q.bits, weight.binary, weight.width)
    assert packed.dtype == torch.uint8
    assert np.array_equal(packed[: len(codes)].numpy(), codes)
    at, outputs = len(codes), q.shape[0]
    for name in list(q.layout.tensors(*q.shape))[1:]:
        parameter = q.tensors()[name]
        rows = parameter.movedim(-1, 0) if weight.binary else parameter.expand(outputs, -1)
        panels, rest = -(-outputs // 16), rows.shape[1:]
        size = panels * 16 * rest.numel() * parameter.itemsize
        lanes = packed[at : at + size].view(parameter.dtype).view(panels, *rest, 16).numpy()
        assert np.array_equal(oracle.rows(lanes, outputs), rows.numpy()), name
        assert form.places[name] == slice(at, at + size)
        at += size
    last = (q.shape[1] - 1) % weight.width + 1
    half_a_tile = 512 if q.bits == 8 and -(-last // 32) % 2 else 0
    assert len(packed) == max(at, len(codes) + half_a_tile)


@every_form
def test_unpacking_gives_back_every_bit(form):
    weight = form.random(37, 75)
    assert_same(form_of(weight.q).unpack(form_of(weight.q).pack(weight.q)), weight.q)


@settings(max_examples=100)
@given(form=forms(), shape=shapes, seed=st.integers(0, 99))
def test_unpacking_gives_back_every_bit_of_any_form_and_shape(form, shape, seed):
    weight = form.random(*shape, seed)
    assert_same(form_of(weight.q).unpack(form_of(weight.q).pack(weight.q)), weight.q)


@every_form
def test_all_parts_lie_as_documented(form):
    weight = form.random(21, 75)
    assert_as_documented(weight, form_of(weight.q).pack(weight.q))


@settings(max_examples=60)
@given(form=forms(), shape=shapes, seed=st.integers(0, 99))
def test_all_parts_of_any_form_and_shape_lie_as_documented(form, shape, seed):
    weight = form.random(*shape, seed)
    assert_as_documented(weight, form_of(weight.q).pack(weight.q))


def test_int8_codes_have_their_sign_bit_flipped():
    codes = np.arange(28, 28 + 17 * 6, dtype=np.uint8).reshape(17, 6)
    q = affine(codes, np.ones((17, 1), np.float32), None, 8).q
    assert q.codes.dtype == torch.int8 and q.codes[3, 0] == int(codes[3, 0]) - 128
    step = form_of(q).pack(q)[: 2 * 8 * 64].view(2, 8, 16, 4)
    assert step[0, 0, 3].tolist() == codes[3, :4].tolist()
    assert step[0, 1, 3].tolist() == [*codes[3, 4:], 0, 0]
    assert step[1, 0, 0].tolist() == codes[16, :4].tolist()


@pytest.mark.parametrize("form", [Form("affine", 5, group(96), True), Form("binary", 3)], ids=str)
def test_packing_does_not_depend_on_the_number_of_threads(form):
    weight, before = form.random(300, 1500), torch.get_num_threads()
    packed = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            packed.append(form_of(weight.q).pack(weight.q))
            assert_same(form_of(weight.q).unpack(packed[-1]), weight.q)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*packed)


@pytest.mark.parametrize("form", EXAMPLES, ids=str)
def test_strided_tensors_are_packed_as_they_read(form):
    weight = form.random(20, 75)
    apart = {
        name: torch.stack([tensor, tensor], -1)[..., 0]
        for name, tensor in weight.q.tensors().items()
    }
    form = form_of(weight.q)
    packed = form.pack(weight.q.layout.assemble(apart, 75))
    assert torch.equal(packed, form.pack(weight.q))


@pytest.mark.parametrize("form", EXAMPLES, ids=str)
def test_what_is_unpacked_has_memory_of_its_own(form):
    weight = form.random(20, 75)
    form = form_of(weight.q)
    packed = form.pack(weight.q)
    q = form.unpack(packed)
    packed.zero_()
    assert_same(q, weight.q)
    assert all(tensor.is_contiguous() for tensor in q.tensors().values())


class TestRows:
    @every_form
    def test_decoded_rows_are_those_of_the_format_on_every_target(self, form, monkeypatch):
        q = form.random(37, 75).q
        wanted = FORMATS[form.format].decode(q, torch.float32)
        rows = torch.tensor([0, 36, 5, 5, 16, 15])
        for target in DECODERS:
            monkeypatch.setenv(VARIABLE, target)
            assert target_here("decode_packed") == target
            got = form_of(q).decode(form_of(q).pack(q), rows, torch.float32)
            assert got.numpy().tobytes() == wanted[rows].numpy().tobytes(), target

    @settings(max_examples=60)
    @given(form=forms(), shape=shapes, seed=st.integers(0, 99))
    def test_all_rows_of_any_form_and_shape_are_those_of_the_format(self, form, shape, seed):
        q = form.random(*shape, seed).q
        wanted = FORMATS[form.format].decode(q, torch.float32)
        for target in DECODERS:
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv(VARIABLE, target)
                got = form_of(q).decode(form_of(q).pack(q), torch.arange(shape[0]), torch.float32)
            assert torch.equal(got, wanted), target

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
    @pytest.mark.parametrize("form", EXAMPLES, ids=str)
    def test_rows_come_in_the_dtype_that_is_asked_for(self, form, dtype):
        q = form.random(20, 75).q
        rows = torch.tensor([3, 19], dtype=torch.int32)
        got = form_of(q).decode(form_of(q).pack(q), rows, dtype)
        assert got.dtype == dtype
        assert torch.equal(got, FORMATS[form.format].decode(q, dtype)[[3, 19]])

    def test_no_rows_are_no_rows(self):
        q = Form("affine", 4).random(20, 75).q
        none = torch.empty(0, dtype=torch.int64)
        assert form_of(q).decode(form_of(q).pack(q), none, torch.float32).shape == (0, 75)

    def test_many_rows_are_decoded_alike_by_any_number_of_threads(self):
        q, before = Form("affine", 4, group(64)).random(50, 300).q, torch.get_num_threads()
        rows = torch.randint(0, 50, (2000,), generator=torch.Generator().manual_seed(0))
        wanted = FORMATS["affine"].decode(q, torch.float32)[rows]
        try:
            for threads in (1, 2):
                torch.set_num_threads(threads)
                got = form_of(q).decode(form_of(q).pack(q), rows, torch.float32)
                assert torch.equal(got, wanted)
        finally:
            torch.set_num_threads(before)

    @pytest.mark.parametrize("bad", [-1, 20, 2**40])
    def test_a_row_that_is_not_there_raises_with_both_numbers(self, bad):
        q = Form("affine", 4).random(20, 75).q
        with pytest.raises(IndexError, match=rf"{bad} .*20 rows"):
            form_of(q).decode(form_of(q).pack(q), torch.tensor([0, bad]), torch.float32)


class TestRefusals:
    """`unsupported` says why a weight stays as it is stored."""

    @pytest.mark.parametrize("form", EXAMPLES, ids=str)
    def test_every_form_is_served(self, form):
        assert unsupported(form.random(16, 130).q.layout, 130, CPU) is None

    @pytest.mark.parametrize("size", [2, 5, 8, 15])
    def test_groups_that_would_be_padded_too_much_are_refused_with_both_sizes(self, size):
        padded = -(-size // 32) * 32
        for layout in (AffineLayout(4, group(size), False), BinaryLayout(2, group(size), True)):
            why = unsupported(layout, 512, CPU)
            assert f"groups of {size} inputs would be padded to {padded}" in why

    @pytest.mark.parametrize("size", [16, 22, 32, 33, 43, 64, 65, 1000])
    def test_groups_that_are_padded_little_are_served(self, size):
        assert unsupported(AffineLayout(4, group(size), False), 1024, CPU) is None

    def test_channels_are_served_however_much_their_one_block_is_padded(self):
        assert unsupported(AffineLayout(4, CHANNEL, False), 1, CPU) is None

    @pytest.mark.parametrize("granularity", [CHANNEL, TENSOR], ids=str)
    def test_more_inputs_under_one_scale_than_an_int32_sum_holds_are_refused(self, granularity):
        assert 128 * 255 * MAX_GROUP < 2**31 <= 128 * 255 * (MAX_GROUP + 1)
        layout = AffineLayout(8, granularity, False)
        assert unsupported(layout, MAX_GROUP, CPU) is None
        why = unsupported(layout, MAX_GROUP + 1, CPU)
        assert f"{MAX_GROUP + 1} inputs under one scale are outside 1 … {MAX_GROUP}" in why
        assert unsupported(AffineLayout(8, group(1024), False), 2**20, CPU) is None

    def test_no_inputs_at_all_are_refused(self):
        assert "0 inputs" in unsupported(AffineLayout(8, CHANNEL, False), 0, CPU)

    def test_a_weight_on_another_device_is_refused_by_name(self):
        why = unsupported(AffineLayout(8, CHANNEL, False), 64, torch.device("meta"))
        assert "on meta, not on the CPU" in why

    @pytest.mark.parametrize("activations", ["float", "dynamic"])
    def test_the_reference_serves_what_is_refused_and_says_why(self, activations, monkeypatch):
        monkeypatch.delenv("LOWBIT_KERNEL", raising=False)
        kernel, why = linear.kernel(AffineLayout(4, group(8), False), 64, CPU, activations)
        assert kernel.name == "reference" and "padded to 32" in why


def test_neither_a_default_device_nor_ids_elsewhere_reach_memory_that_is_not_there():
    q = Form("affine", 4, group(32)).random(20, 64).q
    form = PackedLayout(q.layout, *q.shape)
    with torch.device("meta"):
        packed = form.pack(q)
        again = form.unpack(packed)
    assert all(torch.equal(again.tensors()[name], t) for name, t in q.tensors().items())
    with pytest.raises(ValueError, match="row numbers on meta do not fit a table on the CPU"):
        form.decode(packed, torch.empty(3, dtype=torch.long, device="meta"), torch.float32)
