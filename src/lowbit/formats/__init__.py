"""The two stored forms. One file each: layout, frozen data, and the pure functions beside them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lowbit.errors import InputError, LowbitError
from lowbit.formats import affine, binary
from lowbit.formats.affine import AffineLayout, AffineTensor
from lowbit.formats.binary import BinaryLayout, BinaryTensor
from lowbit.formats.granularity import CHANNEL, TENSOR, Granularity, group
from lowbit.formats.static_scale import StaticScale, fake_quantize

QTensor = AffineTensor | BinaryTensor
Layout = AffineLayout | BinaryLayout


@dataclass(frozen=True)
class Format:
    """One stored form: its layout class and its pure functions."""

    layout: type[Layout]
    tensor: type[QTensor]
    decode: Callable[..., Any]
    take_rows: Callable[..., Any]


FORMATS = {
    "affine": Format(AffineLayout, AffineTensor, affine.decode, affine.take_rows),
    "binary": Format(BinaryLayout, BinaryTensor, binary.decode, binary.take_rows),
}


def layout_from_dict(stored: Mapping[str, Any]) -> Layout:
    """The inverse of `Layout.to_dict`. Raises InputError for a format or key it does not know."""
    known = FORMATS.get(str(stored.get("format")))
    if known is None:
        raise InputError(f"format {stored.get('format')!r} is unknown: use {', '.join(FORMATS)}")
    try:
        return known.layout.from_dict(stored)
    except LowbitError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"a stored layout is not complete or valid: {stored}") from error


__all__ = [
    "CHANNEL",
    "FORMATS",
    "TENSOR",
    "AffineLayout",
    "AffineTensor",
    "BinaryLayout",
    "BinaryTensor",
    "Format",
    "Granularity",
    "Layout",
    "QTensor",
    "StaticScale",
    "fake_quantize",
    "group",
    "layout_from_dict",
]
