"""The formats that stand by themselves, by name, and how a stored layout is read."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lowbit.errors import InputError, LowbitError, check_choice
from lowbit.formats import affine, binary
from lowbit.formats.affine import AffineLayout, AffineTensor
from lowbit.formats.binary import BinaryLayout, BinaryTensor

PlainTensor = AffineTensor | BinaryTensor
PlainLayout = AffineLayout | BinaryLayout


@dataclass(frozen=True)
class Format:
    """One format of quantized tensors: its layout class and its pure functions. `prefix` is the
    tensor of the first planes, for a format that may have planes."""

    layout: type[Any]
    tensor: type[Any]
    decode: Callable[..., Any]
    decode_rows: Callable[..., Any]
    prefix: Callable[..., Any] | None = None


PLAIN = {
    "affine": Format(AffineLayout, AffineTensor, affine.decode, affine.decode_rows),
    "binary": Format(BinaryLayout, BinaryTensor, binary.decode, binary.decode_rows, binary.prefix),
}


def read_layout(stored: Mapping[str, Any], formats: Mapping[str, Format]) -> Any:
    """The inverse of `Layout.to_dict`. Raises InputError for a format or key it does not know."""
    name = str(stored.get("format"))
    check_choice("format", name, formats, error=InputError)
    try:
        return formats[name].layout.from_dict(stored)
    except LowbitError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"a stored layout is not complete or valid: {stored}") from error
