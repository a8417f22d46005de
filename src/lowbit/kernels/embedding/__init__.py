"""Rows of a stored table."""

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from lowbit.formats import QTensor
from lowbit.kernels.embedding import reference
from lowbit.kernels.selection import Kernel, never, select

KERNELS = (Kernel("reference", reference.embedding, never),)


def embedding(
    ids: Integer[Tensor, "*tokens"], q: QTensor, dtype: torch.dtype
) -> Float[Tensor, "*tokens in"]:
    """The decoded rows. Raises IndexError for an id outside the table."""
    kernel, _ = select(KERNELS, ids, q)
    rows: Tensor = kernel.run(ids, q, dtype)
    return rows
