"""What a folder of lowbit's stands for, compared with the weights that it was made from."""

import numpy as np
import torch

from lowbit.checkpoint.load import load_model
from lowbit.kernels.ops import dequantize
from lowbit.nn import QuantModule


def assert_holds(folder, weights):
    """Every weight decodes to the same float32 numbers, bit for bit, and nothing else is
    quantized; the model runs."""
    model = load_model(folder)
    packed = {n: m for n, m in model.named_modules() if isinstance(m, QuantModule)}
    assert packed.keys() == weights.keys()
    for name, module in packed.items():
        found = dequantize(module.stored_weight).numpy()
        np.testing.assert_array_equal(found, weights[name], err_msg=name)
    tokens = torch.arange(12).reshape(1, -1) % model.config.vocab_size
    with torch.no_grad():
        logits = model(tokens).logits
    assert torch.isfinite(logits).all()
    return model
