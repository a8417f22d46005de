"""The options of a scheme, which are its fields, as plain values by name for recipes and
config.json. If an option is itself a scheme, its options are listed next to the others."""

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any, get_args

from lowbit.errors import UsageError
from lowbit.formats import Granularity
from lowbit.schemes.scheme import Scheme

# Newer options are written only if they differ from their default, so that older
# releases can read the rest.
LATER = ("scale_dtype", "zero")


def options_of(scheme: Scheme) -> dict[str, Any]:
    """All options as plain values by name, except those of LATER at their default."""
    written: dict[str, Any] = {}
    for f in fields(scheme):
        value = getattr(scheme, f.name)
        if isinstance(value, Scheme):
            written |= options_of(value)
        elif f.name not in LATER or value != f.default:
            written[f.name] = str(value) if isinstance(value, Granularity) else value
    return written


def with_options(scheme: Scheme, options: Mapping[str, Any]) -> Scheme:
    """`scheme` with other values of some options. Raises UsageError for an unknown option."""
    known, given = _types(scheme), dict(options)
    for key, value in given.items():
        if key not in known:
            raise UsageError(f"scheme {scheme.name} has no option {key!r}: use {', '.join(known)}")
        kinds = get_args(known[key]) or (known[key],)
        if Granularity in kinds:
            given[key] = Granularity.parse(value)
        elif type(value) not in kinds:
            takes = " or ".join(kind.__name__ for kind in kinds)
            raise UsageError(f"option {key} of scheme {scheme.name} takes {takes}, not {value!r}")
    return _changed(scheme, given)


def _types(scheme: Scheme) -> dict[str, Any]:
    """The type of every option by its name."""
    known: dict[str, Any] = {}
    for f in fields(scheme):
        value = getattr(scheme, f.name)
        known |= _types(value) if isinstance(value, Scheme) else {f.name: f.type}
    return known


def _changed(scheme: Scheme, given: Mapping[str, Any]) -> Scheme:
    own = {}
    for f in fields(scheme):
        value = getattr(scheme, f.name)
        own[f.name] = (
            _changed(value, given) if isinstance(value, Scheme) else given.get(f.name, value)
        )
    return replace(scheme, **own)
