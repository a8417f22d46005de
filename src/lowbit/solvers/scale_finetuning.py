"""Scale fine-tuning: after all codes are found, train the scales of all layers together.

    min over δ   Σ distance(float model, model with scales t + |t| δ)

t: the float tensors of the stored weights (scales, and the offsets of binary codes), rounded as
they are stored, with straight-through gradients; codes do not change. The distance is that of the
whole model's predictions (outputs.py), whereas solvers only see their own layer or block. Adam runs
on all batches in turn, with a cosine schedule. The result is kept if it is better over all batches.

Sources: Chen et al. 2024, "EfficientQAT", section 3.3, for scales trained end to end; Tseng et al.
2024, "QuIP#", section 5, for the float model's outputs in place of labels.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from lowbit.conversion.module_weights import oriented
from lowbit.conversion.plan import Quantize
from lowbit.formats import QTensor, decode
from lowbit.nn.estimators import straight_through
from lowbit.progress import progress_bar
from lowbit.solvers.outputs import output

RATE, BETAS = 5e-3, (0.9, 0.99)
# Limits δ, so that no scale changes its sign or grows many times.
LIMITS = -0.5, 1.0


class Scales:
    """A quantized tensor with `changes` δ to its float tensors, by name."""

    def __init__(self, q: QTensor) -> None:
        self.q, self.tensors = q, q.tensors()
        self.changes = {
            name: torch.zeros_like(t, dtype=torch.float32, requires_grad=True)
            for name, t in self.tensors.items()
            if t.is_floating_point()
        }

    def stored(self) -> QTensor:
        """The changed tensor. If gradients are enabled, scales are float32 and have gradients."""
        moved = {}
        for name, change in self.changes.items():
            t = self.tensors[name]
            exact = t.float() + t.float().abs() * change
            as_stored = exact.detach().to(t.dtype)
            moved[name] = as_stored
            if torch.is_grad_enabled():
                moved[name] = straight_through(exact, as_stored.float())
        return self.q.layout.assemble(self.tensors | moved, self.q.in_features)


class Tuning:
    """The quantized weights of `owners` in `model`. before: the parameters of the float model that
    differ from those of `model`, by name."""

    def __init__(
        self,
        model: nn.Module,
        owners: Sequence[Quantize],
        stored: Mapping[str, QTensor],
        before: Mapping[str, Tensor],
    ) -> None:
        self.model, self.owners, self.before = model, owners, before
        self.scales = {d.name: Scales(stored[d.name]) for d in owners}

    @property
    def changes(self) -> list[Tensor]:
        return [change for scales in self.scales.values() for change in scales.changes.values()]

    def stored(self) -> dict[str, QTensor]:
        return {name: scales.stored() for name, scales in self.scales.items()}

    def distance(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, float]:
        """The distance of predictions from those of the float model, as a fraction."""
        with torch.no_grad():
            wanted, distance = output(self.model, batch, self.before)
        weights = {}
        for d in self.owners:
            q, own = self.scales[d.name].stored(), d.weight.of(self.model)
            decoded = decode(q)
            weights[str(d.weight)] = oriented(decoded, d.weights).to(own.dtype)
        found, _ = output(self.model, batch, weights)
        return distance.part(wanted, found), distance.whole(wanted)


def tune(
    model: nn.Module,
    owners: Sequence[Quantize],
    stored: Mapping[str, QTensor],
    before: Mapping[str, Tensor],
    batches: Sequence[Mapping[str, Tensor]],
    passes: int,
    progress: bool = True,
) -> tuple[dict[str, QTensor], float, float]:
    """The quantized weights after `passes` passes over the batches, and the mean distance from the
    float model before and after. The model does not change."""
    tuning = Tuning(model, owners, stored, before)
    changes = tuning.changes
    adam = torch.optim.Adam(changes, lr=RATE, betas=BETAS)
    steps = passes * len(batches)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
    with progress_bar(steps + 2 * len(batches), "tuning scales", "batch", progress) as bar:

        def mean() -> float:
            part = whole = 0.0
            with torch.no_grad():
                for batch in batches:
                    own, count = tuning.distance(batch)
                    part, whole = part + own.item(), whole + count
                    bar.update()
            return part / max(whole, torch.finfo(torch.float32).tiny)

        start = mean()
        for _ in range(passes):
            for batch in batches:
                with torch.enable_grad():
                    part, whole = tuning.distance(batch)
                    loss = part / max(whole, torch.finfo(torch.float32).tiny)
                    # Only for these: other parameters of the model may have requires_grad too.
                    gradients = torch.autograd.grad(loss, changes, allow_unused=True)
                for change, gradient in zip(changes, gradients, strict=True):
                    change.grad = gradient
                adam.step()
                falling.step()
                with torch.no_grad():
                    for change in changes:
                        change.clamp_(*LIMITS)
                bar.update()
        end = mean()
    with torch.no_grad():
        return (tuning.stored(), start, end) if end < start else (dict(stored), start, start)
