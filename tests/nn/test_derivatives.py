"""Derivatives that are not gradients of torch.autograd are refused, and never lost."""

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad

import lowbit

X = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=[False, True], ids=["first call", "packed"])
def model(request):
    torch.manual_seed(0)
    made = nn.Sequential(nn.Linear(64, 8)).eval()
    lowbit.quantize(made, "int4", progress=False)
    if request.param:
        made(X)
    return made


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("transform", ["jvp", "dual", "jacrev", "jacfwd", "grad", "nested"])
def test_a_derivative_by_other_means_is_refused(model, transform, frozen):
    model.requires_grad_(not frozen)
    with pytest.raises(lowbit.UsageError, match="torch.autograd only"):
        if transform == "jvp":
            torch.func.jvp(model, (X,), (torch.ones_like(X),))
        elif transform == "dual":
            with forward_ad.dual_level():
                model(forward_ad.make_dual(X, torch.ones_like(X)))
        elif transform == "nested":
            torch.func.jvp(torch.func.vmap(model), (X,), (torch.ones_like(X),))
        elif transform == "grad":
            torch.func.grad(lambda x: model(x).sum())(X)
        else:
            getattr(torch.func, transform)(model)(X[0])


def test_a_constant_beside_a_derivative_is_computed(model):
    expected = nn.functional.linear(X, model[0].decoded(), model[0].bias)
    with forward_ad.dual_level():
        assert torch.allclose(model(X), expected, atol=1e-5)


@pytest.mark.parametrize("frozen", [False, True])
def test_vmap_equals_the_batch(model, frozen):
    model.requires_grad_(not frozen)
    with torch.no_grad():
        each = torch.func.vmap(model)(X)
        assert torch.equal(each, model(X))
