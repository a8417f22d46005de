"""Experts that are given what no router should give, and what runs them."""

import copy

import pytest
import torch
from torch import nn
from transformers import MixtralConfig
from transformers.models.mixtral.modeling_mixtral import MixtralExperts

import lowbit
from lowbit.nn.gates import known_gate

EXPERTS, SIZE = 4, 32


@pytest.fixture(scope="module", params=["int8", "int8-dynamic"])
def pair(request):
    """A float mixture and the same quantized, in a holder each."""
    torch.manual_seed(0)
    holder = nn.Sequential(_experts())
    for p in holder.parameters():
        nn.init.normal_(p, std=0.2)
    quantized = copy.deepcopy(holder)
    lowbit.quantize(quantized, request.param, progress=False)
    return holder[0], quantized[0]


def _experts(**more):
    config = MixtralConfig(
        hidden_size=SIZE, intermediate_size=32, num_local_experts=EXPERTS, **more
    )
    config._experts_implementation_internal = "grouped_mm"
    return MixtralExperts(config).eval()


def call(experts, ids, tokens=None, weights=None, dtype=torch.int64):
    ids = torch.tensor(ids, dtype=dtype).reshape(-1, 2)
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(len(ids), SIZE, generator=generator) if tokens is None else tokens
    weights = torch.rand(len(ids), 2, generator=generator) if weights is None else weights
    with torch.no_grad():
        return experts(x, ids, weights)


def near(got, wanted):
    return got.shape == wanted.shape and bool(((got - wanted).norm() <= 0.02 * wanted.norm()).all())


@pytest.mark.parametrize(
    "ids",
    [[], [0, 1], [2, 2, 2, 2, 2, 2], [0, 3, 3, 0], [[1, 2]] * 40],
    ids=["an empty batch", "one token", "all to one expert", "some to none", "many tokens"],
)
def test_any_choice_gives_what_the_float_experts_give(pair, ids):
    float_experts, experts = pair
    assert near(call(experts, ids), call(float_experts, ids))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8])
def test_numbers_of_any_integer_type_are_taken(pair, dtype):
    ids = [0, 3, 2, 1]
    assert torch.equal(call(pair[1], ids, dtype=dtype), call(pair[1], ids))


@pytest.mark.parametrize("bad", [-1, EXPERTS + 1, 10**12])
def test_numbers_that_no_expert_has_are_told(pair, bad):
    with pytest.raises(lowbit.InputError, match=f"expert {bad} was chosen, of {EXPERTS}"):
        call(pair[1], [0, bad])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool])
def test_numbers_that_are_no_integers_are_told(pair, dtype):
    with pytest.raises(lowbit.InputError, match="must be integers"):
        call(pair[1], [0, 1], dtype=dtype)


def test_the_number_behind_the_last_expert_chooses_none(pair):
    none = call(pair[1], [EXPERTS, EXPERTS])
    assert torch.equal(none, torch.zeros(1, SIZE))
    weights = torch.tensor([[0.5, 0.25]])
    both = call(pair[1], [1, EXPERTS], weights=weights)
    alone = call(pair[1], [1, 1], weights=torch.tensor([[0.5, 0.0]]))
    assert torch.allclose(both, alone, atol=1e-6)  # a BLAS adds up two rows in another order


def test_experts_that_live_elsewhere_add_nothing(pair):
    experts = copy.deepcopy(pair[1])
    experts._is_expert_parallel = True
    weights = torch.tensor([[0.5, 0.0]])
    here = call(experts, [1, EXPERTS + 7], weights=weights)
    assert torch.equal(here, call(experts, [1, EXPERTS], weights=weights))


def test_nan_of_a_router_reaches_its_own_token_only(pair):
    weights = torch.tensor([[0.5, 0.5], [torch.nan, 0.5], [0.1, 0.9]])
    got = call(pair[1], [0, 1, 2, 3, 1, 0], weights=weights)
    assert got[1].isnan().all() and got[[0, 2]].isfinite().all()


def test_nan_in_a_token_reaches_that_token_only(pair):
    tokens = torch.randn(3, SIZE)
    tokens[1, 5] = torch.nan
    got = call(pair[1], [0, 1, 0, 1, 1, 0], tokens=tokens)
    assert got[1].isnan().all() and got[[0, 2]].isfinite().all()


def test_gradients_reach_what_comes_before(pair):
    float_experts, experts = pair
    x = torch.randn(5, SIZE)
    ids = torch.tensor([[0, 1], [1, 2], [3, 0], [2, 2], [EXPERTS - 1, 1]])
    found = []
    for each in (float_experts, experts):
        own = x.clone().requires_grad_()
        weights = torch.full((5, 2), 0.5).requires_grad_()
        each(own, ids, weights).square().sum().backward()
        found.append((own.grad, weights.grad))
    assert near(found[1][0], found[0][0]) and near(found[1][1], found[0][1])


def test_a_mixture_is_exported_with_the_choice_inside(pair):
    class Chooses(nn.Module):
        def __init__(self, experts):
            super().__init__()
            self.experts = experts

        def forward(self, x, ids, weights):
            return self.experts(x, ids, weights)

    ids, weights = torch.tensor([[0, 1], [3, 2]]), torch.rand(2, 2)
    given = torch.randn(2, SIZE), ids, weights
    module = Chooses(copy.deepcopy(pair[1])).eval()
    with torch.no_grad():
        wanted = module(*given)
        exported = torch.export.export(module, given).module()
        assert torch.allclose(exported(*given), wanted, atol=1e-5)
        other = given[0], ids.flip(0), weights
        assert torch.allclose(exported(*other), module(*other), atol=1e-5)


def test_gates_are_known_by_what_they_compute():
    assert known_gate(_experts(), 16) == "silu"
    assert known_gate(_experts(hidden_act="gelu"), 16) == "gelu"
    assert known_gate(_experts(hidden_act="tanh"), 16) == "identity"


def test_a_gate_that_is_watched_is_left_to_the_module():
    experts = _experts()
    seen = []
    handle = experts.act_fn.register_forward_hook(lambda *_: seen.append(1))
    assert known_gate(experts, 16) == "identity"
    handle.remove()
    assert known_gate(experts, 16) == "silu"


def test_a_clamped_gate_is_no_known_one():
    class Clamped(MixtralExperts):
        def _apply_gate(self, x):
            gate, up = x.chunk(2, dim=-1)
            return self.act_fn(gate.clamp(max=7)) * up

    experts = Clamped(_experts().config)
    assert known_gate(experts, 16) == "identity"
