"""One entry of a stored layout, of the type that it must have."""

from collections.abc import Mapping
from typing import Any


def entry(stored: Mapping[str, Any], key: str, kind: type) -> Any:
    """stored[key]. Raises KeyError if it is not there, TypeError if it is no `kind`: "false", say,
    is not False."""
    if type(stored[key]) is not kind:
        raise TypeError(f"{key} is {stored[key]!r}, not of type {kind.__name__}")
    return stored[key]
