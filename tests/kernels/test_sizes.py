"""Native code is given addresses: a tensor that is shorter than what it goes with is refused in a
sentence, with both shapes, before its memory is left."""

import pytest
import torch
from torch import nn

from lowbit.errors import UsageError
from lowbit.formats import CHANNEL, AffineLayout, ExpertsLayout
from lowbit.kernels import experts, native, ops
from lowbit.kernels.attention import native as attention
from lowbit.kernels.experts_packed_layout import ExpertsPackedLayout
from lowbit.nn import QuantExperts, QuantLinear
from lowbit.nn.packed_weight import PackedWeight
from lowbit.schemes import Absmax

pytestmark = pytest.mark.skipif(not native.available(), reason=native.reason() or "present")
EXPERTS, OUT, IN = 4, 32, 64
META = torch.device("meta")


def linear():
    q = Absmax(8, CHANNEL).quantize(torch.randn(OUT, IN))
    return QuantLinear(q.layout, IN, OUT, nn.Parameter(torch.zeros(OUT)), "dynamic").hold(q)


def product():
    form = ExpertsPackedLayout(
        ExpertsLayout(EXPERTS, AffineLayout(8, CHANNEL, zero_point=False)), EXPERTS * OUT, IN
    )
    made = experts.product(form, "dynamic")
    if made is None:
        pytest.skip("the reference is forced")
    return made, torch.zeros(form.size, dtype=torch.uint8)


def of_experts(tokens=3, rows=3, weights=None, columns=IN, ids=torch.int64, bias=None, place="cpu"):
    call = {
        "x": torch.zeros(rows, columns, device=place),
        "ids": torch.zeros(tokens, 2, dtype=ids),
        "bias": None if bias is None else torch.zeros(bias),
        "weights": None if weights is None else torch.zeros(weights),
    }
    made, packed = product()
    return made(packed=packed, **call)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        ({"rows": 6, "weights": (1, 2)}, r"weights \[1, 2\] .* ids \[3, 2\]"),
        ({"rows": 6, "weights": (6,)}, r"weights \[6\] .* ids \[3, 2\]"),
        ({"rows": 3, "weights": (3, 2)}, r"x \[3, 64\] .* ids \[3, 2\].* 6 in all"),
        ({"rows": 2}, r"ids \[3, 2\] .* x \[2, 64\]"),
        ({"ids": torch.int32}, r"ids \[3, 2\] of torch.int32"),
        ({"columns": IN - 1}, r"x \[3, 63\] .*is not rows of 64"),
        ({"bias": (EXPERTS, OUT - 1)}, r"bias is \[4, 31\], expected \[4, 32\]"),
        ({"place": "meta"}, r"\[3, 64\] is on meta"),
    ],
)
def test_a_product_of_experts_refuses_sizes_that_do_not_go_together(call, sentence):
    of_experts()
    of_experts(rows=6, weights=(3, 2))
    with pytest.raises(UsageError, match=sentence):
        of_experts(**call)


@pytest.mark.parametrize("kernel", ["", "reference"])
@pytest.mark.parametrize("shape", [(1, 2), (3, 1), (4, 2)])
def test_experts_refuse_a_routers_weights_of_another_shape(shape, kernel, monkeypatch):
    monkeypatch.setenv("LOWBIT_KERNEL", kernel)
    q = ExpertsLayout(EXPERTS, AffineLayout(8, CHANNEL, zero_point=False))
    module = QuantExperts(q, EXPERTS * OUT, IN)
    for name, (size, dtype) in q.tensors(EXPERTS * OUT, IN).items():
        setattr(module, name, torch.ones(size, dtype=dtype))
    ids, x = torch.zeros(3, 2, dtype=torch.int64), torch.zeros(6, IN)
    with torch.no_grad():
        assert module(x, ids, None, weights=torch.zeros(3, 2)).shape == (3, OUT)
        with pytest.raises(UsageError, match=r"weights .* do not go with ids \[3, 2\]"):
            module(x, ids, None, weights=torch.zeros(shape))
        with pytest.raises(UsageError, match=r"ids \[3, 2\] .* x \[6, 64\]"):
            module(x, ids, None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [torch.zeros(3), torch.zeros(OUT, device=META)])
def test_a_linear_layer_refuses_a_bias_of_other_outputs(bias, dtype):
    module, x = linear(), torch.zeros(2, IN, dtype=dtype)
    module.bias = nn.Parameter(bias)
    with torch.no_grad(), pytest.raises(UsageError, match=r"bias .* a weight of 32 outputs"):
        module(x)


@pytest.mark.parametrize("bytes", [torch.zeros(7, dtype=torch.uint8), torch.zeros(3)])
def test_packed_bytes_are_as_many_as_their_layout_has(bytes):
    module = linear()
    module(torch.zeros(2, IN))
    with pytest.raises(UsageError, match="packed is"):
        PackedWeight(module.packed.layout, bytes)


@pytest.mark.parametrize("shape", [(1, 1, 2, 5), (3, 1, 4, 5), (1, 3, 4, 5), (1, 1, 4, 4), (4, 5)])
def test_a_mask_that_does_not_broadcast_is_refused(shape):
    query, key = torch.zeros(2, 2, 4, 8), torch.zeros(2, 2, 5, 8)
    target = native.BASE
    how = 1.0, False, target
    assert ops.attention(query, key, key, torch.zeros(1, 1, 1, 5), *how).shape == (2, 4, 2, 8)
    with pytest.raises(UsageError, match=r"mask .* does not broadcast to \[2, 2, 4, 5\]"):
        ops.attention(query, key, key, torch.zeros(shape), *how)
    held = torch.zeros(2, 2, 8, 8)
    append = attention.appending(torch.zeros(2, 4, 2, 8), query, query, query, *how)
    places = (query.data_ptr(),) * 3
    with pytest.raises(UsageError, match=r"mask .* does not broadcast to \[2, 2, 4, 5\]"):
        append(*places, held, held, 1, torch.zeros(shape))
