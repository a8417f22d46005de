"""QuantEmbedding: nn.Embedding over a stored table [rows, columns]."""

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary

from lowbit.formats import Layout
from lowbit.kernels import embedding, ops
from lowbit.kernels.selection import Kernel
from lowbit.nn.quant_module import QuantModule


def scaled(rows: Tensor, scale: float | None, rounds: bool) -> Tensor:
    """Rows times the scale. If `rounds`, the scale is rounded to their dtype first."""
    if scale is None:
        return rows
    return rows * (torch.tensor(scale, dtype=rows.dtype, device=rows.device) if rounds else scale)


class QuantEmbedding(QuantModule):
    """Rows of a quantized table, times `embed_scale` if the float module had one."""

    def __init__(
        self,
        layout: Layout,
        num_embeddings: int,
        embedding_dim: int,
        embed_scale: float | None = None,
        rounds_scale: bool = False,
    ) -> None:
        super().__init__(layout, num_embeddings, embedding_dim, (num_embeddings, embedding_dim))
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        self.embed_scale, self.rounds_scale = embed_scale, rounds_scale

    def forward(self, ids: Tensor) -> Tensor:
        if has_torch_function_unary(ids):  # TorchFunctionModes see one call
            return handle_torch_function(QuantEmbedding.forward, (ids,), self, ids)
        packed, dtype = self.pack(), self.compute.dtype
        if packed is None:
            rows = ops.embedding(ids, self.weight_in_use, dtype)
        else:
            rows = ops.embedding_packed(ids, packed.bytes, packed.layout, dtype)
        return scaled(rows, self.embed_scale, self.rounds_scale)

    def choose(self) -> tuple[Kernel, str]:
        """The kernel of this module on this machine, and the reason for its choice."""
        return embedding.kernel(self.layout, self.embedding_dim, self.compute.device)

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}, {self.describe()}"
