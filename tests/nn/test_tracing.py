"""torch.jit.trace writes down our operators, not numbers that were computed beside it."""

import warnings

import pytest
import torch
from torch import nn

import lowbit
from tests.models import VOCABULARY, make


class First(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, ids):
        return self.model(ids)[0]


@pytest.mark.parametrize("recipe", ["int8-dynamic", "int4-all", "bcq2"])
def test_a_traced_model_computes_with_other_ids(recipe, tmp_path):
    model = make("bert")
    lowbit.quantize(model, recipe, progress=False)
    ids, others = torch.randint(VOCABULARY, (2, 1, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(First(model), (ids,))
        expected = model(others)[0]
        assert torch.equal(traced(others), expected)
        torch.jit.save(traced, tmp_path / "traced.pt")
        assert torch.equal(torch.jit.load(tmp_path / "traced.pt")(others), expected)
