"""The linear layers of a mixture's experts, in PyTorch: each row of x times its chosen experts.

    y[t, s] = W[e] x[t] + bias[e]      with e = ids[t, s]

Each expert is a linear layer (kernels/linear) on the rows that chose it. An id equal to the number
of experts chooses none: the result is 0.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from lowbit.errors import RowError
from lowbit.formats import ExpertsTensor
from lowbit.kernels import linear


def experts_linear(
    x: Float[Tensor, "tokens in"],
    ids: Int64[Tensor, "tokens slots"],
    q: ExpertsTensor,
    bias: Float[Tensor, "experts out"] | None,
    activations: str,
) -> Float[Tensor, "tokens slots out"]:
    """The results of all chosen experts, in x's dtype."""
    y = x.new_zeros(*ids.shape, q.rows)
    for expert, tokens, slots in chosen(ids, q.experts):
        own = None if bias is None else bias[expert]
        y[tokens, slots] = linear.linear(x[tokens], q.expert(expert), own, activations)
    return y


def chosen(
    ids: Int64[Tensor, "tokens slots"], experts: int
) -> Iterator[tuple[int, Int64[Tensor, " n"], Int64[Tensor, " n"]]]:
    """(expert, tokens, slots) of every chosen expert. Raises RowError if an id is out of range."""
    found = torch.unique(ids).tolist()
    for expert in found:
        if not 0 <= expert <= experts:
            raise RowError(f"expert {expert} was chosen, of {experts}")
        if expert < experts:
            tokens, slots = torch.where(ids == expert)
            yield expert, tokens, slots
