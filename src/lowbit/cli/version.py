"""`lowbit --version`."""

from importlib.metadata import version
from typing import Annotated

import typer


def _say(asked: bool) -> None:
    if not asked:
        return
    # Not above: it loads the kernels, and --help should not wait for that.
    from lowbit.kernels import native

    told = [f"{package} {version(package)}" for package in ("lowbit", "torch", "transformers")]
    print(", ".join((*told, f"native kernels: {native.instruction_sets()}")))
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
