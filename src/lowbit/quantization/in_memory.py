"""Quantize a model in place, with calibration data if the recipe or the solver needs them."""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from lowbit.calibration import Calibration, batches_of
from lowbit.checkpoint.work_folder import claimed
from lowbit.conversion.apply import Result, quantize_with
from lowbit.conversion.default_recipe import choose, named
from lowbit.conversion.plan import check_no_experts, make_plan
from lowbit.conversion.recipe import Recipe
from lowbit.errors import UsageError
from lowbit.qat.calibrate import calibrate
from lowbit.qat.prepare import QatOptions, check_unprepared
from lowbit.solvers import Solver, load_solver
from lowbit.solvers.sequential import solved_sequentially


def quantize(
    model: nn.Module,
    recipe: str | Path | Recipe | Mapping[str, Any] | None = None,
    progress: bool = True,
    calibration: Calibration | None = None,
    options: QatOptions | None = None,
    solver: str | Mapping[str, Any] | Solver = "nearest",
    work: str | Path | None = None,
) -> Result:
    """Quantize a model in place.

    Args:
        model: A transformers model or any other `torch.nn.Module`. Its class does not change.
        recipe: A preset ("int4", "int8-dynamic", …), a `Recipe`, a mapping, or the path of a YAML
            file. None: int4-head8-dynamic for models that generate token by token, else
            int8-all-dynamic. The result's notes name the recipe and the reason.
        progress: Show a progress bar if quantization takes more than two seconds.
        calibration: Data for solvers and static activations: token ids int64 [samples, length] for
            a transformers model, or any iterable of mappings of model inputs.
        options: How to find the ranges of static activations. None: the least squared error.
        solver: How to choose the codes: "nearest", "gptq", … (docs/solvers.md), or a mapping with
            the solver's name and options.
        work: A folder in which a solver keeps finished layers. The same call continues from it.

    Returns:
        The plan, sizes in bytes before and after, the error of each weight, and notes.

    Raises:
        UsageError: if `model` is not a module, the recipe or the solver is unknown, a pattern
            matches nothing, or calibration data are missing or superfluous.
        InputError: if a weight is not finite or is computed from others (pruned, parametrized),
            or if the model is already quantized or has adapters.

    On error, the model is left unchanged.
    """
    if not isinstance(model, nn.Module):
        raise UsageError(f"a torch.nn.Module is needed, not {type(model).__name__}")
    given, how = named(recipe), load_solver(solver)
    folder = None if work is None else Path(work)
    chosen, why = choose(model, given)
    result = quantize_by(model, chosen, how, progress, calibration, options, folder)
    return replace(result, notes=why + result.notes)


def quantize_by(
    model: nn.Module,
    recipe: Recipe,
    solver: Solver,
    progress: bool,
    calibration: Calibration | None,
    options: QatOptions | None,
    work: Path | None,
) -> Result:
    """Quantize with a loaded recipe and a loaded solver. Else the same as `quantize`."""
    static = any(rule.is_static for rule in recipe.rules)
    if calibration is None:
        if solver.data:
            raise UsageError(
                f"{solver.learner} learns from data: give calibration data (--calibration FILE)"
            )
        return quantize_with(model, make_plan(model, recipe), solver.solve, {}, progress)
    if not static and not solver.data:
        raise UsageError(
            f"recipe {recipe.name} has no static activations, and solver {solver.name} needs no"
            " data: leave calibration out"
        )
    batches = batches_of(calibration, model)
    if static:
        check_unprepared(model)
    plan = make_plan(model, recipe)
    if not solver.data:
        inputs = calibrate(model, plan, batches, options, progress)
        return quantize_with(model, plan, solver.solve, inputs, progress)
    check_no_experts(plan, solver.learner)
    # Only one run at a time may use a folder of finished stages.
    alone = nullcontext() if work is None else claimed(work)
    with alone, solved_sequentially(model, plan, solver, batches, work, progress) as solved:
        inputs = calibrate(model, plan, batches, options, progress) if static else {}
        result = quantize_with(model, plan, lambda d, _: solved.stored[d.name], inputs, progress)
    return replace(result, notes=solved.notes())
