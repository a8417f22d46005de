"""The command line: one file per verb, no arithmetic. Exit codes: 0, 2 wrong use, 1 the rest."""

import signal
import sys
from types import FrameType
from typing import Annotated, NoReturn

import typer

from lowbit.cli.compare import compare
from lowbit.cli.demo import demo
from lowbit.cli.dequantize import dequantize
from lowbit.cli.eval import eval
from lowbit.cli.export import export
from lowbit.cli.failure import DEBUG, fail, stop, without_debug
from lowbit.cli.import_ import import_
from lowbit.cli.infer import infer
from lowbit.cli.inspect import inspect
from lowbit.cli.quantize import quantize
from lowbit.cli.report import report
from lowbit.cli.run import run
from lowbit.cli.search import search
from lowbit.cli.sensitivity import sensitivity
from lowbit.cli.settings_file import with_bare
from lowbit.cli.train import train
from lowbit.cli.translate import translate
from lowbit.cli.version import Version
from lowbit.training.settings import EVERYTHING

app = typer.Typer(
    name="lowbit",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
VERBS = (
    quantize,
    inspect,
    eval,
    report,
    compare,
    search,
    sensitivity,
    train,
    infer,
    translate,
    import_,
    export,
    dequantize,
    demo,
    run,
)
# What follows the program's name is the program's.
VERBATIM = {"ignore_unknown_options": True, "allow_interspersed_args": False}
for verb in VERBS:
    app.command(
        verb.__name__.rstrip("_"),  # `import` is Python's own word
        context_settings=VERBATIM if verb is run else None,
        cls=with_bare("--qat", EVERYTHING) if verb is train else None,
    )(verb)


@app.callback()
def options(
    version: Version = False,
    debug: Annotated[bool, typer.Option(DEBUG, help="Show the traceback of an error.")] = False,
) -> None:
    """Quantize Hugging Face transformers to 8 … 1 bits, and account for every byte."""


class Interrupted(SystemExit):
    """A signal to stop. It unwinds the stack, so that half-written output is removed."""


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    raise Interrupted(128 + number)


def main() -> None:
    """Run a command. Every error a user can cause is one sentence on standard error."""
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGINT, _stop)
    arguments, debug = without_debug(sys.argv[1:])
    try:
        app(arguments)
    except Interrupted as signalled:
        stop(
            "interrupted; what was finished before is kept, nothing is half-written",
            signalled.code,
        )
    except Exception as error:
        fail(error, arguments, debug)
