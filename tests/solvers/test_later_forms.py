"""Solvers fill float offsets and two-level scales, too."""

import pytest
import torch

from lowbit import UsageError, ZeroPoint
from lowbit.formats import decode, group
from lowbit.formats.validity import faults
from lowbit.schemes import KQuant
from lowbit.solvers import autoround, gptq, hqq
from lowbit.solvers.scale_finetuning import Scales

FLOAT_ZERO = ZeroPoint(2, group(32), zero="float")


def case(out=24, columns=256, seed=0):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(out, columns, generator=generator)
    x = torch.randn(400, columns, generator=generator) @ torch.randn(
        columns, columns, generator=generator
    )
    return weight, x.T @ x / len(x)


def loss(weight, q, hessian):
    away = (decode(q) - weight).double()
    return ((away @ hessian.double()) * away).sum().item()


@pytest.mark.parametrize("scheme", [KQuant(2), KQuant(3), KQuant(4), FLOAT_ZERO], ids=str)
@pytest.mark.parametrize("solver, most", [(gptq, 0.6), (autoround, 0.99)])
def test_the_output_errs_less_than_with_nearest_codes(scheme, solver, most):
    weight, hessian = case()
    q = solver.solve(weight, hessian, scheme)
    assert q.layout == scheme.quantize(weight).layout
    assert dict(faults(q.layout, q.tensors(), 256)) == {}
    nearest = loss(weight, scheme.quantize(weight), hessian)
    assert loss(weight, q, hessian) < most * nearest


@pytest.mark.parametrize("rows", [slice(0, 7), slice(7, 24)])
def test_gptq_solves_each_row_of_two_level_codes_by_itself(rows):
    weight, hessian = case()
    whole = decode(gptq.solve(weight, hessian, KQuant(4), rounds=0))
    assert torch.equal(decode(gptq.solve(weight[rows], hessian, KQuant(4), rounds=0)), whole[rows])


def test_hqq_errs_less_with_offsets_than_with_zero_points():
    weight, _ = case()
    errors = [
        (decode(hqq.solve(weight, None, scheme)) - weight).abs().pow(0.7).sum().item()
        for scheme in (FLOAT_ZERO, ZeroPoint(2, group(32)))
    ]
    assert errors[0] < 0.97 * errors[1]
    q = hqq.solve(weight, None, FLOAT_ZERO)
    assert q.layout == FLOAT_ZERO.layout(24)


@pytest.mark.parametrize("solver", [gptq, autoround, hqq])
@pytest.mark.parametrize("scheme", [KQuant(4), ZeroPoint(4, group(32)), FLOAT_ZERO], ids=str)
def test_a_weight_without_rows_has_no_codes(solver, scheme):
    if solver is hqq and scheme == KQuant(4):
        return
    _, hessian = case()
    q = solver.solve(torch.ones(0, 256), hessian, scheme)
    assert decode(q).shape == (0, 256) and q.layout == scheme.layout(0)


def test_autoround_searches_for_two_level_scales_once(monkeypatch):
    weight, hessian = case()
    found, search = [], KQuant.fit
    monkeypatch.setattr(KQuant, "fit", lambda *args: found.append(args) or search(*args))
    autoround.solve(weight, hessian, KQuant(4), iterations=2)
    assert len(found) == 1


@pytest.mark.parametrize("scheme", [KQuant(2), KQuant(3), FLOAT_ZERO], ids=str)
def test_scales_of_every_form_are_tuned_and_stored_as_they_were(scheme):
    weight, _ = case()
    scales = Scales(scheme.quantize(weight))
    with torch.enable_grad():
        tuned = scales.stored()
        (decode(tuned) - weight).square().sum().backward()
    assert all(change.grad.abs().max() > 0 for change in scales.changes.values())
    with torch.no_grad():
        for change in scales.changes.values():
            change.sub_(1e-2 * change.grad.sign())
        after = scales.stored()
    assert after.layout == scales.q.layout
    assert dict(faults(after.layout, after.tensors(), 256)) == {}
    assert torch.equal(after.codes, scales.q.codes) and not torch.equal(
        decode(after), decode(tuned)
    )


def test_hqq_refuses_two_level_scales_by_name():
    with pytest.raises(
        UsageError, match="scheme k-quant, which has scales in two levels: use nearest, gptq"
    ):
        hqq.solve(case()[0], None, KQuant(4))
