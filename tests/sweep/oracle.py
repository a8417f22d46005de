"""What a quantized model has to compute, without any code of lowbit: the twin of a float model.

A twin is a float model whose weights were rounded, in NumPy, as the formats' pages say.
"""

import copy
from collections.abc import Callable, Iterable, Iterator
from typing import Any

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
    """A copy of the float `model`; the weights of the modules `names` are rounded, and of experts,
    whose weights are parameters, those of these names. These become linear layers.

    Modules that share a weight share the rounded one. A module outside `names` keeps its weight.
    """
    model = copy.deepcopy(model)
    done: dict[int, nn.Parameter] = {}
    originals = []  # Kept alive, so that no id comes twice.
    modules = dict(model.named_modules(remove_duplicate=False))
    mixtures: dict[str, set[str]] = {}
    for name in names:
        if name not in modules:
            around, _, own = name.rpartition(".")
            mixtures.setdefault(around, set()).add(own)
            continue
        module = modules[name]
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
    separated: dict[int, SeparateExperts] = {}
    for name, own in mixtures.items():
        key = id(modules[name])
        if not hasattr(modules[name], "has_gate"):
            for part in own:
                _round_experts(modules[name], part, rounded)
            continue
        if key not in separated:
            separated[key] = SeparateExperts(modules[name], {part: rounded for part in own})
        model.set_submodule(name, separated[key])
    return model


@torch.no_grad()
def _round_experts(
    module: nn.Module, name: str, rounded: Callable[[np.ndarray], np.ndarray]
) -> None:
    """Of a module that does not describe itself: its parameters are rounded where they are. The
    halves of gate and up are outputs, and so tell how the weights are stored."""
    up, down = module.gate_up_proj, module.down_proj
    transposed = up.shape[2] == 2 * down.shape[1] and up.shape[1] == down.shape[2]
    for weight in getattr(module, name):
        matrix = (weight.T if transposed else weight).float().numpy()
        near = torch.from_numpy(np.ascontiguousarray(rounded(np.ascontiguousarray(matrix))))
        weight.copy_(near.T if transposed else near)


class SeparateExperts(nn.Module):
    """What an experts module of transformers computes, by two linear layers for each expert. The
    parameters that `rounded` names are rounded."""

    def __init__(
        self, module: nn.Module, rounded: dict[str, Callable[[np.ndarray], np.ndarray]]
    ) -> None:
        super().__init__()
        self.mixture = module
        up = "gate_up_proj" if module.has_gate else "up_proj"
        self.up = self._layers(up, rounded.get(up))
        self.down = self._layers("down_proj", rounded.get("down_proj"))

    def _layers(self, name: str, rounded: Callable[[np.ndarray], np.ndarray] | None) -> Any:
        weights = getattr(self.mixture, name).detach()
        biases = getattr(self.mixture, f"{name}_bias") if self.mixture.has_bias else None
        layers = []
        for i, weight in enumerate(weights):
            matrix = (weight.T if self.mixture.is_transposed else weight).float().numpy()
            matrix = np.ascontiguousarray(matrix if rounded is None else rounded(matrix))
            layer = nn.Linear(matrix.shape[1], matrix.shape[0], bias=biases is not None)
            layer.weight = nn.Parameter(torch.from_numpy(matrix).to(weight.dtype))
            if biases is not None:
                layer.bias = nn.Parameter(biases[i].detach().clone())
            layers.append(layer)
        delattr(self.mixture, name)  # Only the layers are the truth from here on.
        return nn.ModuleList(layers)

    def forward(self, hidden: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        """Tokens one by one, each by its experts in the order of the slots; an id that no expert
        has adds nothing."""
        rows = []
        for x, chosen, shares in zip(hidden, ids.tolist(), weights, strict=True):
            parts = [
                self._expert(x[None], number)[0] * share
                for number, share in zip(chosen, shares, strict=True)
                if number < len(self.up)
            ]
            rows.append(sum(parts[1:], parts[0]) if parts else torch.zeros_like(x))
        return torch.stack(rows).to(hidden.dtype) if rows else torch.zeros_like(hidden)

    def _expert(self, x: Tensor, number: int) -> Tensor:
        y = self.up[number](x)
        y = self.mixture._apply_gate(y) if self.mixture.has_gate else self.mixture.act_fn(y)
        y = self.down[number](y)
        return self.mixture.post_expert_norm(y) if self.mixture.has_post_expert_norm else y


def _linear_layers(model: nn.Module, names: Iterable[str]) -> Iterator[nn.Module]:
    """The layers `names` of a twin, and for weights of experts those of each."""
    modules = dict(model.named_modules(remove_duplicate=False))
    for name in names:
        around, _, own = name.rpartition(".")
        if name in modules:
            yield modules[name]
        elif isinstance(modules[around], SeparateExperts):
            yield from modules[around].down if own == "down_proj" else modules[around].up


def round_inputs(model: nn.Module, names: Iterable[str]) -> None:
    """Make each linear module `names` round every row of its input to 255 levels around 0."""

    def rounded(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x = inputs[0]
        largest = x.abs().amax(-1, keepdim=True).clamp_min(1e-30)
        return ((x * (127 / largest)).round() * (largest / 127), *inputs[1:])

    for module in _linear_layers(model, names):
        if not isinstance(module, nn.Embedding):
            module.register_forward_pre_hook(rounded)


def disturb(model: nn.Module, names: Iterable[str]) -> None:
    """Make the outputs of the modules `names` differ as sums in another order do."""
    generator = torch.Generator().manual_seed(1)

    def disturbed(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output * (1 + 1e-6 * torch.randn(output.shape, generator=generator))

    for module in _linear_layers(model, names):
        module.register_forward_hook(disturbed)


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
