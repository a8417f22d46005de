"""A random rotation of the values of each attention head, folded into the adjacent weights.

    o = W_o concat_h(P_h V_h),  V_h = x W_v,hᵀ + b_v,h      P_h: which tokens the head attends to
      = W_o diag(Rᵀ, …, Rᵀ) concat_h(P_h V_h Rᵀ),  R Rᵀ = 1

P mixes tokens and R mixes the numbers of one head, so they commute. The rows and the bias of W_v
are multiplied by R, the columns of W_o by Rᵀ, head by head, and the output of the block stays the
same. The rotation spreads outliers over their head, which permits finer scales. Let n be the
largest power of two that divides the head size, and m the quotient:

    R = (H ⊗ Q) D,   H a Hadamard matrix [n, n] / √n,  Q random orthogonal [m, m],  D random signs

A test finds the pairs of layers that are W_v and W_o (equivalence.py).

Sources: Ashkboos et al. 2024, "QuaRot", section 4; Liu et al. 2024, "SpinQuant", the rotation R₂.
"""

from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float64
from torch import Tensor, nn

from lowbit.conversion.module_weights import Weights, matrix, oriented, weights_of
from lowbit.solvers.block_runner import Playback
from lowbit.solvers.blocks import Stage
from lowbit.solvers.equivalence import Equivalence, parameter_names

# The names of the head size in attention modules of transformers.
HEAD_SIZES = ("head_dim", "attention_head_size", "key_value_proj_dim", "head_size")
TRIALS = 4
SEED = 0


class _Linear(NamedTuple):
    module: nn.Module
    weights: Weights


def rotate(playback: Playback, stage: Stage) -> set[str]:
    """Rotate the heads of a block if its output stays the same. Returns the names of the changed
    parameters."""
    trial, changed = Equivalence(playback, stage), set[str]()
    layers = [_Linear(m, w) for m in trial.order if isinstance(w := weights_of(m), Weights)]
    layers = [layer for layer in layers if layer.weights.kind == "linear"]
    for i, value in enumerate(layers):
        size = _head_size(stage.module, value.module)
        if size is None:
            continue
        rotation = random_rotation(size).to(_device(value.module))
        for output in layers[i + 1 : i + 1 + TRIALS]:
            rows, columns = _value_rows(value, output), output.weights.shape[1]
            if rows < size or rows % size or columns % size:
                continue
            pair = [value.module, output.module]
            turn = partial(_turn, value, output, rows, rotation)
            alone = partial(_turn_rows, value, rows, rotation)
            # Skip layers that do not affect the output, such as queries if samples are single
            # tokens.
            if trial.holds(pair, turn) and not trial.holds(pair, alone):
                turn()
                changed |= parameter_names(playback.model, pair)
                break
    return changed


def random_rotation(size: int) -> Float64[Tensor, "size size"]:
    """R for heads of this size, always the same one."""
    generator = torch.Generator().manual_seed(SEED)
    odd = size // (size & -size)
    hadamard = torch.ones(1, 1, dtype=torch.float64)
    while len(hadamard) * odd < size:
        both = torch.cat([hadamard, hadamard], 1)
        hadamard = torch.cat([both, torch.cat([hadamard, -hadamard], 1)])
    normal = torch.randn(odd, odd, dtype=torch.float64, generator=generator)
    signs = 2.0 * torch.randint(0, 2, (size,), generator=generator) - 1
    orthogonal, _ = torch.linalg.qr(normal)
    # LAPACK returns column-major matrices; kron needs row-major ones.
    return torch.kron(hadamard, orthogonal.contiguous()) * signs / len(hadamard) ** 0.5


def _head_size(block: nn.Module, layer: nn.Module) -> int | None:
    """The head size by an attribute of the module that contains the layer, or None."""
    for parent in block.modules():
        if any(child is layer for child in parent.children()):
            sizes = (getattr(parent, name, None) for name in HEAD_SIZES)
            return next((size for size in sizes if isinstance(size, int) and size > 1), None)
    return None


def _value_rows(value: _Linear, output: _Linear) -> int:
    """The number of last rows of `value` that compute values: all; or, if queries, keys and values
    are one matrix, those after the queries (as many as `output` has inputs) and the keys."""
    made, read = value.weights.shape[0], output.weights.shape[1]
    return made if made <= read else (made - read) // 2


def _turn(
    value: _Linear, output: _Linear, rows: int, rotation: Float64[Tensor, "size size"]
) -> None:
    """Assign rotated parameters to both layers; the old tensors do not change."""
    _turn_rows(value, rows, rotation)
    weight = matrix(*output).double().unflatten(1, (-1, len(rotation)))
    _put(output, (weight @ rotation.t()).flatten(1))


def _turn_rows(layer: _Linear, rows: int, rotation: Float64[Tensor, "size size"]) -> None:
    """Rotate the last rows of the weight, and the same part of the bias."""
    heads = (-1, len(rotation))
    weight = matrix(*layer).double().clone()
    weight[-rows:] = (rotation @ weight[-rows:].unflatten(0, heads)).flatten(0, 1)
    _put(layer, weight)
    bias = layer.module._parameters.get("bias")
    if bias is not None:
        turned = bias.detach().double().clone()
        turned[-rows:] = (turned[-rows:].unflatten(0, heads) @ rotation.t()).flatten()
        bias.data = turned.to(bias.dtype)


def _put(layer: _Linear, weight: Float64[Tensor, "out in"]) -> None:
    parameter = layer.module._parameters["weight"]
    assert parameter is not None
    parameter.data = oriented(weight, layer.weights).to(parameter.dtype)


def _device(module: nn.Module) -> torch.device:
    return next(module.parameters()).device
