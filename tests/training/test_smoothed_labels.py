"""Smoothed labels: losses and gradients beside transformers' own, in float64."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.trainer_pt_utils import LabelSmoother

from lowbit.training.smoothed_labels import SmoothedLabels


def both(logits, labels, strength, dtype=torch.float32, **options):
    """(loss, gradient) of transformers' smoother in float64, and of ours in float32."""
    found = []
    for smoother, own in ((LabelSmoother, torch.float64), (SmoothedLabels, dtype)):
        z = logits.to(own).requires_grad_()
        loss = smoother(strength)({"logits": z}, labels.clone(), **options)
        (3 * loss).backward()
        found.append((loss.item(), z.grad.double()))
    return found


@given(
    st.integers(1, 4),
    st.integers(2, 9),
    st.integers(2, 300),
    st.floats(0, 1),
    st.sampled_from([1e-3, 1.0, 100.0]),
    st.booleans(),
    st.sampled_from([None, 7]),
    st.integers(0, 1 << 16),
)
def test_loss_and_gradient_are_those_of_transformers(
    rows, tokens, classes, strength, size, shifted, items, seed
):
    generator = torch.Generator().manual_seed(seed)
    logits = size * torch.randn(rows, tokens, classes, generator=generator)
    labels = torch.randint(classes, (rows, tokens), generator=generator)
    labels[torch.rand(rows, tokens, generator=generator) < 0.3] = -100
    labels[0, 1] = 0  # one at least is counted
    options = {"shift_labels": shifted, "num_items_in_batch": items}
    (wanted, gradient), (loss, own) = both(logits, labels, strength, **options)
    assert loss == pytest.approx(wanted, rel=1e-5, abs=2e-5 * size)
    torch.testing.assert_close(own, gradient, rtol=1e-4, atol=3e-6)


def test_gradients_have_the_logits_dtype_and_padding_has_none():
    logits, labels = torch.randn(2, 5, 11).bfloat16(), torch.tensor([[1, 2, 3, -100, -100]] * 2)
    (_, wanted), (_, own) = both(logits, labels, 0.1, torch.bfloat16)
    assert not own[:, 3:].any() and own[:, :3].all()
    torch.testing.assert_close(own, wanted, rtol=1e-2, atol=1e-3)


def test_a_label_whose_probability_underflows_has_a_finite_loss():
    logits, labels = torch.tensor([[[0.0, 400.0]]]), torch.tensor([[0]])
    (wanted, _), (loss, _) = both(logits, labels, 0.1)
    assert loss == pytest.approx(wanted) == 380


def test_not_a_number_stays_one():
    logits = torch.tensor([[[0.0, float("nan")]]])
    assert SmoothedLabels(0.1)({"logits": logits}, torch.tensor([[0]])).isnan()
