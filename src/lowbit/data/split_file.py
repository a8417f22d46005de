"""The one file of a split in a folder."""

from collections.abc import Sequence
from pathlib import Path

from lowbit.errors import InputError


def split_file(data: Path, patterns: Sequence[str]) -> Path:
    """`data` itself, or its one file with a name of these patterns if it is a folder. Raises
    InputError if there is none, or more than one."""
    if not data.is_dir():
        return data
    found = [file for each in patterns for file in sorted(data.glob(each)) if file.is_file()]
    wanted = " or ".join(patterns)
    if not found:
        raise InputError(f"{data} holds no file {wanted}")
    if len(found) > 1:
        names = ", ".join(file.name for file in found)
        raise InputError(f"{data} holds {len(found)} files {wanted} ({names}): leave one of them")
    return found[0]
