"""What a quantized model has to compute, without any code of lowbit: the twin of a float model.

A twin is a float model whose weights were rounded, in NumPy, as the formats' pages say.
"""

import copy
from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor, nn

GROUP = 64
SMALLEST_NORMAL = np.finfo(np.float16).smallest_normal


def int8(w: np.ndarray) -> np.ndarray:
    """Rows rounded to 255 levels around 0."""
    scale = stored_scale(np.abs(w).max(1, keepdims=True) / np.float32(127))
    return np.clip(np.rint(w / scale), -127, 127) * scale


def int4(w: np.ndarray) -> np.ndarray:
    """Groups of 64 in a row, each rounded to 16 levels between its ends."""
    rows, columns = w.shape
    # A last group that is shorter is filled up with zeros, which every range includes.
    groups = np.pad(w, ((0, 0), (0, -columns % GROUP))).reshape(rows, -1, GROUP)
    low = np.minimum(groups.min(2, keepdims=True), 0)
    high = np.maximum(groups.max(2, keepdims=True), 0)
    scale = stored_scale(high / np.float32(15) - low / np.float32(15))
    zero = np.clip(np.rint(-low / scale), 0, 15)
    codes = np.clip(np.rint(groups / scale) + zero, 0, 15)
    return ((codes - zero) * scale).reshape(rows, -1)[:, :columns]


def stored_scale(scale: np.ndarray) -> np.ndarray:
    """Scales as they are stored: float16, if that holds every one of them."""
    scale = np.where(scale < 1e-30, np.float32(1), scale)
    with np.errstate(over="ignore"):
        half = scale.astype(np.float16)
    fits = np.isfinite(half) & (half >= SMALLEST_NORMAL)
    return half.astype(np.float32) if fits.all() else scale


def twin(
    model: nn.Module, names: Iterable[str], rounded: Callable[[np.ndarray], np.ndarray]
) -> nn.Module:
    """A copy of the float `model`; the weights of the modules `names` are rounded.

    Modules that share a weight share the rounded one. A module outside `names` keeps its weight.
    """
    model = copy.deepcopy(model)
    done: dict[int, nn.Parameter] = {}
    originals = []  # Kept alive, so that no id comes twice.
    for name in names:
        module = model.get_submodule(name)
        weight = module.weight
        originals.append(weight)
        if id(weight) not in done:
            turned = type(module).__name__ == "Conv1D"
            matrix = weight.detach().float().numpy()
            matrix = rounded(matrix.T).T if turned else rounded(matrix)
            done[id(weight)] = nn.Parameter(
                torch.from_numpy(np.ascontiguousarray(matrix)).to(weight.dtype)
            )
        module.weight = done[id(weight)]
    return model


def round_inputs(model: nn.Module, names: Iterable[str]) -> None:
    """Make each linear module `names` round every row of its input to 255 levels around 0."""

    def rounded(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x = inputs[0]
        largest = x.abs().amax(-1, keepdim=True).clamp_min(1e-30)
        return ((x * (127 / largest)).round() * (largest / 127), *inputs[1:])

    for name in names:
        module = model.get_submodule(name)
        if not isinstance(module, nn.Embedding):
            module.register_forward_pre_hook(rounded)


def disturb(model: nn.Module, names: Iterable[str]) -> None:
    """Make the outputs of the modules `names` differ as sums in another order do."""
    generator = torch.Generator().manual_seed(1)

    def disturbed(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output * (1 + 1e-6 * torch.randn(output.shape, generator=generator))

    for name in names:
        model.get_submodule(name).register_forward_hook(disturbed)


def difference(got: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    """The largest relative Frobenius error of any output; NaN or infinite if they do not compare.

    Infinities that both have at one place (masked logits) count as equal.
    """
    if set(got) != set(wanted):
        return float("inf")
    return max((_error(got[name], wanted[name]) for name in wanted), key=_rank, default=0.0)


def _rank(error: float) -> tuple[bool, float]:
    return error != error, error


def _error(got: Tensor, wanted: Tensor) -> float:
    if got.is_meta or got.shape != wanted.shape:
        return float("inf")
    got, wanted = got.double(), wanted.double()
    finite = wanted.isfinite()
    if not torch.equal(finite, got.isfinite()):
        return float("nan")
    got, wanted = got[finite], wanted[finite]
    size = float(wanted.norm())
    return float((got - wanted).norm()) / size if size > 1e-6 else float((got - wanted).norm())


def equal(got: dict[str, Tensor], wanted: dict[str, Tensor]) -> bool:
    """Whether all outputs have the same names, and the same bits apart from kinds of NaN."""
    return set(got) == set(wanted) and all(
        not got[name].is_meta
        and got[name].dtype == wanted[name].dtype
        and torch.equal(got[name].nan_to_num(nan=1.5e30), wanted[name].nan_to_num(nan=1.5e30))
        for name in wanted
    )
