"""`lowbit run`."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from lowbit.errors import UsageError

STARTUP = Path(__file__).parent / "startup"
# What follows the program's name is the program's.
SETTINGS = {"context_settings": {"ignore_unknown_options": True, "allow_interspersed_args": False}}


def run(
    program: Annotated[
        list[str], typer.Argument(help="A program and its arguments.", metavar="PROGRAM")
    ],
) -> None:
    """Run a Python program with lowbit imported, so that it can load quantized models.

    Exit code and signals are those of the program. Processes that it starts import lowbit too.

    Example: `lowbit run -- python script.py ./bert-base-int4`

    Example: `lowbit run -- lm_eval run --model hf --model_args pretrained=./gpt2 --tasks wikitext`
    """
    try:
        os.execvpe(program[0], program, environment(os.environ))
    except FileNotFoundError:
        raise UsageError(f"there is no program {program[0]}") from None
    except ValueError:  # no text that could be a name or an argument
        raise UsageError(f"{program} cannot be run: an empty name, or a null character") from None
    except OSError as error:
        raise UsageError(
            f"{program[0]} cannot be run ({error.strerror}). If it is a script, write"
            f" lowbit run -- python {program[0]}"
        ) from None


def environment(before: Mapping[str, str]) -> dict[str, str]:
    """The same, in which every Python imports startup/sitecustomize.py first."""
    path = [str(STARTUP), *filter(None, [before.get("PYTHONPATH")])]
    return {**before, "PYTHONPATH": os.pathsep.join(path)}
