"""Output appears complete or not at all: written beside (work_folder.py), then renamed."""

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from lowbit.checkpoint.work_folder import NEW, claimed, output_of, recover, replace
from lowbit.errors import InputError, UsageError

try:
    import resource
except ImportError:  # Windows has no such limits
    resource = None  # type: ignore[assignment]

# What the system says of a disk, and not of the file that is written; and what to do.
ELSEWHERE = "name an output on another disk"
OF_DISKS = {
    errno.ENOSPC: f"free space there, or {ELSEWHERE}",
    errno.EDQUOT: f"free space there, or {ELSEWHERE}",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f), or write smaller ones"
    " (--max-shard-size, where the command has it)",
    errno.EROFS: ELSEWHERE,
    # An overlay cannot move a folder of its lower layer, such as one of a container's image.
    errno.EXDEV: "what is there cannot be moved: remove it, or name another output",
}
# safetensors has no other place for it.
NUMBER = re.compile(r"\(os error (\d+)\)")
# torch's archive writer says only that a file is shorter than it should be.
ARCHIVE = re.compile("inline_container|PyTorchStreamWriter")
FULL = 1 << 20  # a disk with less free space, in bytes, is full


def check_output(output: Path, overwrite: bool, source: Path | None) -> None:
    """Raises UsageError if `output` may not be written, or another run writes it. `source` is what
    is read meanwhile."""
    recover(output)
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
            raise UsageError(f"output {output} is not a model folder, so it is not overwritten")


def check_file(output: Path, overwrite: bool) -> None:
    """Raises UsageError if the file `output` may not be written, or another run writes it: asked
    before the work."""
    recover(output)
    if output.is_dir():
        raise UsageError(f"output {output} would replace a folder")
    if not output.parent.is_dir():
        raise UsageError(f"output {output} has no folder to go into")
    if output.exists() and not overwrite:
        raise UsageError(f"output {output} exists (--overwrite replaces it)")


@contextmanager
def staged(output: Path) -> Iterator[Path]:
    """A folder that takes the place of `output` at the end, or is removed on any failure.

    If `output` is a symbolic link, what it points to is replaced, and the link stays.

    Raises UsageError if another run writes `output`, InputError if it cannot be written.
    """
    output = output.resolve()
    with claimed(output) as work, _naming(output, work):
        new = work / NEW
        new.mkdir()
        with _staying(new):
            yield new
        _open_permissions(new)
        replace(work, output)


@contextmanager
def writing(output: Path) -> Iterator[None]:
    """Libraries write `output`, or a part of what becomes it, inside: what they raise where a disk
    is full is an InputError."""
    try:
        yield
    # torch's archive writer knows only RuntimeErrors.
    except (OSError, SafetensorError, RuntimeError) as error:
        raise _refusal(output_of(output), error) from error


@contextmanager
def staged_file(output: Path) -> Iterator[Path]:
    """A file that takes the place of `output` at the end, or is removed on any failure. Raises as
    `staged` does."""
    output = output.resolve()
    with claimed(output) as work, _naming(output, work):
        new = work / NEW
        new.touch()
        yield new
        new.chmod(0o666 & ~_umask())
        replace(work, output)


@contextmanager
def _staying(folder: Path) -> Iterator[None]:
    """Raises InputError if the folder is another at the end: libraries make one that is missing,
    and so would go on with half an output."""
    held = os.open(folder, os.O_RDONLY)  # so that no other gets its number
    try:
        yield
        if not folder.is_dir() or not os.path.samestat(os.fstat(held), folder.stat()):
            raise InputError(f"{folder} vanished while it was written")
    finally:
        os.close(held)


@contextmanager
def _naming(output: Path, work: Path) -> Iterator[None]:
    """What the system says of writing inside becomes an InputError that names the output. What it
    says of other files, which are read, stays."""
    try:
        yield
    except OSError as error:
        names = [Path(n) for n in (error.filename, error.filename2) if isinstance(n, str | Path)]
        if error.errno in OF_DISKS or any(n.is_relative_to(work) or n == output for n in names):
            raise _refusal(output, error) from error
        raise


def _refusal(output: Path, error: Exception) -> InputError:
    number = _number(output, error)
    why = str(error) if number is None else os.strerror(number)
    what = OF_DISKS.get(number or 0)
    return InputError(f"{output} cannot be written: {why}" + (f"; {what}" if what else ""))


def _number(output: Path, error: Exception) -> int | None:
    """The system's for what went wrong."""
    if isinstance(error, OSError):
        return error.errno
    if found := NUMBER.search(str(error)):
        return int(found[1])
    if not ARCHIVE.search(str(error)):
        return None
    there = next(folder for folder in (output, *output.resolve().parents) if folder.exists())
    if shutil.disk_usage(there).free < FULL:
        return errno.ENOSPC
    if resource is None or resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY:
        return None
    return errno.EFBIG


def _open_permissions(folder: Path) -> None:
    """safetensors writes private files; the user's umask says what is wanted."""
    umask = _umask()
    for file in folder.glob("*.safetensors"):
        file.chmod(0o666 & ~umask)


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask
