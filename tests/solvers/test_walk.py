"""The walk: every architecture, what blocks see, and going on after a kill."""

import pytest
import torch

import lowbit
from lowbit import InputError, UsageError
from lowbit.convert import matrix
from lowbit.coverage import cover
from lowbit.formats import FORMATS
from lowbit.recipe import load_recipe
from lowbit.solvers import Solver, walk
from lowbit.solvers.stages import find_stages
from lowbit.calibration import batches_of
from tests.models import MODELS, make, output

IDS = torch.arange(0, 320).reshape(16, 20) * 7 % 199


def packed(model):
    return {n: m for n, m in model.named_modules() if isinstance(m, lowbit.nn.Packed)}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("recipe", ["int4", "int3-all"])
def test_every_architecture_is_solved_whole(name, recipe, tmp_path):
    model = make(name)
    expected = output(model)
    result = lowbit.quantize(model, recipe, solver="gptq", calibration=IDS)
    names = {d.name for d in result.coverage.quantized}
    assert names == set(packed(model))
    assert result.errors.keys() == {d.name for d in result.coverage.quantized if not d.tied_to}
    assert torch.isfinite(output(model)).all()
    assert ((output(model) - expected).norm() <= 0.5 * expected.norm()).item()
