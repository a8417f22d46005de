"""Rows of a prepacked table by csrc/lanes.h: only the rows asked for are decoded."""

import torch
from jaxtyping import Float, Integer, UInt8
from torch import Tensor

from lowbit.kernels.stacked_lanes import Prepacked


def embedding(
    ids: Integer[Tensor, "*tokens"],
    packed: UInt8[Tensor, " bytes"],
    form: Prepacked,
    dtype: torch.dtype,
) -> Float[Tensor, "*tokens in"]:
    """The decoded rows. Raises IndexError for an id outside the table."""
    return form.decode(packed, ids.flatten(), dtype).view(*ids.shape, form.in_features)
