"""Stored numbers that no scheme writes are faults; those that schemes write are none."""

import numpy as np
import pytest
import torch
from transformers import AutoModel

from lowbit import PRESETS, InputError
from lowbit.checkpoint.load import load_model
from lowbit.formats.validity import faults, not_a_number, not_finite, unscaled
from lowbit.schemes.named import NAMED
from tests.models import make
from tests.stored import FORMS, STACKS

NAN, INF = float("nan"), float("inf")


def found(q, **changed):
    return dict(faults(q.layout, q.tensors() | changed, q.shape[1]))


@pytest.mark.parametrize("form", [*FORMS, *STACKS], ids=str)
@pytest.mark.parametrize("columns", [64, 77, 160])
def test_what_was_packed_has_no_faults(form, columns):
    assert found(form.random(12, columns).q) == {}


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize(
    "weight", [torch.zeros(8, 256), torch.eye(8, 256) * 1e-30, torch.randn(8, 256) * 1e3]
)
def test_what_schemes_write_of_odd_weights_has_no_faults(name, weight):
    assert found(NAMED[name].quantize(weight)) == {}


@pytest.mark.parametrize("form", [*FORMS, *STACKS], ids=str)
@pytest.mark.parametrize("value", [NAN, INF, -INF, 0.0, -1.0])
def test_each_float_is_looked_at(form, value):
    q = form.random(12, 96).q
    for name, tensor in q.tensors().items():
        if not tensor.is_floating_point():
            continue
        changed = tensor.clone()
        changed.view(-1)[-1] = value
        bad = not np.isfinite(value) or ("scale" in name and value <= 0)
        assert list(found(q, **{name: changed})) == [name] * bad


# Of 8 bits every byte is a code.
ZERO_POINTS = [f for f in FORMS if f.format == "affine" and f.shift and f.bits < 8]


@pytest.mark.parametrize("form", ZERO_POINTS, ids=str)
def test_each_zero_point_is_a_code(form):
    q = form.random(12, 96).q
    changed = q.zero_point.clone()
    changed.view(-1)[-1] = 1 << form.bits
    assert list(found(q, zero_point=changed)) == ["zero_point"]


# Codes of 8 bits fill their bytes.
PADDED = [f for f in FORMS if f.format == "binary" or f.bits < 8]


@pytest.mark.parametrize("form", PADDED, ids=str)
@pytest.mark.parametrize("columns", [77, 97])
def test_pad_bits_are_zero(form, columns):
    q = form.random(12, columns).q
    name = q.layout.names[0]
    used = columns * (q.bits if form.format == "affine" else 1) % 8
    assert used > 0
    for bit in range(used, 8):
        changed = q.tensors()[name].clone()
        changed[(0,) * (changed.ndim - 1) + (-1,)] |= 1 << bit
        assert list(found(q, **{name: changed})) == [name]


def test_floats_may_be_what_their_place_allows():
    fine, mask = torch.tensor([1.0, -2.0]), torch.tensor([0.0, -INF])
    assert not_finite(fine) is None and not_a_number(mask) is None and unscaled(fine.abs()) is None
    assert "-inf" in not_finite(mask) and "nan" in not_a_number(torch.tensor([1.0, NAN]))
    assert "inf" in not_a_number(torch.tensor([INF, 1])) and "-2" in unscaled(fine)
    empty = torch.empty(0)
    assert (not_finite(empty), not_a_number(empty), unscaled(empty)) == (None, None, None)


def test_a_kept_tensor_with_nan_is_refused_unless_that_is_wanted(tmp_path, monkeypatch):
    from lowbit import quantize

    model = make("bert")
    quantize(model, PRESETS["int8-all"], progress=False)
    with torch.no_grad():
        model.pooler.dense.bias[3] = NAN
    model.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="pooler.dense.bias holds nan.*LOWBIT_UNCHECKED"):
        load_model(tmp_path)
    monkeypatch.setenv("LOWBIT_UNCHECKED", "1")
    assert load_model(tmp_path).pooler.dense.bias[3].isnan()


def test_a_number_that_float16_does_not_hold_is_refused_with_what_to_do(tmp_path):
    from lowbit import quantize

    model = make("bert")
    quantize(model, PRESETS["int8-all"], progress=False)
    with torch.no_grad():
        model.pooler.dense.bias[3] = -1e5
    model.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="bias holds -inf .*65,504.*bfloat16"):
        AutoModel.from_pretrained(tmp_path, dtype=torch.float16)
    loaded = AutoModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert loaded.pooler.dense.bias[3] == torch.tensor(-1e5).bfloat16()
