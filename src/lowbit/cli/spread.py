"""Options that live in dataclasses: each field is an option, each dataclass a panel of the help."""

import functools
import inspect
from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import is_dataclass
from typing import Annotated, Any, get_args

from typer.models import ArgumentInfo, OptionInfo


def spread(
    verb: Callable[..., None], defaults: Mapping[str, Any] | None = None
) -> Callable[..., None]:
    """Replace each parameter of `verb` that is a dataclass by that dataclass's fields.

    Args:
        verb: A function as typer takes it. The dataclass's `PANEL`, if any, heads its options.
        defaults: By name of a field, a default that takes the place of the field's own.
    """
    parameters: list[inspect.Parameter] = []
    classes: dict[str, Any] = {}
    for name, parameter in inspect.signature(verb, eval_str=True).parameters.items():
        if not is_dataclass(parameter.annotation):
            parameters.append(parameter)
            continue
        classes[name] = parameter.annotation
        panel = getattr(parameter.annotation, "PANEL", None)
        parameters += [
            _option(field, panel, defaults or {})
            for field in inspect.signature(classes[name], eval_str=True).parameters.values()
        ]
    # Arguments and required options have no default, and Python wants these first.
    parameters.sort(key=lambda p: (p.kind, p.default is not p.empty))

    @functools.wraps(verb)
    def run(**given: Any) -> None:
        for name, kind in classes.items():
            given[name] = kind(
                **{field: given.pop(field) for field in inspect.signature(kind).parameters}
            )
        verb(**given)

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    return run


def _option(
    field: inspect.Parameter, panel: str | None, defaults: Mapping[str, Any]
) -> inspect.Parameter:
    kind, told = get_args(field.annotation)
    assert isinstance(told, OptionInfo | ArgumentInfo)
    told = copy(told)
    told.rich_help_panel = panel
    return field.replace(
        kind=field.POSITIONAL_OR_KEYWORD,
        default=defaults.get(field.name, field.default),
        annotation=Annotated[kind, told],
    )
