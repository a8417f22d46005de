"""Codes of a table in clusters while it trains: in each cluster those of binary codes alone."""

import pytest
import torch

from lowbit.formats import CHANNEL, FORMATS
from lowbit.qat.codes import Codes, Mode
from lowbit.qat.stacked_codes import StackedCodes
from lowbit.schemes import Binary, Clustered

SCHEME = Clustered(Binary(3, CHANNEL, offset=False), 3, ratio=2.0)
ROWS = [3, 6, 12]


def some_weight(seed=0):
    return torch.randn(21, 40, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def alone(weight, mode):
    """Each cluster by itself, with its rows."""
    rows = [part.detach().clone().requires_grad_() for part in weight.split(ROWS)]
    schemes = [Binary(bits, CHANNEL, offset=False) for bits in (3, 2, 1)]
    codes = [Codes(scheme, part) for scheme, part in zip(schemes, rows, strict=True)]
    for each in codes:
        each.mode = mode
    return list(zip(codes, rows, strict=True))


@pytest.mark.parametrize("mode", Mode)
def test_all_is_as_for_each_cluster_alone(mode):
    weight = some_weight()
    codes, parts = StackedCodes(SCHEME, weight), alone(weight, mode)
    codes.mode = mode
    moved, g = some_weight(5).detach(), some_weight(6).detach()
    with torch.no_grad():
        weight += 0.3 * moved
        for (_, rows), move in zip(parts, moved.split(ROWS), strict=True):
            rows += 0.3 * move
    result = codes(weight)
    own = [each(rows) for each, rows in parts]
    assert torch.equal(result, torch.cat(own))
    (result * g).sum().backward()
    for y, part in zip(own, g.split(ROWS), strict=True):
        (y * part).sum().backward()
    if mode is Mode.FROZEN:
        assert weight.grad is None or not weight.grad.any()
        trained = [codes.get_parameter(f"clusters.{i}.alpha").grad for i in range(3)]
        assert all(torch.equal(a, c.alpha.grad) for a, (c, _) in zip(trained, parts, strict=True))
    else:
        assert torch.equal(weight.grad, torch.cat([rows.grad for _, rows in parts]))
    for change in ("sync", "project", "settle"):
        getattr(codes, change)(weight.detach())
        for each, rows in parts:
            getattr(each, change)(rows.detach())
        assert torch.equal(weight, torch.cat([rows for _, rows in parts])), change
        stored = codes.stored(weight)
        assert torch.equal(
            FORMATS["stacked"].decode(stored),
            torch.cat([FORMATS["binary"].decode(c.stored(rows)) for c, rows in parts]),
        )
    assert codes.mode is Mode.FREE and [part.bits for part in stored.parts] == [3, 2, 1]


def test_what_is_saved_comes_back():
    codes, other = (StackedCodes(SCHEME, some_weight(seed)) for seed in (0, 1))
    other.load_state_dict(codes.state_dict())
    stored = [FORMATS["stacked"].decode(each.stored(some_weight())) for each in (codes, other)]
    assert torch.equal(*stored)
