"""Rows of a prepacked table by csrc/lanes.h: only the rows asked for are decoded."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Float32, Int64, Integer, UInt8
from torch import Tensor

from lowbit.kernels.lanes import Lanes
from lowbit.kernels.stacked_lanes import Prepacked


def embedding(
    ids: Integer[Tensor, "*tokens"],
    packed: UInt8[Tensor, " bytes"],
    form: Prepacked,
    dtype: torch.dtype,
) -> Float[Tensor, "*tokens in"]:
    """The decoded rows. Raises IndexError for an id outside the table."""
    return form.decode(packed, ids.flatten(), dtype).view(*ids.shape, form.in_features)


def in_place(
    packed: UInt8[Tensor, " bytes"], form: Lanes, y: Float32[Tensor, "*tokens in"]
) -> Callable[[Int64[Tensor, "*tokens"]], None]:
    """The same for calls that follow each other: ids -> nothing, rows being written to `y`."""
    decode, count = form.weight.decode, y.numel() // form.in_features

    def call(ids: Tensor) -> None:
        ids = ids.contiguous()
        decode(packed.data_ptr(), ids.data_ptr(), count, y.data_ptr())

    return call
