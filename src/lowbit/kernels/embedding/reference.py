"""Rows of a stored table, in PyTorch: gather the packed rows, then decode only those."""

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from lowbit.formats import FORMATS, QTensor


def embedding(
    ids: Integer[Tensor, "*tokens"], q: QTensor, dtype: torch.dtype
) -> Float[Tensor, "*tokens in"]:
    """The decoded rows. Raises IndexError for an id outside the table."""
    rows = ids.flatten().long()
    if rows.numel() and not 0 <= int(rows.min()) <= int(rows.max()) < q.shape[0]:
        raise IndexError(
            f"token ids {int(rows.min())} … {int(rows.max())} leave a table of {q.shape[0]} rows"
        )
    stored = FORMATS[q.layout.format]
    decoded: Tensor = stored.decode(stored.take_rows(q, rows), dtype)
    return decoded.reshape(*ids.shape, q.in_features)
