"""Embedding lookup in a stored table, in PyTorch. Only the needed rows are decoded."""

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from lowbit.formats import QTensor, decode_rows
from lowbit.kernels.checks import check_ids, row_error


def embedding(
    ids: Integer[Tensor, "*tokens"], q: QTensor, dtype: torch.dtype
) -> Float[Tensor, "*tokens in"]:
    """The decoded rows. Raises RowError if an id is outside the table, UsageError if ids are not
    integers on the table's device."""
    check_ids(ids, next(iter(q.tensors().values())).device)
    rows = ids.flatten().long()
    if rows.numel() and not 0 <= int(rows.min()) <= int(rows.max()) < q.shape[0]:
        raise row_error(rows, q.shape[0])
    return decode_rows(q, rows, dtype).reshape(*ids.shape, q.in_features)
