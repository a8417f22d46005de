"""Rows of a stored table, in PyTorch: only the rows asked for are decoded."""

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from lowbit.errors import RowError
from lowbit.formats import QTensor, decode_rows
from lowbit.kernels.checks import check_ids


def embedding(
    ids: Integer[Tensor, "*tokens"], q: QTensor, dtype: torch.dtype
) -> Float[Tensor, "*tokens in"]:
    """The decoded rows. Raises RowError for an id outside the table, UsageError for ids that are no
    integers or on another device."""
    check_ids(ids, next(iter(q.tensors().values())).device)
    rows = ids.flatten().long()
    if rows.numel() and not 0 <= int(rows.min()) <= int(rows.max()) < q.shape[0]:
        raise RowError(
            f"token ids {int(rows.min())} … {int(rows.max())} leave a table of {q.shape[0]} rows"
        )
    return decode_rows(q, rows, dtype).reshape(*ids.shape, q.in_features)
