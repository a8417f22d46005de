"""Fake quantization of activations, per tensor: int8 codes of a range found by observing.

    symmetric   s = max(−low, high) / 127,    z = 0,                     codes −127 … 127
    asymmetric  s = (high − low) / 255,       z = round(−128 − low / s), codes −128 … 127
    x̂ = s · (clamp(round(x / s) + z) − z)     (Jacob et al. 2018, section 2.1)

The range always includes 0. How it is found:

    minmax      the smallest and the largest value seen
    ema         means of each batch's extremes, weighted decayᵏ for a batch k steps ago
    percentile  an interval that leaves out so many percent of the values on both sides together
    mse         the interval around 0 with the least squared error; large rows have less weight
    learned     starts as ema has it; then s is a parameter (LSQ)
"""

import math
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

from lowbit.errors import UsageError
from lowbit.formats import StaticScale, fake_quantize
from lowbit.nn.estimators import clipped, learned_step

LEVELS = 255
BINS = 2048  # of the histogram that percentile and mse look at
COUNTED = 1 << 16  # values of a batch, so that counting takes no time: at least half of them
FIRST_COUNTED = 1 << 20  # of the first batch; the n-th has 1/n as many
FAR = 1000  # one value in so many is far from 0
USUAL = 1e-15, 1e15  # magnitudes whose squares float32 can hold
CANDIDATES = 100  # ends of the range that mse tries
COARSE = 4  # each fourth of them for one end alone


class Observer(nn.Module):
    """Observes activations while training (or calibrating), and fake-quantizes them.

    `low` and `high` are buffers, saved with the model and resumed with it.
    """

    low: Tensor
    high: Tensor
    seen: Tensor

    def __init__(self, symmetric: bool = False, **options: Any) -> None:
        super().__init__()
        if options:
            raise UsageError(f"range {type(self).__name__} has no option {next(iter(options))!r}")
        self.symmetric = symmetric
        self._found: tuple[tuple[int, float, float], StaticScale] | None = None
        self.register_buffer("low", torch.zeros((), dtype=torch.float32))
        self.register_buffer("high", torch.zeros((), dtype=torch.float32))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        """Take one batch into account. Values that are not finite count as 0."""
        if x.numel():
            x = x.detach().float()
            low, high = x.aminmax()
            if not (torch.isfinite(low) and torch.isfinite(high)):
                if not x.isfinite().any():
                    return
                x = x.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
                low, high = x.aminmax()
            self.seen += 1
            self._take(x, low.clamp(max=0), high.clamp(min=0))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """What was found follows a change of device but never one of dtype."""

        def apply(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        super()._apply(apply, recurse)
        return self

    @abstractmethod
    def _take(self, x: Tensor, low: Tensor, high: Tensor) -> None:
        """Take the values of a batch into account, whose ends are low ≤ 0 and high ≥ 0."""

    def interval(self) -> tuple[float, float]:
        """(low ≤ 0, high ≥ 0) as it is known now."""
        return self.low.item(), self.high.item()

    def static(self) -> StaticScale:
        """What is stored in the end. Raises UsageError where nothing was observed."""
        # What was found from so much stays until more is seen: mse tries a hundred ranges.
        seen = int(self.seen), self.low.item(), self.high.item()
        if not seen[0]:
            raise UsageError("no activation was seen: run the model on some data first")
        if self._found is None or self._found[0] != seen:
            self._found = seen, scale_of(*self.interval(), self.symmetric)
        return self._found[1]

    def forward(self, x: Tensor, static: StaticScale | None = None) -> Tensor:
        """x, rounded; static: as this range was in an earlier pass."""
        with torch.no_grad():
            rounded, inside = fake_quantize(x, static or self.static())
        return clipped(x, rounded, inside)


def scale_of(low: float, high: float, symmetric: bool) -> StaticScale:
    """The scale of a range, as a float32 number; 1 for a range of nothing."""
    width = 2 * max(-low, high) / (LEVELS - 1) if symmetric else (high - low) / LEVELS
    scale = torch.tensor(width, dtype=torch.float32).item()
    if scale < torch.finfo(torch.float32).tiny:
        return StaticScale(1.0, 0)
    zero_point = 0 if symmetric else max(-128, min(127, round(-128 - low / scale)))
    return StaticScale(scale, zero_point)


class MinMax(Observer):
    def _take(self, x: Tensor, low: Tensor, high: Tensor) -> None:
        self.low.copy_(torch.minimum(self.low, low))
        self.high.copy_(torch.maximum(self.high, high))


class Ema(Observer):
    """Divided by the sum of the weights, so that the first batches do not count for more."""

    def __init__(self, symmetric: bool = False, decay: float = 0.9999, **options: Any) -> None:
        super().__init__(symmetric, **options)
        if not 0 <= decay < 1:
            raise UsageError(f"decay {decay} is outside 0 … 1")
        self.decay = decay

    def _take(self, x: Tensor, low: Tensor, high: Tensor) -> None:
        self.low.mul_(self.decay).add_(low, alpha=1 - self.decay)
        self.high.mul_(self.decay).add_(high, alpha=1 - self.decay)

    def interval(self) -> tuple[float, float]:
        total = 1 - self.decay ** int(self.seen)
        return self.low.item() / total, self.high.item() / total


class _Histogram(Observer):
    """Counts values in equal bins around 0, which double in width as larger ones come."""

    counts: Tensor
    edge: Tensor

    def __init__(self, symmetric: bool = False, **options: Any) -> None:
        super().__init__(symmetric, **options)
        self.register_buffer("counts", torch.zeros(BINS, dtype=torch.float64))
        self.register_buffer("edge", torch.zeros((), dtype=torch.float32))

    def _take(self, x: Tensor, low: Tensor, high: Tensor) -> None:
        self.low.copy_(torch.minimum(self.low, low))
        self.high.copy_(torch.maximum(self.high, high))
        largest = torch.maximum(-low, high)
        if not self.edge and largest:
            self.edge.copy_(largest)
        while self.edge < largest:
            # Pairs of bins become one, in the middle half.
            paired = self.counts.view(-1, 2).sum(1)
            self.counts.zero_()
            self.counts[BINS // 4 : -BINS // 4] = paired
            self.edge.mul_(2)
        if self.edge:
            self.counts += self._histogram(x)

    def _histogram(self, x: Tensor) -> Tensor:
        """What each bin gets: [BINS], float64. Values are counted by a sample. The first batch may
        be the only one, so its sample is larger. The few values far from 0 may cost most if the
        range leaves them out: each of them is counted in batches 1, 2, 4, 8, … To look for them in
        every batch would take up to a fifth of a training."""
        seen = int(self.seen)
        step = stride(x, max(COUNTED, FIRST_COUNTED // seen))
        first = (seen - 1) % step
        values, weights = x.flatten(), self._weights(x)
        sampled = torch.arange(first, x.numel(), step, device=x.device)
        near, beyond = sampled, sampled[:0]
        if not seen & (seen - 1):
            size = values[sampled].abs()
            far = size.topk(max(1, len(size) // FAR)).values[-1]
            near = sampled[size <= far]
            beyond = ((values > far) | (values < -far)).nonzero().flatten()

        def counted(places: Tensor) -> Tensor:
            bins = ((values[places] / self.edge + 1) * (BINS // 2)).long().clamp_(0, BINS - 1)
            return torch.bincount(bins, weights[places // width(x)], BINS)

        return counted(beyond) + counted(near) * ((len(values) - len(beyond)) / len(near))

    def _weights(self, x: Tensor) -> Tensor:
        """The weight of each row: [rows], float64."""
        return torch.ones(x.numel() // width(x), dtype=torch.float64, device=x.device)

    def _centers(self) -> Tensor:
        edge = self.edge.item()
        return (torch.arange(BINS, dtype=torch.float64) + 0.5) * (2 * edge / BINS) - edge


def width(x: Tensor) -> int:
    """The number of features."""
    return x.shape[-1] if x.ndim else 1


def stride(x: Tensor, enough: int) -> int:
    """The step that takes at least half of `enough` values, from all features alike; 1 if they are
    few."""
    step = max(1, x.numel() // enough)
    while math.gcd(step, width(x)) > 1:
        step += 1
    return step


class Percentile(_Histogram):
    def __init__(self, symmetric: bool = False, percentile: float = 99.99, **options: Any) -> None:
        super().__init__(symmetric, **options)
        if not 0 < percentile <= 100:
            raise UsageError(f"percentile {percentile} is outside 0 … 100")
        self.percentile = percentile

    def interval(self) -> tuple[float, float]:
        low, high = super().interval()
        counts = self.counts.cpu()
        outside = (1 - self.percentile / 100) * counts.sum().item()
        step = 2 * self.edge.item() / BINS
        if self.symmetric:
            folded = counts.view(2, -1)[1] + counts.view(2, -1)[0].flip(0)
            kept = int((folded.flip(0).cumsum(0) > outside).flip(0).sum())
            return max(low, -kept * step), min(high, kept * step)
        below = int((counts.cumsum(0) <= outside / 2).sum())
        above = int((counts.flip(0).cumsum(0) <= outside / 2).sum())
        edge = self.edge.item()
        return max(low, min(0.0, below * step - edge)), min(high, max(0.0, edge - above * step))


class LeastSquares(_Histogram):
    """Both ends are moved together, then each by itself: what follows a GELU is dense below 0 and
    sparse far above it, where an end can move alone.

    The squared error of a row has the weight 1/(r + r̄), where r is the row's root mean square and
    r̄ the mean over the rows of the batch. A few tokens of a transformer have activations a hundred
    times as large as all others ("massive activations", Sun et al. 2024). With equal weights, the
    range is that of these tokens, and the others have only a few codes. With 1/r alone, rows close
    to zero decide.
    """

    def _weights(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, width(x))
        if not USUAL[0] < self.edge < USUAL[1]:
            rows = rows / self.edge
        size = torch.linalg.vector_norm(rows, dim=-1).double() / math.sqrt(width(x))
        return torch.where(size > 0, 1 / (size + size.mean()), 0.0)

    def interval(self) -> tuple[float, float]:
        low, high = super().interval()
        parts = [part / CANDIDATES for part in range(1, CANDIDATES + 1)]
        low, high = self._best([(low * part, high * part) for part in parts])
        if self.symmetric:
            return low, high
        few = parts[COARSE - 1 :: COARSE]  # up to the whole
        low, high = self._best([(low, high * part) for part in few])
        return self._best([(low * part, high) for part in few])

    def _best(self, intervals: list[tuple[float, float]]) -> tuple[float, float]:
        """That of the least squared error."""
        tried = [scale_of(*interval, self.symmetric) for interval in intervals]
        # All at once, a row each: `fake_quantize` of one after the other takes ten times as long.
        scale, zero, lowest = (
            torch.tensor(column, dtype=torch.float32)[:, None]
            for column in zip(*((s.scale, s.zero_point, s.lowest) for s in tried), strict=True)
        )
        centers = self._centers().float()
        codes = (centers / scale).round_().add_(zero).clamp_(lowest, lowest.new_tensor(127))
        codes.sub_(zero).mul_(scale).sub_(centers).div_(self.edge.cpu())
        errors = codes.square_().double() @ self.counts.cpu()
        return intervals[int(errors.argmin())]


class Learned(Ema):
    """LSQ on activations: s starts from the range seen before it is first used."""

    def __init__(self, symmetric: bool = False, decay: float = 0.9999, **options: Any) -> None:
        super().__init__(symmetric, decay, **options)
        self.scale = nn.Parameter(torch.zeros((), dtype=torch.float32))

    def static(self) -> StaticScale:
        first = super().static()
        with torch.no_grad():
            if not self.scale:
                self.scale.fill_(first.scale)
        return StaticScale(max(abs(self.scale.item()), 1e-30), first.zero_point)

    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        # Zero points stay where the first use found them.
        if not self.scale:
            super().observe(x)

    def forward(self, x: Tensor, static: StaticScale | None = None) -> Tensor:
        static = static or self.static()
        with torch.no_grad():
            scale = torch.tensor(static.scale, dtype=torch.float32, device=x.device)
            low = scale * (static.lowest - static.zero_point)
            high = scale * (127 - static.zero_point)
            rounded, _ = fake_quantize(x, static)
        return learned_step(x, self.scale.abs(), rounded, scale, low, high, 127)


OBSERVERS: dict[str, type[Observer]] = {
    "ema": Ema,
    "minmax": MinMax,
    "percentile": Percentile,
    "mse": LeastSquares,
    "learned": Learned,
}
