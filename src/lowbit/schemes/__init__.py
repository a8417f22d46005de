"""Schemes: float weight [out, in] -> quantized tensor. One file each, and this table."""

from collections.abc import Mapping
from typing import Any

from lowbit.errors import check_choice
from lowbit.schemes.absmax import Absmax
from lowbit.schemes.binary import Binary
from lowbit.schemes.clustered import Clustered
from lowbit.schemes.k_quant import KQuant
from lowbit.schemes.options import options_of, with_options
from lowbit.schemes.scheme import Scheme
from lowbit.schemes.zero_point import ZeroPoint

SCHEMES: dict[str, type[Scheme]] = {
    s.name: s for s in (Absmax, ZeroPoint, KQuant, Binary, Clustered)
}


def scheme_from_dict(options: Mapping[str, Any]) -> Scheme:
    """{"scheme": "absmax", "bits": 8, …} -> Scheme. Raises UsageError if a name is unknown."""
    options = dict(options)
    name = options.pop("scheme", None)
    check_choice("scheme", name, tuple(SCHEMES))
    return with_options(SCHEMES[name](), options)


def scheme_to_dict(scheme: Scheme) -> dict[str, Any]:
    """The inverse of `scheme_from_dict`: plain values."""
    return {"scheme": scheme.name} | options_of(scheme)


__all__ = [
    "SCHEMES",
    "Absmax",
    "Binary",
    "Clustered",
    "KQuant",
    "Scheme",
    "ZeroPoint",
    "scheme_from_dict",
    "scheme_to_dict",
    "with_options",
]
