import numpy as np
import torch

from lowbit.training.distillation import divergence


def test_the_divergence_is_that_of_numpy_over_tokens_that_are_no_padding():
    generator = torch.Generator().manual_seed(0)
    logits, wanted = torch.randn(2, 3, 5, 7, generator=generator) * 2
    labels = torch.tensor([[1, 2, -100, -100, 3], [0, -100, -100, 4, 5], [6, 6, 6, -100, 1]])
    total = []
    for row, column in zip(*np.nonzero(labels.numpy() != -100), strict=True):
        q, p = (x[row, column].double().numpy() for x in (logits, wanted))
        q, p = (np.exp(x - x.max()) / np.exp(x - x.max()).sum() for x in (q, p))
        total.append((p * np.log(p / q)).sum())
    np.testing.assert_allclose(divergence(logits, wanted, labels), np.mean(total), rtol=1e-5)
    assert divergence(logits, logits, labels).abs() <= 1e-6
