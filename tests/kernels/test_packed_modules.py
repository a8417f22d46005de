"""Modules pack their weight at the first forward pass, hold it once, and give it back."""

import copy
import pickle
import subprocess
import sys
import threading

import pytest
import torch
from torch import nn

from lowbit.conversion.footprint import resident_bytes
from lowbit.formats import FORMATS, TENSOR, group
from lowbit.kernels import native, ops
from lowbit.kernels.linear import reference
from lowbit.kernels.selection import VARIABLE
from lowbit.nn import QuantEmbedding, QuantLinear
from tests.stored import FORMS, STACKS, Form

pytestmark = pytest.mark.skipif(not native.available(), reason=native.reason() or "present")

INT8 = Form("affine", 8)
SOME = [
    INT8,
    Form("affine", 4, group(64), shift=True),
    Form("affine", 3, TENSOR),
    Form("binary", 2, group(32), shift=True, nested=True),
    STACKS[2],
]
some_forms = pytest.mark.parametrize("form", SOME, ids=str)
every_kind = pytest.mark.parametrize("kind", ["float", "dynamic"])


def linear(form=INT8, kind="dynamic", out_features=40, in_features=64, seed=0):
    q = form.random(out_features, in_features, seed).q
    bias = nn.Parameter(torch.linspace(-1, 1, out_features))
    return QuantLinear(q.layout, in_features, out_features, bias, kind).hold(q), q


def embedding(form=INT8, rows=50, columns=64, embed_scale=None):
    q = form.random(rows, columns).q
    return QuantEmbedding(q.layout, rows, columns, embed_scale).hold(q), q


def activations(rows, columns=64, seed=1):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def assert_stored(state, q):
    """The tensors of q, bit for bit, and where they should be."""
    for name, tensor in q.tensors().items():
        assert state[name].dtype == tensor.dtype and state[name].shape == tensor.shape
        assert state[name].numpy().tobytes() == tensor.numpy().tobytes(), name


def assert_result(y, x, q, bias, kind):
    """Dynamic products equal those of the reference; float ones are as near the exact product."""
    if kind == "dynamic":
        assert torch.equal(y, reference.linear_dynamic(x, q, bias))
    else:
        weight = FORMATS[q.layout.format].decode(q, torch.float32).double()
        exact = x.double() @ weight.T + (0 if bias is None else bias.double())
        assert (y.double() - exact).norm() <= 1e-6 * exact.norm()


class TestLinear:
    @pytest.mark.parametrize("form", FORMS, ids=str)
    def test_the_first_forward_packs_and_keeps_one_copy(self, form):
        kind = "float" if form.bits % 2 else "dynamic"
        m, q = linear(form, kind, 256, 384)
        names, stored = [*q.tensors()], resident_bytes(m)
        x = activations(3, 384)
        with torch.no_grad():
            y = m(x)
        assert m.packed is not None
        for name in names:
            assert m._buffers[name].is_meta and m._buffers[name].shape == q.tensors()[name].shape
        width = q.granularity.width(384)
        padded = -(-384 // width) * -(-width // 32) * 32
        # A scale per tensor, and its zero point, are repeated for each row.
        most = padded / 384 * stored + 256 * 5 + 1024
        assert m.packed.bytes.nbytes + m.bias.nbytes <= resident_bytes(m) <= most
        assert_result(y, x, q, m.bias.detach(), kind)

    @some_forms
    @every_kind
    def test_the_stored_weight_comes_back_bit_for_bit(self, form, kind):
        m, q = linear(form, kind)
        x = activations(3)
        y = m(x)
        assert_stored(m.state_dict(), q)
        assert m.packed is None
        assert torch.equal(m(x), y) and m.packed is not None
        assert_stored(m.stored_weight.tensors(), q)
        assert m.packed is None
        m(x)
        assert torch.equal(ops.dequantize(m.stored_weight), ops.dequantize(q))

    @pytest.mark.parametrize("form", SOME[:4], ids=str)
    def test_a_weight_without_rows_comes_back_too(self, form):
        m, q = linear(form, out_features=0)
        assert m(activations(3)).shape == (3, 0)
        assert_stored(m.state_dict(), q)

    @every_kind
    def test_a_copy_computes_the_same_and_is_a_copy(self, kind):
        m, q = linear(kind=kind)
        x = activations(3)
        y = m(x)
        twin = copy.deepcopy(m)
        assert twin.packed.bytes.data_ptr() != m.packed.bytes.data_ptr()
        m.packed.bytes.zero_()
        assert torch.equal(twin(x), y)
        assert_stored(twin.state_dict(), q)

    @every_kind
    def test_a_packed_module_is_pickled_like_any_other(self, kind):
        m, q = linear(kind=kind)
        x = activations(3)
        y = m(x)
        again = pickle.loads(pickle.dumps(m))
        assert torch.equal(again(x), y)
        assert_stored(again.state_dict(), q)

    @some_forms
    @every_kind
    def test_a_change_of_dtype_leaves_the_codes_alone(self, form, kind):
        m, q = linear(form, kind)
        x = activations(3)
        m(x)
        m.to(torch.bfloat16)
        assert m(x.bfloat16()).dtype == torch.bfloat16
        assert_stored(m.state_dict(), q)

    @some_forms
    @every_kind
    def test_loading_other_weights_replaces_the_packed_ones(self, form, kind):
        m, _ = linear(form, kind)
        q = form.random(40, 64, seed=9).q
        x = activations(3)
        m(x)
        m.load_state_dict({**q.tensors(), "bias": torch.zeros(40)})
        assert_result(m(x), x, q, None, kind)

    @every_kind
    def test_holding_another_weight_replaces_the_packed_one(self, kind):
        m, _ = linear(kind=kind)
        q = INT8.random(40, 64, seed=9).q
        x = activations(3)
        m(x)
        assert_result(m.hold(q)(x), x, q, m.bias.detach(), kind)

    @some_forms
    @every_kind
    @pytest.mark.parametrize("packed", [False, True])
    def test_gradients_are_those_of_the_stored_weight(self, form, kind, packed, monkeypatch):
        if not packed:
            monkeypatch.setenv(VARIABLE, "reference")
        m, q = linear(form, kind)
        x = activations(3).requires_grad_()
        y = m(x)
        y.backward(torch.ones_like(y))
        assert (m.packed is not None) == packed
        assert_result(y.detach(), x.detach(), q, m.bias.detach(), kind)
        torch.testing.assert_close(x.grad, ops.dequantize(q).sum(0).expand(3, 64))
        assert torch.equal(m.bias.grad, torch.full((40,), 3.0))

    def test_the_reference_keeps_the_stored_form_however_often_it_is_called(self, monkeypatch):
        monkeypatch.setenv(VARIABLE, "reference")
        m, q = linear()
        x = activations(3)
        for _ in range(2):
            assert torch.equal(m(x), reference.linear_dynamic(x, q, m.bias))
            assert m.packed is None and not m.codes.is_meta

    def test_a_form_that_cannot_be_packed_is_served_as_it_is_stored(self):
        m, q = linear(Form("affine", 4, group(8)))
        x = activations(3)
        assert torch.equal(m(x), reference.linear_dynamic(x, q, m.bias))
        assert m.packed is None and "padded to 32" in m.kernel()

    @every_kind
    @some_forms
    def test_the_operators_meet_opcheck(self, form, kind):
        m, _ = linear(form, kind)
        x = activations(3)
        m(x)
        layout = ops.layout_text(m.layout)
        for bias, nonlinearity in ((None, "identity"), (m.bias.detach().requires_grad_(), "gelu")):
            how = (
                layout,
                40,
                m.planes_in_use or 0,
                kind,
                nonlinearity,
                m.call.product.target,
                0.0,
                0,
            )
            arguments = (x.requires_grad_(), m.packed.bytes, bias, *how)
            torch.library.opcheck(torch.ops.lowbit.linear_packed.default, arguments)

    @every_kind
    def test_threads_may_meet_at_the_first_forward(self, kind):
        m, q = linear(Form("affine", 4, group(64)), kind, 300, 256)
        x = activations(5, 256)
        with torch.no_grad():
            wanted = m(x)
        assert_result(wanted, x, q, m.bias.detach(), kind)
        m.restore_stored()
        done, wrong, start = [], [], threading.Barrier(4)

        def work():
            start.wait()
            for number in range(20):
                with torch.no_grad():
                    if not torch.equal(m(x), wanted):
                        wrong.append(number)
                if number % 5 == 0:
                    assert_stored(m.state_dict(), q)
            done.append(True)

        workers = [threading.Thread(target=work) for _ in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert not wrong and len(done) == 4


class TestEmbedding:
    @pytest.mark.parametrize("form", FORMS + STACKS, ids=str)
    def test_the_first_forward_packs_and_gives_the_rows_of_the_format(self, form):
        m, q = embedding(form, 500, 192)
        table, ids = FORMATS[form.format].decode(q, torch.float32), torch.tensor([[0, 499], [7, 7]])
        stored = resident_bytes(m)
        assert torch.equal(m(ids), table[ids])
        assert m.packed is not None and m._buffers[next(iter(q.tensors()))].is_meta
        assert resident_bytes(m) <= 1.5 * stored + 4 * 512 + 1024
        assert torch.equal(m(ids[:0]), table[ids[:0]])

    def test_rows_are_scaled_and_come_in_the_dtype_of_the_module(self):
        m, q = embedding(embed_scale=8.0)
        ids = torch.tensor([1, 2], dtype=torch.int32)
        m(ids)
        m.to(torch.bfloat16)
        rows = FORMATS["affine"].decode(q, torch.bfloat16)[[1, 2]] * 8
        assert m(ids).dtype == torch.bfloat16 and torch.equal(m(ids), rows)

    @some_forms
    def test_the_stored_table_comes_back_bit_for_bit(self, form):
        m, q = embedding(form)
        rows = m(torch.tensor([3, 49]))
        assert_stored(m.state_dict(), q)
        assert m.packed is None
        assert torch.equal(m(torch.tensor([3, 49])), rows) and m.packed is not None
        assert_stored(m.stored_weight.tensors(), q)

    def test_a_copy_gives_the_same_rows_and_is_a_copy(self):
        m, q = embedding()
        rows = m(torch.tensor([3]))
        twin = copy.deepcopy(m)
        m.packed.bytes.zero_()
        assert torch.equal(twin(torch.tensor([3])), rows)
        assert_stored(twin.state_dict(), q)

    @pytest.mark.parametrize("bad", [-1, 50])
    @pytest.mark.parametrize("form", [INT8, STACKS[0]], ids=str)
    def test_an_id_outside_the_table_raises_with_both_numbers(self, form, bad):
        m, _ = embedding(form)
        with pytest.raises(IndexError, match=rf"{bad} .*50 rows"):
            m(torch.tensor([0, bad]))

    @some_forms
    def test_the_operator_meets_opcheck(self, form):
        m, _ = embedding(form)
        m(torch.tensor([0]))
        layout = ops.layout_text(m.layout)
        arguments = (torch.tensor([[0, 49, 7]]), m.packed.bytes, layout, 50, 64, 0, torch.float32)
        torch.library.opcheck(torch.ops.lowbit.embedding_packed.default, arguments)


@some_forms
@every_kind
class TestTied:
    """A head over the table's weight, as language models have it."""

    def pair(self, form, kind):
        table, q = embedding(form, 500, 192)
        head = QuantLinear(q.layout, 192, 500, None, kind).tie(table)
        return table, head, q

    @pytest.mark.parametrize("first", ["table", "head"])
    def test_the_head_uses_the_packed_table_and_there_is_one_copy(self, form, kind, first):
        table, head, q = self.pair(form, kind)
        x, ids = activations(3, 192), torch.tensor([0, 499])
        both = nn.ModuleList([table, head])
        stored = resident_bytes(both)
        table(ids) if first == "table" else head(x)
        assert table.packed is not None and head.packed is None
        assert head.pack() is table.packed
        packed = table.packed
        assert_result(head(x), x, q, None, kind)
        assert torch.equal(table(ids), FORMATS[form.format].decode(q, torch.float32)[ids])
        assert table.packed is packed
        # Less than a second copy would take, padding and repeated scales included.
        assert resident_bytes(both) <= 1.2 * stored

    def test_the_stored_table_comes_back_from_either(self, form, kind):
        table, head, q = self.pair(form, kind)
        x = activations(3, 192)
        y = head(x)
        assert_stored(head.stored_weight.tensors(), q)
        assert table.packed is None
        assert torch.equal(head(x), y) and table.packed is not None
        state = nn.ModuleList([table, head]).state_dict()
        assert set(state) == {f"0.{name}" for name in q.tensors()}
        assert_stored({name.removeprefix("0."): tensor for name, tensor in state.items()}, q)
        assert torch.equal(head(x), y)

    def test_other_weights_in_the_table_are_those_of_the_head(self, form, kind):
        table, head, _ = self.pair(form, kind)
        x, q = activations(3, 192), form.random(500, 192, seed=9).q
        head(x)
        table.hold(q)
        assert_result(head(x), x, q, None, kind)

    def test_a_copy_of_both_is_tied_to_its_own_table(self, form, kind):
        table, head, q = self.pair(form, kind)
        x = activations(3, 192)
        y = head(x)
        new_table, new_head = copy.deepcopy(nn.ModuleList([table, head]))
        table.packed.bytes.zero_()
        assert new_head.tied_to is new_table
        assert torch.equal(new_head(x), y)
        assert_stored(new_table.state_dict(), q)


# In a process of its own: the shape checks that tests put around functions cannot be traced.
COMPILE = """
import torch
from lowbit.formats import CHANNEL, group
from lowbit.nn import QuantEmbedding, QuantLinear
from lowbit.schemes import Absmax, Binary, Clustered

torch.manual_seed(0)
x, ids = torch.randn(3, 64, requires_grad=True), torch.tensor([[1, 39]])
int8, bcq = Absmax(8, CHANNEL), Binary(2, group(32), solver="greedy")
stack = Clustered(Binary(4, CHANNEL, solver="greedy"))
for scheme, kind in ((int8, "dynamic"), (bcq, "float"), (stack, "dynamic")):
    q = scheme.quantize(torch.randn(40, 64))
    results, gradients, rows = [], [], []
    for packed in (False, True):
        m = QuantLinear(q.layout, 64, 40, torch.nn.Parameter(torch.ones(40)), kind).hold(q)
        table = QuantEmbedding(q.layout, 40, 64).hold(q)
        if packed:
            m(x), table(ids)
        for compiled in (True, False):
            torch._dynamo.reset()
            options = dict(fullgraph=True, backend="aot_eager")
            call = torch.compile(m, **options) if compiled else m
            look_up = torch.compile(table, **options) if compiled else table
            x.grad = None
            y = call(x)
            y.sum().backward()
            results.append(y.detach())
            gradients.append(x.grad)
            rows.append(look_up(ids))
            if compiled:
                assert (m.packed is not None) == (table.packed is not None) == packed
    assert all(torch.equal(y, results[0]) for y in results[1:]), (scheme, kind)
    assert all(torch.equal(g, gradients[0]) for g in gradients[1:]), (scheme, kind)
    assert all(torch.equal(r, rows[0]) for r in rows[1:]), (scheme, kind)
print("compiled")
"""


@pytest.mark.slow
def test_modules_compile_to_one_graph_packed_or_not():
    done = subprocess.run([sys.executable, "-c", COMPILE], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == "compiled\n", done.stderr[-2000:]
