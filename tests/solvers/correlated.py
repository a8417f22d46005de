"""Weights and inputs that are correlated, as those of real layers are."""

import torch
from hypothesis import strategies as st


def problem(seed, rows=12, columns=40, tokens=200):
    """(weight [rows, columns], inputs [tokens, columns]); a few inputs far larger than others."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(columns, columns, generator=generator)
    spread = torch.exp(torch.randn(columns, generator=generator))
    inputs = torch.randn(tokens, columns, generator=generator) @ mix * spread
    return torch.randn(rows, columns, generator=generator), inputs


def hessian_of(inputs):
    return inputs.T @ inputs / len(inputs)


seeds = st.integers(0, 2**31)
