"""Moving a scale per input out of a weight and into the module that makes these inputs.

    y = W x = (W · diag(f)) (x / f)

The module before divides what it computes by f: a norm its weight and bias, a linear layer the rows
of its weight and its bias. Whether a module may do so for a layer depends on all that lies between
them and on who else reads its result. That is not guessed but tried: with factors of 2 and 1/2 the
block must compute what it did before.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float32
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lowbit.convert import Weights, weights_of
from lowbit.solvers.observe import Observed
from lowbit.solvers.playback import Playback
from lowbit.solvers.stages import Stage

TOLERANCE = 1e-5
TRIALS = 4


def fold(
    playback: Playback,
    stage: Stage,
    layers: Mapping[str, nn.Module],
    seen: Observed,
    factors: Callable[[list[str]], Float32[Tensor, " in"]],
) -> tuple[set[str], list[str]]:
    """Fold into every layer of the stage the factors that `factors` finds for those that read the
    same input, and keep `seen` true.

    Returns the names of the parameters that changed, and the layers before which no module can
    take the factors.
    """
    changed: set[str] = set()
    left: list[str] = []
    order = _call_order(playback, stage) if stage.stack is not None else []
    for names in seen.shared():
        readers = [layers[name] for name in names]
        maker = _maker(playback, stage, order, readers)
        if maker is None:
            left += names
            continue
        found = factors(names)
        _scale(maker, readers, found)
        seen.inputs[names[0]] = seen.inputs[names[0]].scaled(1 / found)
        changed |= _parameters(playback.model, [maker, *readers])
    return changed, left


def _maker(
    playback: Playback, stage: Stage, order: list[nn.Module], readers: list[nn.Module]
) -> nn.Module | None:
    """The nearest module before the readers that can take factors for them, or None."""
    if any(module not in order for module in readers):
        return None
    width = _width(readers[0])
    before = order[: min(order.index(module) for module in readers)]
    candidates = [m for m in reversed(before) if _makes(m) == width]
    expected = None
    for maker in candidates[:TRIALS]:
        expected = expected or _outputs(playback, stage)
        signs = torch.randint(0, 2, (width,), generator=torch.Generator().manual_seed(width))
        trial = torch.where(signs.bool(), 2.0, 0.5).to(_weight(readers[0]).device)
        with _restored([maker, *readers]):
            _scale(maker, readers, trial)
            if _close(_outputs(playback, stage), expected):
                return maker
    return None


def _makes(module: nn.Module) -> int | None:
    """How many numbers per token the module makes with parameters of its own, one for each."""
    kind = weights_of(module)
    if isinstance(kind, Weights):
        return kind.shape[0] if kind.kind == "linear" else None
    own = {name: p for name, p in module._parameters.items() if p is not None}
    vectors = own.keys() in ({"weight"}, {"weight", "bias"}) and own["weight"].ndim == 1
    return len(own["weight"]) if vectors else None


def _width(reader: nn.Module) -> int:
    kind = weights_of(reader)
    assert isinstance(kind, Weights)
    return kind.shape[1]


def _scale(maker: nn.Module, readers: Sequence[nn.Module], factors: Tensor) -> None:
    """Divide what the maker makes, and multiply the columns of its readers' weights."""
    # Parameters get new values and the old ones stay whole, for whoever keeps them to go back.
    for module, scale in ((maker, 1 / factors), *((reader, factors) for reader in readers)):
        weight = _weight(module)
        rows = weight.ndim == 2 and _by_rows(module) == (module is maker)
        weight.data = (weight * (scale[:, None] if rows else scale)).to(weight.dtype)
    bias = maker._parameters.get("bias")
    if bias is not None:
        bias.data = (bias / factors).to(bias.dtype)


def _weight(module: nn.Module) -> nn.Parameter:
    weight = module._parameters["weight"]
    assert weight is not None
    return weight


def _by_rows(module: nn.Module) -> bool:
    """Whether the weight is a matrix stored as [out, in]."""
    kind = weights_of(module)
    return isinstance(kind, Weights) and not kind.transposed


def _call_order(playback: Playback, stage: Stage) -> list[nn.Module]:
    """The modules of the block that hold parameters, as they are first called."""
    order: list[nn.Module] = []

    def note(module: nn.Module, args: Any) -> None:
        if module not in order:
            order.append(module)

    modules = [m for m in stage.module.modules() if m._parameters]
    hooks = [m.register_forward_pre_hook(note) for m in modules]
    try:
        _outputs(playback, stage)
    finally:
        for hook in hooks:
            hook.remove()
    return order


def _outputs(playback: Playback, stage: Stage) -> list[Tensor]:
    """What the block computes from the first batch."""
    found: list[Tensor] = []
    playback.run(stage, lambda output: found.extend(_tensors(output)), batches=1)
    return found


def _tensors(output: Any) -> Iterator[Tensor]:
    return (
        x.float() for x in tree_leaves(output) if isinstance(x, Tensor) and x.is_floating_point()
    )


def _close(found: Sequence[Tensor], expected: Sequence[Tensor]) -> bool:
    return all(
        bool((a - b).norm() <= TOLERANCE * b.norm()) for a, b in zip(found, expected, strict=True)
    )


@contextmanager
def _restored(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Whatever happens to the parameters of these modules inside is undone, bit for bit."""
    before = {p: p.data for m in modules for p in m.parameters(recurse=False)}
    try:
        yield
    finally:
        for p, values in before.items():
            p.data = values


def _parameters(model: nn.Module, modules: Sequence[nn.Module]) -> set[str]:
    own = {id(p) for m in modules for p in m.parameters(recurse=False)}
    return {name for name, p in model.named_parameters() if id(p) in own}
