"""`lowbit sensitivity`."""

import json
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.table import Table

from lowbit.cli.options import AsJson
from lowbit.cli.screen import Screen
from lowbit.errors import UsageError

if TYPE_CHECKING:
    from lowbit.evaluation.sensitivity import Sensitivity


def sensitivity(
    model: Annotated[str, typer.Argument(help="A folder with a float model.")],
    data: Annotated[
        str, typer.Option("--data", "--data-dir", help="Pairs of sentences; for a decoder, a text.")
    ],
    target: Annotated[
        str | None, typer.Option(help="The file with translations, if --data has only sources.")
    ] = None,
    source_column: Annotated[int, typer.Option(help="Column of a TSV file, counted from 1.")] = 1,
    target_column: Annotated[
        int | None,
        typer.Option(help="Column of translations.", show_default="the other of the first two"),
    ] = None,
    bits: Annotated[str, typer.Option(help="Numbers of bits to try, with commas.")] = "1,2,3,4",
    groups: Annotated[
        str, typer.Option(help="Weights of one scale: channel, group:64, …")
    ] = "group:64",
    solver: Annotated[
        str, typer.Option(help="Solver of binary codes: greedy or alternating.")
    ] = "alternating",
    items: Annotated[
        int | None, typer.Option(help="Pairs, or tokens of a text, to read.", show_default="all")
    ] = None,
    context: Annotated[
        int | None, typer.Option(help="Tokens in a window of a text.", show_default="the model's")
    ] = None,
    as_json: AsJson = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")] = False,
) -> None:
    """Print what each kind of sublayer costs if it alone is quantized, by bits.

    Example: `lowbit sensitivity ./out/float --data valid.tsv`
    """
    from lowbit.evaluation.evaluate import load_subject
    from lowbit.evaluation.sensitivity import sensitivity as measure
    from lowbit.evaluation.sensitivity import token_loss
    from lowbit.schemes import scheme_from_dict

    try:
        wanted = [int(number) for number in bits.split(",")]
    except ValueError:
        raise UsageError(f"bits {bits!r} must be numbers with commas between them") from None
    options = {"scheme": "binary", "granularity": groups, "solver": solver}
    schemes = {str(b): scheme_from_dict(options | {"bits": b}) for b in wanted}
    subject = load_subject(model)
    loss = token_loss(subject, data, target, source_column, target_column, items, context)
    found = measure(subject.model, loss, schemes, not (quiet or as_json))
    if as_json:
        print(json.dumps(found.to_dict()))
    else:
        Screen().print(price_table(found))


def price_table(found: "Sensitivity") -> Table:
    """One row per kind of sublayer, one column per number of bits: what is added to the loss."""
    table = Table(title=f"loss {found.loss:.4f} in float; more than that by bits", box=box.SIMPLE)
    table.add_column("alone in so many bits", overflow="fold")
    for name in ("modules", "weights", *found.prices[0].losses):
        table.add_column(name, justify="right")
    for price in found.prices:
        more = (f"{loss - found.loss:+.4f}" for loss in price.losses.values())
        table.add_row(price.kind, str(price.modules), f"{price.parameters:,}", *more)
    return table
