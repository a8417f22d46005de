"""The options of a scheme, which are its fields, as recipes and config.json have them: plain values
by name. A scheme that is an option of another has its own beside those of the other."""

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any, get_args

from lowbit.errors import UsageError
from lowbit.formats import Granularity
from lowbit.schemes.scheme import Scheme

# Options that came later: they are written only if they are not at their default, so that older
# releases read what they can hold.
LATER = ("scale_dtype", "zero")


def options_of(scheme: Scheme) -> dict[str, Any]:
    """Plain values by name, every option written out but for those of LATER at their default."""
    written: dict[str, Any] = {}
    for f in fields(scheme):
        value = getattr(scheme, f.name)
        if isinstance(value, Scheme):
            written |= options_of(value)
        elif f.name not in LATER or value != f.default:
            written[f.name] = str(value) if isinstance(value, Granularity) else value
    return written


def with_options(scheme: Scheme, options: Mapping[str, Any]) -> Scheme:
    """`scheme` with other values of some options. Raises UsageError for what it does not know."""
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
