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


def test_of_a_regression_it_is_the_mean_squared_error():
    logits, wanted = torch.tensor([[1.0], [4.0], [2.5]]), torch.tensor([[0.5], [4.0], [1.0]])
    found = divergence(logits, wanted, torch.tensor([0.0, 3.0, -100.0]))
    np.testing.assert_allclose(found, (0.25 + 0 + 2.25) / 3, rtol=1e-6)
