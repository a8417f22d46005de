"""Rows of a table: packed by native code, as it is stored by the reference."""

import torch

from lowbit.formats import Layout
from lowbit.kernels import packed_layout
from lowbit.kernels.embedding import native, reference
from lowbit.kernels.native import paths
from lowbit.kernels.selection import Kernel, never, select

# Chosen when a table is first used: the native kernel takes it packed, the reference as stored.
KERNELS = (
    *(
        Kernel(path.name, native.embedding, packed_layout.unsupported, path.feature)
        for path in paths("decode_packed")
    ),
    Kernel("reference", reference.embedding, never),
)


def kernel(layout: Layout, in_features: int, device: torch.device) -> tuple[Kernel, str]:
    """The kernel that serves such a table here, and why."""
    return select(KERNELS, layout, in_features, device)
