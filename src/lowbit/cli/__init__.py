"""The command line: one file per verb, no arithmetic. Exit codes: 0, 2 wrong use, 1 the rest.

What a verb computes with takes seconds to import. It is imported when the verb begins, so that help
and errors in options come at once: the files of verbs import it inside their functions.
"""

import functools
import re
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from inspect import cleandoc
from keyword import iskeyword
from pathlib import Path
from typing import Annotated, Any

import typer

from lowbit.cli.failure import DEBUG, VERBATIM, fail, stop, without_debug
from lowbit.cli.version import Version
from lowbit.launch import Interrupted, leave_at_once, let_go, unwind

# Each is a function in the file of its name. There SETTINGS says how typer takes it, or `app` has
# sub-commands.
VERBS = (
    "quantize",
    "inspect",
    "eval",
    "report",
    "compare",
    "search",
    "sensitivity",
    "simulate",
    "train",
    "embed",
    "infer",
    "serve",
    "translate",
    "import",
    "export",
    "dequantize",
    "demo",
    "run",
)


def commands(arguments: Sequence[str]) -> typer.Typer:
    """All verbs: that of `arguments` whole, of the others the help alone."""
    app = typer.Typer(
        name="lowbit",
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode="markdown",
        pretty_exceptions_enable=False,
    )
    app.callback()(about)
    asked = next((argument for argument in arguments if not argument.startswith("-")), None)
    for verb in VERBS:
        if verb != asked:
            app.command(verb)(_described(verb))
            continue
        module = import_module(f"lowbit.cli.{_in_python(verb)}")
        if hasattr(module, "app"):
            for command in module.app.registered_commands:
                command.callback = _beginning(command.callback)
            app.add_typer(module.app, name=verb)
        else:
            run = getattr(module, _in_python(verb))
            run = run if verb == VERBATIM else _beginning(run)
            app.command(verb, **getattr(module, "SETTINGS", {}))(run)
    return app


def _beginning(verb: Callable[..., None]) -> Callable[..., None]:
    """The verb, after the imports that take seconds. A signal ends these at once: nothing is begun
    that could be undone."""

    @functools.wraps(verb)
    def run(*given: Any, **options: Any) -> None:
        import_module("lowbit.public")
        unwind()
        verb(*given, **options)

    return run


def about(
    version: Version = False,
    debug: Annotated[bool, typer.Option(DEBUG, help="Show the traceback of an error.")] = False,
) -> None:
    """Quantize Hugging Face transformers to 8 … 1 bits, and account for every byte."""


def main() -> None:
    """Run a command. Every error a user can cause is one sentence on standard error."""
    leave_at_once()
    arguments, debug = without_debug(sys.argv[1:])
    try:
        commands(arguments)(arguments)
    except Interrupted as signalled:
        stop(
            "interrupted; finished files are kept, and no file is incomplete",
            signalled.code,
        )
    except Exception as error:
        fail(error, arguments, debug)
    finally:
        let_go()


def _described(verb: str) -> Callable[[], None]:
    """A verb that has its help only, read from its file."""

    def nothing() -> None: ...

    source = Path(__file__).with_name(f"{_in_python(verb)}.py").read_text(encoding="utf-8")
    found = re.search(rf'^def {_in_python(verb)}\(.*?"""(.*?)"""', source, re.DOTALL | re.MULTILINE)
    assert found is not None
    nothing.__doc__ = cleandoc(found[1])
    return nothing


def _in_python(verb: str) -> str:
    """The name of its file and function: `import` is a word of Python's own."""
    return f"{verb}_" if iskeyword(verb) else verb
