"""Codes that are held while a weight trains: what is computed with is what is stored."""

import numpy as np
import pytest
import torch

from lowbit import UsageError
from lowbit.formats import CHANNEL, FORMATS, group
from lowbit.qat.codes import Codes, Mode
from lowbit.schemes import Absmax, Binary

SCHEMES = [
    Binary(3, CHANNEL, offset=False, solver="greedy"),
    Binary(3, group(16)),
    Binary(2, group(16), nested=True),
    Binary(4, CHANNEL, solver="greedy", nested=True),
    Binary(1, group(24), offset=False),
]


def some_weight(seed=0, size=1.0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(12, 40, generator=generator) * size).requires_grad_()


def decode(q):
    return FORMATS["binary"].decode(q)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_a_projection_makes_the_weight_what_is_stored(scheme):
    weight = some_weight()
    wanted = scheme.quantize(weight)
    codes = Codes(scheme, some_weight(1))
    codes.project(weight.detach())
    stored = codes.stored(weight)
    assert stored.layout == wanted.layout
    assert all(torch.equal(t, wanted.tensors()[n]) for n, t in stored.tensors().items())
    assert torch.equal(codes(weight), decode(stored)) and torch.equal(weight, decode(stored))


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_straight_through_takes_the_codes_of_a_weight_that_moves_on(scheme):
    weight = some_weight()
    codes = Codes(scheme, weight)
    codes.mode = Mode.STRAIGHT
    before = weight.detach().clone()
    codes.project(weight.detach())
    assert torch.equal(weight, before)
    with torch.no_grad():
        weight += 0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(5))
    stored, held = codes.stored(weight), codes.held()
    assert all(torch.equal(a, b) for a, b in zip(stored.alphas, held.alphas, strict=True))
    assert not torch.equal(stored.planes, held.planes)
    g = torch.randn(weight.shape, generator=torch.Generator().manual_seed(6))
    result = codes(weight)
    (result * g).sum().backward()
    assert torch.equal(result, decode(stored)) and torch.equal(weight.grad, g)
    codes.sync(weight.detach())
    assert torch.equal(decode(codes.held()), result)


def test_codes_of_fixed_levels_are_the_nearest_by_brute_force():
    scheme = Binary(3, group(16))
    held = scheme.quantize(some_weight())
    weight = some_weight(7).detach()
    found = decode(scheme.recode(weight, held)).numpy().astype(np.float64)
    w = weight.numpy().astype(np.float64)
    alpha, offset = held.alpha.numpy().astype(np.float64), held.offset.numpy().astype(np.float64)
    for row in range(12):
        for column in range(40):
            a, o = alpha[column // 16, :, row], offset[column // 16, row]
            levels = [o + a @ (2 * (code >> np.arange(3) & 1) - 1) for code in range(8)]
            nearest = np.abs(np.array(levels) - w[row, column]).min()
            assert abs(found[row, column] - w[row, column]) <= nearest + 1e-6


@pytest.mark.parametrize("scheme", SCHEMES[:3], ids=str)
def test_frozen_codes_train_scales_and_offsets(scheme):
    weight = some_weight()
    codes = Codes(scheme, weight)
    codes.mode = Mode.FROZEN
    with torch.no_grad():
        codes.alpha *= 1.0003  # no float16 any more
    result = codes(weight)
    assert torch.equal(result, decode(codes.held()))
    g = torch.randn(weight.shape, generator=torch.Generator().manual_seed(6))
    (result * g).sum().backward()
    assert weight.grad is None
    width = scheme.granularity.width(40)
    bits = np.unpackbits(codes.planes.numpy(), axis=2, bitorder="little")[:, :, :40]
    sign, g = bits.astype(np.float64) * 2 - 1, g.numpy().astype(np.float64)
    for first in range(0, 40, width):
        part = slice(first, first + width)
        wanted = np.einsum("brc,rc->br", sign[:, :, part], g[:, part])
        np.testing.assert_allclose(codes.alpha.grad[first // width], wanted, rtol=1e-4, atol=1e-5)
        if codes.offset is not None:
            sums = g[:, part].sum(1)
            np.testing.assert_allclose(
                codes.offset.grad[first // width], sums, rtol=1e-4, atol=1e-5
            )


def test_scales_that_leave_float16_are_held_in_float32():
    scheme = Binary(2, group(16))
    weight = some_weight(size=1e6)
    assert scheme.quantize(weight).alpha.dtype == torch.float32
    codes = Codes(scheme, some_weight())
    assert codes.held().alpha.dtype == torch.float16
    codes.project(weight.detach())
    assert codes.held().alpha.dtype == torch.float32 and torch.equal(weight, decode(codes.held()))


def test_other_schemes_have_no_codes_to_hold():
    with pytest.raises(UsageError, match="needs the scheme binary, not absmax"):
        Codes(Absmax(8), some_weight())


@pytest.mark.parametrize("mode", [Mode.STRAIGHT, Mode.FROZEN])
def test_what_is_computed_with_is_found_once_until_something_changes(mode):
    scheme = Binary(2, group(16))
    weight = torch.nn.Parameter(some_weight().detach())
    codes = Codes(scheme, weight)
    codes.mode = mode
    # Which leaves the version of what it changes as it was.
    optimizer = torch.optim.AdamW([weight, *codes.parameters()], lr=0.1, fused=True)

    def changes(how):
        before = codes(weight)
        with torch.no_grad():
            assert codes(weight).data_ptr() == before.data_ptr()
        how()
        after = codes(weight)
        assert torch.equal(after, decode(codes.stored(weight)))
        return not torch.equal(before, after)

    def step():
        optimizer.zero_grad()
        codes(weight).square().sum().backward()
        optimizer.step()

    def replace_data():
        weight.data = weight.detach() * 2

    assert changes(step)
    assert changes(lambda: codes.hold(scheme.quantize(some_weight(3, 5.0))))
    assert changes(lambda: codes.load_state_dict(Codes(scheme, some_weight(4, 9.0)).state_dict()))
    assert changes(replace_data) == (mode is Mode.STRAIGHT)
    assert changes(lambda: codes.project(weight.detach()))
