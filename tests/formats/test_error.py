"""Errors of stored weights, against NumPy in float64."""

import json
import math

import numpy as np
import pytest
import torch

from lowbit import Absmax, Binary, ZeroPoint, dequantize
from lowbit.formats import TENSOR, group
from lowbit.formats.error import WeightError


@pytest.mark.parametrize("scheme", [Absmax(4, TENSOR), ZeroPoint(3, group(16)), Binary(2)], ids=str)
@pytest.mark.parametrize("shape", [(3, 70), (3000, 100)])
def test_errors_are_those_of_numpy(scheme, shape):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    q = scheme.quantize(weight)
    error = WeightError.of(weight, q)
    noise = weight.numpy().astype(np.float64) - dequantize(q).numpy()
    mse = np.mean(noise**2)
    relative = mse / np.mean(weight.numpy().astype(np.float64) ** 2)
    assert error.mean_squared_error == pytest.approx(mse, rel=1e-9)
    assert error.relative_error == pytest.approx(relative, rel=1e-9)
    assert error.signal_to_noise_db == pytest.approx(-10 * np.log10(relative), rel=1e-9)
    assert WeightError.from_dict(error.to_dict()) == error


def test_a_weight_without_error_has_no_finite_ratio_and_valid_json():
    error = WeightError.of(torch.zeros(2, 4), Absmax(8).quantize(torch.zeros(2, 4)))
    assert error == WeightError(0.0, 0.0) and math.isinf(error.signal_to_noise_db)
    assert "Infinity" not in json.dumps(error.to_dict())
