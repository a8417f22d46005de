"""Schemes: float weight [out, in] -> stored form. One file each, and this table."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Protocol, get_args, runtime_checkable

from torch import Tensor

from lowbit.errors import UsageError
from lowbit.formats import Granularity, QTensor
from lowbit.schemes.absmax import Absmax
from lowbit.schemes.binary import Binary
from lowbit.schemes.clustered import Clustered
from lowbit.schemes.zero_point import ZeroPoint


@runtime_checkable
class Scheme(Protocol):
    """What a scheme is: a frozen dataclass with a name, bits, a granularity, and `quantize`."""

    @property
    def name(self) -> str: ...
    @property
    def bits(self) -> int: ...
    @property
    def granularity(self) -> Granularity: ...
    def quantize(self, weight: Tensor) -> QTensor: ...


# Options that came later: they are written only if they are not at their default, so that older
# releases read what they can hold.
LATER = ("scale_dtype",)

SCHEMES: dict[str, type[Scheme]] = {s.name: s for s in (Absmax, ZeroPoint, Binary, Clustered)}


def scheme_from_dict(options: Mapping[str, Any]) -> Scheme:
    """{"scheme": "absmax", "bits": 8, …} -> Scheme. Raises UsageError for what is unknown."""
    options = dict(options)
    name = options.pop("scheme", None)
    if not isinstance(name, str) or name not in SCHEMES:
        raise UsageError(f"scheme {name!r} is unknown: use {', '.join(SCHEMES)}")
    known = {field.name: field.type for field in fields(SCHEMES[name])}  # type: ignore[arg-type]
    for key, value in options.items():
        if key not in known:
            raise UsageError(f"scheme {name} has no option {key!r}: use {', '.join(known)}")
        kinds = get_args(known[key]) or (known[key],)
        if Granularity not in kinds and type(value) not in kinds:
            takes = " or ".join(kind.__name__ for kind in kinds)
            raise UsageError(f"option {key} of scheme {name} takes {takes}, not {value!r}")
    if "granularity" in options:
        options["granularity"] = Granularity.parse(options["granularity"])
    return SCHEMES[name](**options)


def scheme_to_dict(scheme: Scheme) -> dict[str, Any]:
    """The inverse of `scheme_from_dict`: plain values, every option written out but for those of
    LATER at their default."""
    options = {
        f.name: getattr(scheme, f.name)
        for f in fields(scheme)  # type: ignore[arg-type]
        if f.name not in LATER or getattr(scheme, f.name) != f.default
    }
    return {"scheme": scheme.name} | options | {"granularity": str(scheme.granularity)}


__all__ = [
    "SCHEMES",
    "Absmax",
    "Binary",
    "Clustered",
    "Scheme",
    "ZeroPoint",
    "scheme_from_dict",
    "scheme_to_dict",
]
