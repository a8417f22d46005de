"""Operators for embedding lookup in a stored or packed table."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lowbit.formats import QTensor
from lowbit.kernels.arguments import (
    CPU,
    assemble,
    check_packed,
    check_stored,
    layout_text,
    packed_layout,
    stored_arguments,
)
from lowbit.kernels.checks import check_ids, check_result
from lowbit.kernels.embedding import native, reference
from lowbit.kernels.operator import operator, traced
from lowbit.kernels.stacked_packed_layout import AnyPackedLayout


def _check(
    ids: Tensor, stored: Sequence[Tensor], layout: str, in_features: int, dtype: torch.dtype
) -> None:
    check_stored(stored, layout, in_features)
    check_ids(ids, stored[0].device)
    check_result(dtype)


@operator(
    "embedding",
    check=_check,
    fake=lambda ids, stored, layout, in_features, dtype: stored[0].new_empty(
        (*ids.shape, in_features), dtype=dtype
    ),
)
def _embedding_op(
    ids: Tensor, stored: Sequence[Tensor], layout: str, in_features: int, dtype: torch.dtype
) -> Tensor:
    return reference.embedding(ids, assemble(stored, layout, in_features), dtype)


def embedding(ids: Tensor, q: QTensor, dtype: torch.dtype) -> Tensor:
    """Rows of q -> [*ids, in]. Raises RowError for an id outside the table."""
    if traced():
        rows: Tensor = _embedding_op(ids, *stored_arguments(q), q.in_features, dtype)
        return rows
    return reference.embedding(ids, q, dtype)


def _check_packed(
    ids: Tensor,
    packed: Tensor,
    layout: str,
    num_embeddings: int,
    in_features: int,
    planes: int,
    dtype: torch.dtype,
) -> None:
    check_packed(packed, layout, num_embeddings, in_features, planes)
    check_ids(ids, CPU)
    check_result(dtype)


@operator(
    "embedding_packed",
    check=_check_packed,
    fake=lambda ids, packed, layout, num_embeddings, in_features, planes, dtype: packed.new_empty(
        (*ids.shape, in_features), dtype=dtype
    ),
)
def embedding_packed_op(
    ids: Tensor,
    packed: Tensor,
    layout: str,
    num_embeddings: int,
    in_features: int,
    planes: int,
    dtype: torch.dtype,
) -> Tensor:
    form = packed_layout(layout, num_embeddings, in_features, planes)
    return native.embedding(ids, packed, form, dtype)


def embedding_packed(
    ids: Tensor, packed: Tensor, form: AnyPackedLayout, dtype: torch.dtype
) -> Tensor:
    """The same from a packed table."""
    if traced():
        shape = form.out_features, form.in_features
        layout, planes = layout_text(form.layout), form.planes or 0
        rows: Tensor = embedding_packed_op(ids, packed, layout, *shape, planes, dtype)
        return rows
    return native.embedding(ids, packed, form, dtype)
