"""`lowbit search`."""

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from lowbit.checkpoint.atomic_write import check_file, staged_file
from lowbit.checkpoint.work_folder import claimed
from lowbit.cli.choices import MEASURES, SOLVERS
from lowbit.cli.options import AsJson, Measured, Quiet
from lowbit.cli.screen import Screen
from lowbit.cli.spread import spread
from lowbit.cli.tables import mebibytes
from lowbit.errors import UsageError
from lowbit.search.budget import Budget

if TYPE_CHECKING:
    from lowbit.search.outcome import Found


@spread
def search(
    model: Annotated[str, typer.Argument(help="A folder with a float model, or a hub id.")],
    measured: Measured,
    output: Annotated[Path, typer.Option("--output", "-o", help="The .yaml recipe to write.")],
    calibration: Annotated[
        str,
        typer.Option(
            help="A text on which the cost of each choice is measured. Do not use test data."
        ),
    ],
    max_bits: Annotated[
        float | None, typer.Option(help="Budget: bits per weight, everything counted.")
    ] = None,
    max_size: Annotated[
        str | None, typer.Option(help="Budget: bytes of all stored tensors, as 20MB or 19.5MiB.")
    ] = None,
    max_drop: Annotated[
        str | None, typer.Option(help="Budget: how much worse the metric may get, as 1%.")
    ] = None,
    schemes: Annotated[
        str, typer.Option(help="Presets to choose from, with commas. Float is always a choice.")
    ] = "int2,int3,int4,int8",
    keep: Annotated[
        list[str] | None,
        typer.Option(help="A pattern of modules that stay float, such as @head; repeatable."),
    ] = None,
    solver: Annotated[str, typer.Option(help=f"One of {', '.join(SOLVERS)}.")] = "nearest",
    sensitivity: Annotated[
        str, typer.Option(help=f"How the cost of a choice is estimated: {', '.join(MEASURES)}.")
    ] = ",".join(MEASURES),
    samples: Annotated[int, typer.Option(min=1, help="Windows or lines of --calibration.")] = 16,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = (
        False
    ),
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Find bits for each module under a budget, and write them as a recipe.

    Every recipe is made and evaluated before it is reported. If no recipe meets the budget, that is
    an error.

    Example: `lowbit search ./gpt2 --max-size 20MB --task perplexity --data valid.txt
    --calibration train.txt -o recipe.yaml`
    """
    from lowbit.calibration import texts
    from lowbit.conversion.recipe import schemes_of
    from lowbit.evaluation.evaluate import load_subject
    from lowbit.search.search import search as search_recipe
    from lowbit.solvers import load_solver

    if output.suffix not in (".yaml", ".yml"):
        raise UsageError(f"output {output} must be a .yaml file: it is a recipe")
    check_file(output, overwrite)
    budget = Budget.parse(max_size, max_bits, max_drop)
    plan = measured.plan()
    if not plan.tasks:
        raise UsageError("a search needs a --task to evaluate recipes on")
    if measured.shapes is not None:
        raise UsageError("--shapes says what to time: a search times nothing")
    # From the start: another run would search for hours before it is told.
    with claimed(output):
        subject = load_subject(model)
        data = texts.read(calibration, subject.model, subject.needed_tokenizer(), samples)
        found = search_recipe(
            subject,
            budget,
            plan.tasks[0],
            schemes_of(schemes.split(",")),
            data.batches,
            keep or (),
            solver,
            [name.strip() for name in sensitivity.split(",")],
            progress=not (quiet or as_json),
        )
        with staged_file(output) as unfinished:
            unfinished.write_text(found.best.recipe.to_yaml(), encoding="utf-8")
    if as_json:
        print(json.dumps(found.to_dict()))
    elif not quiet:
        console = Screen()
        console.print(choice_table(found))
        console.print(trial_table(found))
        for note in data.notes:
            console.print(f"note: {note}", soft_wrap=True)
        command = ["lowbit", "quantize", model, "--recipe", str(output)]
        if load_solver(solver).data:
            command += ["--calibration", calibration, "--samples", str(samples)]
        if solver != "nearest":
            command += ["--solver", solver]
        console.print(
            f"written to {output}: {shlex.join(command)} -o OUT",
            soft_wrap=True,
        )


def choice_table(found: "Found") -> Table:
    """One row per module of the best recipe, what costs most first."""
    table = Table(title="what each choice costs, all else in float", box=box.SIMPLE)
    for column in ("module", "stored as", "bits/weight", "size", "cost"):
        right = column not in ("module", "stored as")
        table.add_column(column, justify="right" if right else "left", overflow="fold")
    for choice in sorted(found.best.choices, key=lambda choice: -choice.cost):
        scheme = choice.scheme
        table.add_row(
            Text(choice.module),
            "float" if scheme is None else f"{scheme.name} {scheme.bits} {scheme.granularity}",
            f"{choice.bits_per_weight:.2f}",
            mebibytes(choice.stored_bytes),
            f"{choice.cost:.3g}",
        )
    return table


def trial_table(found: "Found") -> Table:
    """One row per recipe that was evaluated; the arrow is the one that was taken."""
    table = Table(title=f"evaluated: {found.metric}, {found.task}", box=box.SIMPLE)
    for column in ("", "recipe by", "bits/weight", "size", found.metric, "worse by"):
        table.add_column(column, justify="left" if column in ("", "recipe by") else "right")
    table.add_row(
        "", "float", "", mebibytes(found.float_bytes), f"{found.reference.value:,.5g}", ""
    )
    for trial in found.trials:
        table.add_row(
            "→" if trial is found.best else "",
            trial.by,
            f"{trial.bits_per_weight:.3f}",
            mebibytes(trial.stored_bytes),
            f"{trial.metric.value:,.5g}",
            f"{trial.drop:+.3%}",
        )
    return table
