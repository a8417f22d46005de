"""Output appears complete or not at all: written beside, renamed in one step."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from lowbit.errors import InputError, UsageError


def check_output(output: Path, overwrite: bool, source: Path | None) -> None:
    """Raises UsageError if `output` may not be written. `source` is what is read meanwhile."""
    if source is not None and source.resolve().is_relative_to(output.resolve()):
        raise UsageError(f"output {output} is or holds the model that is read")
    # A folder takes the output's place by renaming, which neither of these can bear.
    if Path.cwd().is_relative_to(output.resolve()):
        raise UsageError(f"output {output} is or holds the current folder: name a folder in it")
    if output.is_mount():
        raise UsageError(f"output {output} is a mount point: name a folder in it")
    if output.exists() and not output.is_dir():
        raise UsageError(f"output {output} is a file")
    if output.is_dir() and any(output.iterdir()):
        if not overwrite:
            raise UsageError(f"output {output} exists and is not empty (--overwrite replaces it)")
        if not (output / "config.json").is_file():
            raise UsageError(f"output {output} is no model folder, so it is not overwritten")


def check_file(output: Path) -> None:
    """Raises UsageError where the file `output` may not be written: asked before the work."""
    if output.is_dir():
        raise UsageError(f"output {output} would replace a folder")
    if not output.parent.is_dir():
        raise UsageError(f"output {output} has no folder to go into")


@contextmanager
def staged(output: Path) -> Iterator[Path]:
    """A folder beside `output` that takes its place at the end, or is removed on any failure.

    Where `output` is a symbolic link, what it points to is replaced, and the link stays.
    """
    output = output.resolve()
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    except OSError as error:
        raise InputError(f"{output.parent} cannot be written: {error.strerror}") from error
    try:
        yield folder
        _open_permissions(folder)
        if output.exists():
            # Two renames: at every moment either the old or the new folder is whole.
            old = folder.with_name(folder.name + ".old")
            output.rename(old)
            folder.rename(output)
            shutil.rmtree(old)
        else:
            folder.rename(output)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def writing(output: Path) -> Iterator[None]:
    """Libraries write files inside: what they raise where a disk is full is an InputError."""
    try:
        yield
    # torch's archive writer knows only RuntimeErrors.
    except (OSError, SafetensorError, RuntimeError) as error:
        raise InputError(f"{output} cannot be written: {error}") from error


@contextmanager
def staged_file(output: Path) -> Iterator[Path]:
    """A file beside `output` that takes its place at the end, or is removed on any failure."""
    try:
        handle, name = tempfile.mkstemp(prefix=f".{output.name[:64]}.", dir=output.parent)
    except OSError as error:
        raise InputError(f"{output.parent} cannot be written: {error.strerror}") from error
    os.close(handle)
    file = Path(name)
    try:
        yield file
        file.chmod(0o666 & ~_umask())
        file.replace(output)
    except OSError as error:
        raise InputError(f"{output} cannot be written: {error.strerror}") from error
    finally:
        file.unlink(missing_ok=True)


def _open_permissions(folder: Path) -> None:
    """Temporary folders and safetensors files are private; the user's umask says what is wanted."""
    umask = _umask()
    folder.chmod(0o777 & ~umask)
    for file in folder.glob("*.safetensors"):
        file.chmod(0o666 & ~umask)


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask
