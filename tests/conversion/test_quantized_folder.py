"""What is streamed into a folder is checked as loading the folder checks it."""

import pytest
import torch

from lowbit import InputError
from lowbit.conversion.plan import make_plan
from lowbit.conversion.quantized_folder import QuantizedFolder
from lowbit.conversion.recipe import load_recipe
from tests.models import make


@pytest.mark.parametrize("value", [-torch.inf, torch.inf, torch.nan])
def test_a_mask_may_be_minus_infinity_and_a_parameter_may_not(value, tmp_path):
    model = make("bert").to("meta")
    model.register_buffer("mask", torch.zeros(3, device="meta"))
    sink = QuantizedFolder(tmp_path, model, make_plan(model, load_recipe("int8")), 10**6)
    bias = torch.full((128,), value)
    with pytest.raises(InputError, match=f"LayerNorm.bias holds {value}, so the model cannot"):
        sink.take("embeddings.LayerNorm.bias", bias)
    if value == -torch.inf:
        sink.take("mask", bias[:3])
    else:
        with pytest.raises(InputError, match=f"mask holds {value}"):
            sink.take("mask", bias[:3])
