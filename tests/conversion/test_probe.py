"""Subclasses of linear layers and embeddings: quantized if they compute the same, else named."""

import copy

import pytest
import torch
from torch import nn
from transformers.models.bart.modeling_bart import (
    BartLearnedPositionalEmbedding,
    BartScaledWordEmbedding,
)
from transformers.models.falcon.modeling_falcon import FalconLinear
from transformers.models.gemma3.modeling_gemma3 import Gemma3TextScaledWordEmbedding
from transformers.models.llama4.modeling_llama4 import Llama4Router
from transformers.models.marian.modeling_marian import MarianSinusoidalPositionalEmbedding
from transformers.models.ovis2.modeling_ovis2 import Ovis2VisualEmbeddingTable
from transformers.pytorch_utils import Conv1D

import lowbit
from lowbit.conversion.module_weights import Weights, weights_of


class Same(nn.Linear):
    def forward(self, x):
        if self.bias is None:
            return x @ self.weight.T
        return x @ self.weight.T + self.bias


class Inherits(Same):
    pass


class Rounds(nn.Linear):
    def forward(self, x):
        return super().forward(x.bfloat16().to(x.dtype))


class Masked(nn.Linear):
    """The same as long as its mask is of ones."""

    def __init__(self, *args):
        super().__init__(*args)
        self.register_buffer("mask", torch.ones(self.in_features))

    def forward(self, x):
        return nn.functional.linear(x * self.mask, self.weight, self.bias)


class Clips(nn.Linear):
    def forward(self, x):
        return super().forward(x).clamp(-1000, 1000)


class Noisy(nn.Linear):
    def forward(self, x):
        return super().forward(x) + torch.rand(())


class Drops(nn.Linear):
    def forward(self, x):
        return super().forward(nn.functional.dropout(x, 0.5, self.training))


class ChoosesByInput(nn.Linear):
    def forward(self, x):
        if x.shape[0] > 100:
            return x
        return super().forward(x)


class LowRank(nn.Linear):
    """An adapter of its own."""

    def __init__(self, *args):
        super().__init__(*args)
        self.a = nn.Parameter(torch.zeros(self.in_features, 2))
        self.b = nn.Parameter(torch.zeros(2, self.out_features))

    def forward(self, x):
        return super().forward(x) + x @ self.a @ self.b


class Transposed(Conv1D):
    def forward(self, x):
        return x @ self.weight + self.bias


class Multiplies(nn.Embedding):
    def forward(self, ids):
        return 2.5 * super().forward(ids)


class Zeroes(nn.Embedding):
    """Rows of odd numbers are zeros."""

    def forward(self, ids):
        return super().forward(ids) * (ids % 2 == 0)[..., None]


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(
    "make",
    [
        lambda: Same(24, 40),
        lambda: Same(24, 40, bias=False),
        lambda: Inherits(24, 40),
        lambda: FalconLinear(24, 40),
        lambda: Transposed(40, 24),
        lambda: nn.MultiheadAttention(24, 2).out_proj,
    ],
)
def test_a_linear_layer_that_computes_the_same_is_quantized(make, device):
    module = make().to(device)
    weights = weights_of(module)
    assert isinstance(weights, Weights) and weights.kind == "linear"
    assert weights.transposed == isinstance(module, Conv1D)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: Rounds(24, 40), "Rounds computes something else than Linear"),
        (lambda: Masked(24, 40), "Masked computes something else"),
        (lambda: Clips(24, 40), "Clips computes something else"),
        (lambda: Noisy(24, 40), "Noisy computes something else"),
        (lambda: Drops(24, 40), "Drops computes something else"),
        (lambda: ChoosesByInput(24, 40), "chooses by what it is given"),
        (lambda: LowRank(24, 40), "LowRank holds a, b beside its weight"),
        (lambda: Zeroes(50, 24), "Zeroes computes something else than Embedding"),
        (lambda: BartLearnedPositionalEmbedding(50, 24), "BartLearnedPositionalEmbedding"),
        (lambda: MarianSinusoidalPositionalEmbedding(50, 24), "MarianSinusoidal"),
        (lambda: Ovis2VisualEmbeddingTable(50, 24), "chooses by what it is given"),
        (lambda: nn.Linear(24, 40, dtype=torch.complex64), "a weight of torch.complex64"),
    ],
)
def test_one_that_does_not_is_named_with_the_reason(make, reason, device):
    found = weights_of(make().to(device))
    assert isinstance(found, str) and reason in found


def test_a_router_is_kept():
    class Config:
        hidden_size, num_local_experts, num_experts_per_tok = 24, 4, 1

    assert "Llama4Router" in weights_of(Llama4Router(Config()))


def test_a_forward_put_on_the_object_is_kept():
    layer = nn.Linear(24, 40)
    layer.forward = lambda x: x
    assert "its own forward" in weights_of(layer)


@pytest.mark.parametrize(
    ("module", "scale", "rounds"),
    [
        (nn.Embedding(50, 24, padding_idx=3), None, False),
        (Multiplies(50, 24), 2.5, False),
        (BartScaledWordEmbedding(50, 24, 1, embed_scale=24**0.5), 24**0.5, False),
        (Gemma3TextScaledWordEmbedding(50, 24, 49, embed_scale=4.0), 4.0, False),
    ],
)
def test_the_factor_of_an_embedding_is_found(module, scale, rounds):
    weights = weights_of(module)
    assert (weights.embed_scale, weights.rounds_scale) == (scale, rounds)


def test_a_factor_that_is_a_whole_number_is_known_without_data_too():
    class Scaled(nn.Embedding):
        def __init__(self):
            super().__init__(50, 24)
            self.register_buffer("embed_scale", torch.tensor(12), persistent=False)

        def forward(self, ids):
            return super().forward(ids) * self.embed_scale.to(self.weight.dtype)

    assert weights_of(Scaled()).embed_scale == 12
    with torch.device("meta"):
        assert weights_of(Scaled()).kind == "embedding"


def test_a_factor_that_is_rounded_to_the_rows_is_found_with_its_rounding():
    module = Gemma3TextScaledWordEmbedding(50, 24, 0, embed_scale=33.94)
    weights = weights_of(module)
    assert weights.embed_scale == torch.tensor(33.94).item() and weights.rounds_scale


def test_the_module_and_the_random_numbers_of_others_are_left_alone():
    layer = Noisy(24, 40)
    layer.calls = []
    before, state = copy.deepcopy(layer.state_dict()), torch.random.get_rng_state()
    weights_of(layer)
    assert all(torch.equal(before[name], value) for name, value in layer.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_quantized_subclass_computes_nearly_the_same():
    torch.manual_seed(0)
    model = nn.Sequential(Multiplies(50, 64), Same(64, 32)).eval()
    ids = torch.arange(50)
    expected = model(ids).detach()
    result = lowbit.quantize(model, "int8-all", progress=False)
    assert len(result.plan.quantized) == 2
    assert (model(ids) - expected).norm() <= 0.02 * expected.norm()
