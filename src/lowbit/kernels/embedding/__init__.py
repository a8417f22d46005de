"""Embedding lookup: native code reads a packed table, the reference a stored one."""

import torch

from lowbit.formats import Layout
from lowbit.kernels import packed_layout
from lowbit.kernels.embedding import native, reference
from lowbit.kernels.native import targets
from lowbit.kernels.selection import Kernel, never, select

# Chosen at the first use of a table: the native kernel reads it packed, the reference as stored.
KERNELS = (
    *(
        Kernel(target.name, native.embedding, packed_layout.unsupported, target.feature)
        for target in targets("decode_packed")
    ),
    Kernel("reference", reference.embedding, never),
)


def kernel(layout: Layout, in_features: int, device: torch.device) -> tuple[Kernel, str]:
    """The kernel of a table with this layout on this machine, and the reason for its choice."""
    return select(KERNELS, layout, in_features, device)
