"""Sequential calibration: each stage is solved on the outputs of the quantized earlier stages.

For each stage: rotate its heads if requested, observe the inputs of its layers, solve their
weights, insert the decoded weights, and run the data through the stage. At the end, fine-tune all
scales together if requested. Activations stay float during calibration, even if the recipe
quantizes them.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeGuard

import torch
from torch import Tensor, nn

from lowbit.calibration import device_of
from lowbit.conversion.dequantize import put
from lowbit.conversion.module_weights import matrix
from lowbit.conversion.plan import Plan, Quantize
from lowbit.formats import decode
from lowbit.nn.eval_mode import evaluating
from lowbit.progress import tracked
from lowbit.solvers import FindFactors, Solver
from lowbit.solvers.block import Block
from lowbit.solvers.block_runner import Playback, playing
from lowbit.solvers.blocks import Stage, find_stages
from lowbit.solvers.folding import fold
from lowbit.solvers.hessian import Inputs, is_singular
from lowbit.solvers.observe import Observed, linear_users, observe
from lowbit.solvers.resume import Journal, Solved, fingerprint
from lowbit.solvers.rotation import rotate
from lowbit.solvers.scale_finetuning import tune

UNSEEN = "met by no token, and so solved without data"
UNROTATED = "with no heads that could be rotated"
UNFOLDED = "with no producer that could absorb scales per input, and so without them"
SINGULAR = "with a singular Hessian, which was damped (more data helps)"


@contextmanager
def solved_sequentially(
    model: nn.Module,
    plan: Plan,
    solver: Solver,
    batches: Sequence[Mapping[str, Tensor]],
    work: Path | None = None,
    progress: bool = True,
) -> Iterator[Solved]:
    """A context with the quantized tensors of all weights of `plan`, solved on model inputs.

    Inside, the model is float, with its weights before rounding and with folded scales and
    rotations. If anything fails, also inside, the model is left unchanged.

    work: a folder for finished stages, from which an interrupted calibration continues.
    """
    before = {name: p.data for name, p in model.named_parameters()}
    journal = None
    try:
        if work is not None:
            data = [batch[name] for batch in batches for name in sorted(batch)]
            journal = Journal(
                work,
                {
                    "recipe": plan.recipe.to_dict(),
                    "solver": solver.to_dict(),
                    "weights": fingerprint(list(before.values())),
                    "calibration data": fingerprint(data),
                },
                device_of(model),
            )
        with evaluating(model), playing(model):
            found = _solve_stages(model, before, plan.owners, solver, batches, journal, progress)
            if solver.tune:
                found.stored, *distances = tune(
                    model, plan.owners, found.stored, before, batches, solver.tune, progress
                )
                found.tuned = distances[0], distances[1]
        for name, p in model.named_parameters():
            p.data = before[name]
        for name, values in found.floats.items():
            model.get_parameter(name).data = values
        yield found
    except BaseException:
        for name, p in model.named_parameters():
            p.data = before[name]
        if journal is not None:
            journal.drop_if_unused()
        raise


def _solve_stages(
    model: nn.Module,
    before: Mapping[str, Tensor],
    owners: Sequence[Quantize],
    solver: Solver,
    batches: Sequence[Mapping[str, Tensor]],
    journal: Journal | None,
    progress: bool,
) -> Solved:
    stages = find_stages(model, owners, batches[0])
    playback, found = Playback(model, batches), Solved()
    reference = Playback(model, batches, before) if solver.method.solve_block else None
    for number, stage in enumerate(tracked(stages, f"solving ({solver.name})", "stage", progress)):
        if reference is not None:
            reference.advance(stage)
        solved = journal.read(number) if journal else None
        if solved is None:
            solved = _solve(playback, reference, stage, solver, progress)
            if journal:
                journal.write(number, solved)
        for name, values in solved.floats.items():
            model.get_parameter(name).data = values
        for d in stage.decisions:
            put(model, d, solved.stored[d.name])
        found.add(solved)
        playback.advance(stage)
    return found


def _solve(
    playback: Playback, reference: Playback | None, stage: Stage, solver: Solver, progress: bool
) -> Solved:
    found, model = Solved(), playback.model
    if not stage.decisions:
        return found
    if solver.rotate and stage.stack is not None:
        _rotate(playback, stage, found)
    users = linear_users(playback, stage.decisions)
    seen = observe(playback, stage, users)
    if solver.method.factors is not None:
        _fold(playback, stage, solver.method.factors, users, seen, found)
    weights = {}
    for d in stage.decisions:
        weights[d.name] = d.matrix(model).float()
        if d.weights.kind == "linear" and not _met(seen.of(d.name)):
            found.remark(UNSEEN, d.name)
    together = solver.method.solve_block
    if together is not None and reference is not None and stage.stack is not None:
        schemes = {d.name: d.scheme for d in stage.decisions}
        found.stored |= together(
            weights, schemes, Block(playback, reference, stage), progress, **solver.options
        )
    else:
        for d in stage.decisions:
            needed = solver.method.data
            hessian = _hessian(d, seen, found, weights[d.name]) if needed else None
            found.stored[d.name] = solver.solve(d, weights[d.name], hessian)
    for d in stage.decisions:
        inputs, bias = seen.of(d.name), model.get_submodule(d.weight.module)._parameters.get("bias")
        if solver.correct_bias and bias is not None and inputs is not None:
            q = found.stored[d.name]
            left = weights[d.name] - decode(q)
            found.floats[f"{d.weight.module}.bias"] = (bias.data + left @ inputs.mean).to(
                bias.dtype
            )
    return found


def _rotate(playback: Playback, stage: Stage, found: Solved) -> None:
    """Rotate the heads of a block; float parameters change."""
    changed = rotate(playback, stage)
    for name in changed:
        found.floats[name] = playback.model.get_parameter(name).data.clone()
    if not changed:
        found.remark(UNROTATED, stage.name)


def _fold(
    playback: Playback,
    stage: Stage,
    factors: FindFactors,
    users: Mapping[str, nn.Module],
    seen: Observed,
    found: Solved,
) -> None:
    """Fold a scale per input out of the weights of a stage; float parameters change."""
    by_name = {d.name: d for d in stage.decisions}

    def factors_of(names: list[str]) -> Tensor:
        weights, schemes = [], []
        for name in names:
            d = by_name[name]
            weights.append(matrix(users[name], d.weights).float())
            schemes.append(d.scheme)
        inputs = seen.of(names[0])
        assert inputs is not None
        return factors(weights, inputs, schemes)

    changed, left = fold(playback, stage, users, seen, factors_of)
    for name in changed:
        found.floats[name] = playback.model.get_parameter(name).data.clone()
    for name in left:
        found.remark(UNFOLDED, name)


def _hessian(d: Quantize, seen: Observed, found: Solved, weight: Tensor) -> Tensor:
    """The Hessian for a weight. For an embedding it is the identity, because rows are read
    directly; if a head is tied to it, the head's Hessian is added with equal weight."""
    inputs = seen.of(d.name)
    eye = torch.eye(weight.shape[1], dtype=torch.float32, device=weight.device)
    if not _met(inputs):
        return eye
    if d.weights.kind == "embedding":
        return inputs.hessian / inputs.hessian.diagonal().mean() + eye
    if is_singular(inputs.hessian):
        found.remark(SINGULAR, d.name)
    return inputs.hessian


def _met(inputs: Inputs | None) -> TypeGuard[Inputs]:
    return inputs is not None and inputs.tokens > 0
