"""Whatever an operator is given, it answers: nothing ends the process, and what it refuses it
refuses in one of our sentences (wrong_calls.py says how that is found out)."""

import pytest
import torch

import lowbit
from lowbit.errors import RowError, UsageError
from lowbit.kernels import native, ops
from tests.kernels.right_calls import SCHEMES, right_calls
from tests.kernels.wrong_calls import all_calls, campaign, counts, faults, operators
from tests.models import make

pytestmark = pytest.mark.skipif(not native.available(), reason=native.reason() or "present")

# Of an operator that this build has no native code for, every call is refused.
SERVED = [n for n in operators() if n != "experts_linear_packed" or native.targets("experts")]


def test_every_operator_has_a_right_call():
    assert {call.operator for call in right_calls()} == set(SERVED)


@pytest.mark.parametrize("operator", SERVED)
def test_wrong_calls_are_refused(operator):
    found = campaign(all_calls(operator, 30, seed=1))
    assert not faults(found)
    assert counts(found)["ours"] > 8


@pytest.mark.nightly
@pytest.mark.parametrize("operator", SERVED)
def test_every_wrong_call_is_refused(operator):
    found = campaign(all_calls(operator, 3000, seed=2))
    assert not faults(found) and len(found) == 3000


@pytest.mark.parametrize("bad", [-1, 10**9])
def test_a_row_outside_is_an_index_error_of_ours(bad):
    q = SCHEMES[0].quantize(torch.randn(24, 64))
    layer = ops.layout_text(q.layout), 64, torch.float32
    with pytest.raises(RowError, match=f"{bad}") as caught:
        torch.ops.lowbit.embedding(torch.tensor([bad]), list(q.tensors().values()), *layer)
    assert isinstance(caught.value, IndexError)


@pytest.mark.parametrize("recipe", ["int8-all", "int4-all"])
def test_a_prompt_longer_than_the_positions_is_not_told_as_a_wrong_token(recipe):
    model = make("gpt2")
    lowbit.quantize(model, recipe, progress=False)
    told = "^row 64 is outside a table of 64 rows: a token id or a position is out of range$"
    with pytest.raises(RowError, match=told):
        model(torch.ones(1, 65, dtype=torch.long))


def test_memory_that_was_given_back_is_not_read():
    x = torch.randn(4, 64)
    x.untyped_storage().resize_(0)
    with pytest.raises(UsageError, match="needs 1024 bytes, and its storage has 0"):
        torch.ops.lowbit.quantize_rows(x, 16)


def layer():
    form = native.module.PackedLayout(16, 64, 64, 4, False)
    weight = native.module.Weight(form, 512, 0, 0, 1, False)
    return native.module.Layer(weight, native.module.Nonlinearity.identity)


# What would end the process in native code, and the numbers that the refusal names.
NATIVE = {
    "places of a layer": (
        lambda: native.module.LinearTarget("scalar", False).together([layer()], 0, [0, 0], 1, 1),
        "^2 places for 1 layers",
    ),
    "places of a program's layer": (
        lambda: native.module.Program().linear(
            native.module.LinearTarget("scalar", False), [layer()], [0], 0, [0], 1
        ),
        "^1 places for 1 layers",
    ),
    "a group of no inputs": (
        lambda: native.module.PackedLayout(16, 64, 0, 4, False).panel_bytes(),
        "^group 0 is less than 1$",
    ),
    "no groups that share a scale": (
        lambda: native.module.Weight(
            native.module.PackedLayout(16, 64, 64, 4, False), 512, 0, 0, 1, False, sub_groups=0
        ),
        "^sub_groups 0 do not divide 1 groups$",
    ),
    "no key heads": (
        lambda: native.module.AttentionTarget("scalar", [1, 2, 0, 1, 4, 4], 1.0, 0.0, False, False),
        "^2 heads cannot share 0 key heads$",
    ),
    "heads that key heads do not divide": (
        lambda: native.module.AttentionTarget("scalar", [1, 3, 2, 1, 4, 4], 1.0, 0.0, False, False),
        "^3 heads cannot share 2 key heads$",
    ),
}


@pytest.mark.parametrize("what", NATIVE)
def test_native_code_refuses_what_would_end_the_process(what):
    call, message = NATIVE[what]
    with pytest.raises(ValueError, match=message):
        call()
