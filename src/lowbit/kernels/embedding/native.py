"""Embedding lookup in a packed table (csrc/packed_layout.h). Only the needed rows are decoded."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Float32, Int64, Integer, UInt8
from torch import Tensor

from lowbit.kernels.checks import check_ids, row_error
from lowbit.kernels.packed_layout import PackedLayout
from lowbit.kernels.selection import target_here
from lowbit.kernels.stacked_packed_layout import AnyPackedLayout


def embedding(
    ids: Integer[Tensor, "*tokens"],
    packed: UInt8[Tensor, " bytes"],
    form: AnyPackedLayout,
    dtype: torch.dtype,
) -> Float[Tensor, "*tokens in"]:
    """The decoded rows. Raises RowError if an id is outside the table, UsageError if ids are not
    integers on the CPU."""
    check_ids(ids, torch.device("cpu"))
    return form.decode(packed, ids.flatten(), dtype).view(*ids.shape, form.in_features)


def in_place(
    packed: UInt8[Tensor, " bytes"], form: PackedLayout, y: Float32[Tensor, "*tokens in"]
) -> Callable[[Int64[Tensor, "*tokens"]], None]:
    """A function of ids for repeated calls, which writes the decoded rows to `y`."""
    decode, count = form.weight.decode, y.numel() // form.in_features
    target = target_here("decode_packed")

    def call(ids: Tensor) -> None:
        ids = ids.contiguous()
        try:
            decode(packed.data_ptr(), ids.data_ptr(), count, y.data_ptr(), target)
        except IndexError:
            raise row_error(ids, form.out_features) from None

    return call
