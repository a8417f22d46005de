"""`lowbit --version`."""

from typing import Annotated

import typer

from lowbit.inspect.environment import describe


def _say(asked: bool) -> None:
    if not asked:
        return
    facts = describe()
    told = [f"{name} {facts[name]}" for name in ("lowbit", "torch", "transformers")]
    print(", ".join((*told, f"native kernels: {facts['native kernels']}")))
    raise typer.Exit


Version = Annotated[
    bool,
    typer.Option(
        "--version",
        callback=_say,
        is_eager=True,
        help="Print the versions and the native kernels that run here.",
    ),
]
