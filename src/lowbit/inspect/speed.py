"""Layers that this processor computes slower than PyTorch does in float32, and the faster recipe.

Measured here and now, in less than a second: layers that are stored alike are represented by one of
their shape, whose product takes turns with PyTorch's, for one row (a token at a time) and for many
(prompts, batches). The figures are of that shape, these threads and this moment.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lowbit.conversion.plan import Plan, Quantize
from lowbit.conversion.recipe import PRESETS
from lowbit.errors import UsageError
from lowbit.formats import Layout, PlainLayout, StaticScale
from lowbit.kernels import linear, native
from lowbit.kernels.packed_layout import PANEL_ROWS, PackedLayout, Part
from lowbit.kernels.selection import Kernel
from lowbit.kernels.stacked_packed_layout import packed_layout_of
from lowbit.nn import ACTIVATIONS, QuantEmbedding, QuantExperts, QuantLinear, QuantModule

ROWS = (1, 256)
# Fewer weights than this in all, and calls cost more than products.
MATTERS = 1 << 20
# A measured layer has about so many weights; where one row reads them, copies stand for the model.
WEIGHTS, STREAMED = 1 << 20, 1 << 24
TURNS, SECONDS = 5, 0.05
# Within this share of a moment's measurement neither is slower.
ALIKE = 0.1


@dataclass(frozen=True)
class Layer:
    """A linear layer, as far as its speed depends on it. out and in are those of its weight."""

    layout: PlainLayout
    activations: str
    out_features: int
    in_features: int

    @property
    def weights(self) -> int:
        return self.out_features * self.in_features

    def kernel(self) -> tuple[Kernel, str]:
        """What serves it here, and why."""
        cpu = torch.device("cpu")
        return linear.kernel(self.layout, self.in_features, cpu, self.activations)


@dataclass(frozen=True)
class Computed:
    """What a model computes with: its quantized linear layers, an expert being one, and whether its
    tables (embeddings, heads) are quantized too."""

    layers: list[Layer]
    tables: bool


@dataclass(frozen=True)
class SlowLayers:
    """So many layers that are slower than in float32. kernel: what serves them, and why.

    times: rows -> how many times as long as float32 they take; None for those that run in PyTorch,
    which are slower than float32 since they decode their weights and then do the same.
    faster: a recipe, and the times of such a layer as it stores one; None if none is faster.
    """

    layers: int
    like: Layer
    kernel: str
    times: dict[int, float] | None
    faster: tuple[str, dict[int, float]] | None

    def __str__(self) -> str:
        kind = f"{self.like.layout}, {self.like.activations} activations"
        are = "1 layer ({}) is" if self.layers == 1 else f"{self.layers} layers ({{}}) are"
        head = f"{are.format(kind)} slower than PyTorch's in float32 here"
        if self.times is None:
            found = f": they run in PyTorch too ({self.kernel})"
        else:
            found = (
                f" ({self.kernel.partition(':')[0]}): one of {self.like.out_features} ×"
                f" {self.like.in_features} takes {_told(self.times)}"
            )
        if self.faster is None:
            return f"{head}{found}; no recipe was faster."
        name, times = self.faster
        return f"{head}{found}; stored as by {name}, it takes {_told(times)}."


def _told(times: dict[int, float]) -> str:
    """How long, in words."""
    return " and ".join(
        f"{factor:.2f} times as long for {rows} row{'s' * (rows > 1)}"
        for rows, factor in times.items()
    )


def planned(plan: Plan) -> Computed:
    """What a model computes with after a plan."""
    layers = []
    for d in plan.quantized:
        if d.weights.kind == "embedding":
            continue
        scheme = (d if isinstance(d, Quantize) else d.source).scheme
        alike = d.weights.experts if d.weights.kind == "experts" else 1
        out, inputs = d.weights.shape[0] // alike, d.weights.shape[1]
        layers += _parts(scheme.layout(out), d.activations, out, inputs) * alike
    return Computed(layers, any(d.weights.kind == "embedding" for d in plan.quantized))


def present(model: nn.Module) -> Computed:
    """What a model computes with on the CPU."""
    here = [
        m for m in model.modules() if isinstance(m, QuantModule) and m.compute.device.type == "cpu"
    ]
    layers = []
    for m in here:
        if isinstance(m, QuantLinear):
            layers += _parts(m.layout, m.activations, m.out_features, m.in_features)
        elif isinstance(m, QuantExperts):
            each = _parts(m.layout.each, m.activations, m.out_features, m.in_features)
            layers += each * m.experts
    return Computed(layers, any(isinstance(m, QuantEmbedding) for m in here))


def _parts(layout: Layout, activations: str, out: int, inputs: int) -> list[Layer]:
    """A layer, or the parts of one whose rows are stored in several ways."""
    plain: tuple[Part, ...] = packed_layout_of(layout, out, inputs).parts
    taken = ACTIVATIONS[activations][1]
    return [Layer(p.layout.layout, taken, p.layout.out_features, inputs) for p in plain]


def speed_notes(plan: Plan) -> tuple[str, ...]:
    """What is slower than in float32 after a plan, in sentences. That it cannot be measured is one
    too: what a plan made is no error."""
    try:
        return tuple(map(str, slow_layers(planned(plan))))
    except UsageError as error:
        return (f"Speeds were not measured: {error}.",)


def slow_layers(model: Computed) -> tuple[SlowLayers, ...]:
    """Layers that are slower than in float32 on this processor, with PyTorch's number of threads.
    Those that are stored alike are one entry. Nothing without native code, where all are slow.

    Raises UsageError if LOWBIT_KERNEL names what cannot run here.
    """
    if not native.available():
        return ()
    alike: dict[tuple[str, str], list[Layer]] = {}
    for layer in model.layers:
        alike.setdefault((str(layer.layout), layer.activations), []).append(layer)
    found = []
    for group in alike.values():
        if sum(layer.weights for layer in group) < MATTERS:
            continue
        slow = _slow(group, model.tables)
        if slow is not None:
            found.append(slow)
    return tuple(found)


def _slow(group: Sequence[Layer], tables: bool) -> SlowLayers | None:
    like = min(group, key=lambda layer: abs(math.log(layer.weights / WEIGHTS)))
    copies = sum(layer.weights for layer in group) // like.weights
    kernel, why = like.kernel()
    times = None
    if kernel.feature:
        times = _times(like, copies, torch.get_num_threads(), kernel.name)
    if times is not None and max(times.values()) <= 1 + ALIKE:
        return None
    return SlowLayers(len(group), like, why, times, _faster(like, copies, times, tables))


def _faster(
    like: Layer, copies: int, times: dict[int, float] | None, tables: bool
) -> tuple[str, dict[int, float]] | None:
    """The affine preset of at least as many bits, activations int8, that is nowhere slower than
    float32, or else the one that is least slow, if it beats what there is. tables: whether it
    quantizes them too."""
    found: dict[str, dict[int, float]] = {}
    for bits in (2, 3, 4, 8):
        name = f"int{bits}{'-all' * tables}-dynamic"
        rule = PRESETS[name].rules[-1]
        assert rule.scheme is not None
        if bits < like.layout.bits or rule.scheme.misfit(like.out_features, like.in_features):
            continue
        layout = rule.scheme.layout(like.out_features)
        (other,) = _parts(layout, rule.activations, like.out_features, like.in_features)
        kernel, _ = other.kernel()
        if kernel.feature:
            found[name] = _times(other, copies, torch.get_num_threads(), kernel.name)
            if max(found[name].values()) <= 1:
                return name, found[name]
    best = min(found, key=lambda name: max(found[name].values()), default=None)
    if best is None or (times and max(found[best].values()) >= max(times.values())):
        return None
    return best, found[best]


@lru_cache(maxsize=64)
def _times(layer: Layer, copies: int, threads: int, kernel: str) -> dict[int, float]:
    """Rows -> seconds of the native product over those of float32, `threads` and `kernel`
    being those now."""
    out = min(layer.out_features, max(PANEL_ROWS, WEIGHTS // layer.in_features))
    form = PackedLayout(layer.layout, out, layer.in_features)
    static = StaticScale(1.0) if layer.activations == "static" else None
    product = linear.product(form, layer.activations, input=static)
    assert product is not None
    copies = max(1, min(copies, STREAMED // (out * layer.in_features)))
    # Zeros are codes and scales too: no time depends on them. Written, so that they take memory.
    packed = torch.empty(copies, form.size, dtype=torch.uint8).fill_(0)
    weights = torch.empty(copies, out, layer.in_features).fill_(0)
    times = {}
    for rows in ROWS:
        x = torch.ones(rows, layer.in_features)
        used = copies if rows == 1 else 1
        ours = _each(partial(product, x), packed[:used])
        theirs = _each(partial(F.linear, x), weights[:used])
        # Slower only if it is twice: other programs take turns too.
        times[rows] = min(_ratio(ours, theirs), _ratio(ours, theirs))
    return times


def _each(run: Callable[[Tensor, None], object], weights: Tensor) -> Callable[[], None]:
    """`run` with every weight, and without a bias."""
    parts = list(weights)

    def call() -> None:
        for weight in parts:
            run(weight, None)

    return call


def _ratio(ours: Callable[[], object], theirs: Callable[[], object]) -> float:
    """Of the fastest calls, in turns; the first of each is not measured."""
    best = [math.inf, math.inf]
    end = time.perf_counter() + SECONDS
    for turn in range(1 + TURNS):
        for index, run in enumerate((ours, theirs)):
            start = time.perf_counter()
            run()
            if turn:
                best[index] = min(best[index], time.perf_counter() - start)
        if turn and time.perf_counter() > end:
            break
    return best[0] / best[1]
