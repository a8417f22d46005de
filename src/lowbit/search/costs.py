"""What it costs to store one module otherwise, everything else staying float.

*divergence*: how far the model's predictions move (solvers/outputs.py): the mean KL divergence per
    token in nats where it has logits, else the squared error of its output relative to the output.
*hessian*: how far the module's own output moves: tr(E H Eᵀ) / tr(W H Wᵀ), E = W − Ŵ. One pass over
    the data for all modules and schemes, but blind to what the rest of the model makes of it.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lowbit.conversion.dequantize import rounded
from lowbit.formats import decode
from lowbit.nn.eval_mode import evaluating
from lowbit.progress import progress_bar, tracked
from lowbit.search.candidates import Candidate
from lowbit.solvers.block_runner import Playback, playing
from lowbit.solvers.blocks import find_stages
from lowbit.solvers.hessian import weight_error
from lowbit.solvers.observe import linear_users, observe
from lowbit.solvers.outputs import output

Costs = list[list[float]]
Batches = Sequence[Mapping[str, Tensor]]


def by_divergence(
    model: PreTrainedModel,
    candidates: Sequence[Sequence[Candidate]],
    batches: Batches,
    progress: bool = True,
) -> Costs:
    """Put in every candidate by itself and compare outputs. The model is as before at the end."""
    costs = [[0.0] * len(options) for options in candidates]
    whole = 0.0
    runs = len(batches) * sum(c.stored is not None for options in candidates for c in options)
    with (
        evaluating(model),
        progress_bar(runs, "divergence of each choice", "run", progress) as bar,
    ):
        for batch in batches:
            wanted, distance = output(model, batch)
            whole += distance.whole(wanted)
            for own, options in zip(costs, candidates, strict=True):
                for i, candidate in enumerate(options):
                    if candidate.stored is not None:
                        with rounded(model, [(candidate.decision, candidate.stored)]):
                            found, _ = output(model, batch)
                        # float32 terms cancel to about 1e-7 of a nat, on either side of 0.
                        own[i] += distance.part(wanted, found).clamp(min=0).item()
                        bar.update()
    return [[cost / max(whole, torch.finfo(torch.float32).tiny) for cost in own] for own in costs]


def by_hessian(
    model: PreTrainedModel,
    candidates: Sequence[Sequence[Candidate]],
    batches: Batches,
    progress: bool = True,
) -> Costs:
    """The relative error of each module's output. What meets no token, and the rows of an
    embedding, which are read as they are, count all inputs alike."""
    costs: dict[str, list[float]] = {}
    by_module = {options[0].module: options for options in candidates}
    decisions = [options[0].decision for options in candidates]
    with evaluating(model), playing(model):
        playback = Playback(model, [dict(batch) for batch in batches])
        stages = find_stages(model, decisions, playback.batches[0])
        for stage in tracked(stages, "inputs of each module", "stage", progress):
            seen = observe(playback, stage, linear_users(playback, stage.decisions))
            for d in stage.decisions:
                inputs = seen.of(d.name)
                hessian = inputs.hessian if inputs is not None and inputs.tokens else None
                costs[d.name] = [_relative(model, c, hessian) for c in by_module[d.name]]
            playback.advance(stage)
    return [costs[options[0].module] for options in candidates]


def _relative(model: PreTrainedModel, candidate: Candidate, hessian: Tensor | None) -> float:
    q = candidate.stored
    if q is None:
        return 0.0
    weight = candidate.decision.matrix(model).float()
    if hessian is None:
        hessian = torch.eye(weight.shape[1], dtype=torch.float32, device=weight.device)
    error = weight_error(weight - decode(q), hessian).sum()
    whole = weight_error(weight, hessian).sum()
    return float(error / whole.clamp_min(torch.finfo(torch.float32).tiny))


Measure = Callable[[PreTrainedModel, Sequence[Sequence[Candidate]], Batches, bool], Costs]
MEASURES: dict[str, Measure] = {"divergence": by_divergence, "hessian": by_hessian}
