"""Options from a YAML file, an option whose value may be left out, a recipe in the wrong place."""

from collections.abc import Callable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand

from lowbit.checkpoint.documents import read_yaml
from lowbit.errors import InputError, UsageError


def shipped(package: str) -> dict[str, Path]:
    """The YAML files of a folder of lowbit, by name."""
    folder = Path(str(files("lowbit"))) / package
    return {file.stem: file for file in sorted(folder.glob("*.yaml"))}


def from_file(known: Mapping[str, Path]) -> Callable[[typer.Context, str | None], str | None]:
    """What an option such as --config does: the file, or one of those `known` by name, says what
    is not typed. Its keys are options as they are typed, without the dashes in front.

    Raises UsageError for a file that is no such mapping, and for a key that is no option.
    """

    def read(context: typer.Context, value: str | None) -> str | None:
        if value is None:
            return None
        # Of --this/--that, the second is the parameter's False.
        names = {
            spelled.lstrip("-").replace("-", "_"): (parameter.name, second)
            for parameter in context.command.params
            for second, spellings in enumerate((parameter.opts, parameter.secondary_opts))
            for spelled in spellings
            if parameter.name is not None and not parameter.is_eager  # a file names no other file
        }
        given: dict[str, Any] = {}
        for key, each in _mapping(known.get(value, Path(value)), known).items():
            name, second = names.get(str(key).replace("-", "_"), (None, 0))
            if name is None:
                raise UsageError(f"{value} has the key {key!r}, which is not an option")
            if name in given:
                raise UsageError(
                    f"{value} has the key {key!r}, and another one for the same option"
                )
            if second and not isinstance(each, bool):
                raise UsageError(f"{value}: {key} must be true or false, not {each!r}")
            bare = getattr(context.command, "bare", {})
            if each is True and name in bare:
                each = bare[name]
            given[name] = not each if second else each
        context.default_map = {**(context.default_map or {}), **given}
        return value

    return read


def _mapping(file: Path, known: Mapping[str, Path]) -> dict[str, Any]:
    try:
        found = read_yaml(file)
    except InputError as error:
        raise UsageError(f"settings {error}; shipped are {', '.join(known)}") from error
    if not isinstance(found, dict):
        raise UsageError(f"settings {file} is not a mapping of options to values")
    return found


def with_bare(option: str, value: str) -> type[TyperCommand]:
    """A command in which `option` alone, before another option or at the end, means `value`."""

    class WithBare(TyperCommand):
        bare = {option.lstrip("-"): value}

        def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
            said = []
            for place, argument in enumerate(args):
                said.append(argument)
                following = args[place + 1 : place + 2]
                if argument == option and (not following or following[0].startswith("-")):
                    said.append(value)
                elif argument == option:
                    _refuse_folder(option, value, following[0])
            return super().parse_args(ctx, said)

    return WithBare


def _refuse_folder(option: str, value: str, given: str) -> None:
    from lowbit.conversion.recipe import PRESETS

    # A training writes folders that are called as their recipes.
    if Path(given).is_dir() and given not in {*PRESETS, "none"}:
        raise UsageError(
            f"{option} takes the folder {given} for its value: write {option} {value}, or the"
            f" folder before {option}"
        )


class WithRecipeHint(TyperCommand):
    """A command that says what to write if a recipe is typed after the model."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        for before, argument in zip(args, args[1:], strict=False):
            if not before.startswith("-") and not argument.startswith("-"):
                _refuse_recipe(argument)
        return super().parse_args(ctx, args)


def _refuse_recipe(argument: str) -> None:
    from lowbit.conversion.recipe import PRESETS

    if argument in PRESETS or argument.endswith((".yaml", ".yml")):
        raise UsageError(f"write --recipe {argument}: only MODEL is without an option")
