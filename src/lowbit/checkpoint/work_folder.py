"""The hidden folder beside an output that is being written.

    .OUT.lowbit/      there while a run writes OUT, and after that run was killed
        owner.txt     says so; the run holds a lock on it as long as it lives
        new           what becomes OUT, a file or a folder
        old           what OUT was, between the two renames that replace it

The name follows from that of the output, and no two outputs have the same. A run finds what a
killed run of its output left there, puts an old output back that nothing replaced, and removes the
rest. It touches a folder only if nothing else is in it and its owner.txt is what lowbit writes.
"""

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path

from lowbit.errors import InputError, UsageError

try:
    import fcntl
except ImportError:  # Windows: runs cannot be told apart there
    fcntl = None  # type: ignore[assignment]

OWNER, NEW, OLD = "owner.txt", "new", "old"
SUFFIX = ".lowbit"
LONGEST_NAME = 255  # bytes, on every common file system

# Outputs that this thread claims, with its process: a fork has what its parent had.
_HELD: ContextVar[frozenset[tuple[int, Path]]] = ContextVar("outputs", default=frozenset())


@contextmanager
def claimed(output: Path) -> Iterator[Path]:
    """The work folder of `output`, which no other run can write meanwhile; it is removed at the
    end. Inside, the same thread may claim the same output again.

    Raises UsageError at once if another run writes `output` or the folder is not lowbit's,
    InputError if it cannot be made.
    """
    output = output.resolve()
    work = work_folder(output)
    own = os.getpid(), output
    if own in _HELD.get():
        try:
            yield work
        finally:
            _settle(work, output)
        return
    made = _make_parents(output.parent)
    held = _HELD.set(_HELD.get() | {own})
    lock = _Lock()
    try:
        _take(work, output, lock)
        _settle(work, output)
        yield work
    finally:
        _HELD.reset(held)
        try:
            _give_back(work, output, lock)
        except BaseException:  # a signal: once more, so that nothing is left
            _give_back(work, output, lock)
            raise
        finally:
            for parent in reversed(made):
                with suppress(OSError):
                    parent.rmdir()  # only if nothing was put there


def recover(output: Path) -> None:
    """Undo what a killed run of `output` left. Raises as `claimed` does."""
    output = output.resolve()
    if work_folder(output).is_dir() and (os.getpid(), output) not in _HELD.get():
        with claimed(output):
            pass


def tidy(folder: Path) -> None:
    """The same for all outputs in a folder."""
    for work in sorted(folder.glob(f".*{SUFFIX}")):
        name = work.name[1 : -len(SUFFIX)]
        if work.is_dir() and _is_ours(work, _text(name)):
            recover(folder / name)


def work_folder(output: Path) -> Path:
    """Where a run keeps what is to become `output`. Raises UsageError for the root of all."""
    if not output.name:
        raise UsageError(f"output {output} has no folder beside it to be written in")
    name = f".{output.name}{SUFFIX}"
    if len(os.fsencode(name)) > LONGEST_NAME:
        name = f".{hashlib.sha256(os.fsencode(output.name)).hexdigest()}{SUFFIX}"
    return output.with_name(name)


def output_of(path: Path) -> Path:
    """The output that this thread writes by what is at `path`: one inside its work folder is on its
    way to become it."""
    inside = path.resolve()
    held = (output for _, output in _HELD.get())
    return next((out for out in held if inside.is_relative_to(work_folder(out))), path)


def replace(work: Path, output: Path) -> None:
    """Let what is in NEW take the place of `output`, file or folder."""
    new = work / NEW
    if output.is_dir() and new.is_dir():
        # Two renames: at every moment either the old or the new folder is whole.
        output.rename(work / OLD)
        new.rename(output)
    else:
        new.replace(output)


def _text(name: str) -> str:
    return (
        f"lowbit writes {name!r} of the folder above. If no run does so any more, it was killed:"
        f" the next run that writes {name!r} removes this folder.\n"
    )


def _make_parents(folder: Path) -> list[Path]:
    """The folders that were not there before, the outermost first."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be created: {error.strerror}") from error
    return missing[::-1]


@dataclass
class _Lock:
    """An open file that holds the lock once that is `sure`: a signal may come before."""

    files: list[int] = field(default_factory=list)
    sure: bool = False

    def close(self) -> None:
        self.sure = False
        while self.files:
            os.close(self.files.pop())


def _take(work: Path, output: Path, lock: _Lock) -> None:
    """Make the work folder, and hold the lock of its OWNER."""
    text = _text(output.name)
    try:
        # Once more whenever the run that held the lock removes the folder at the same moment.
        while not lock.sure:
            lock.close()
            with suppress(FileExistsError):
                work.mkdir()
            if work.is_symlink() or not _is_ours(work, text):
                raise UsageError(
                    f"{work} is in the way: lowbit keeps unfinished output there, but did not"
                    " write this folder; move it away"
                )
            with suppress(FileNotFoundError):
                _hold(work / OWNER, output, lock)
        (file,) = lock.files
        os.ftruncate(file, 0)
        os.write(file, text.encode(errors="surrogateescape"))
    except OSError as error:
        raise InputError(f"{output.parent} cannot be written: {error.strerror}") from error


def _hold(file: Path, output: Path, lock: _Lock) -> None:
    """Lock the file, unless it was removed meanwhile. Raises UsageError if another run has the
    lock."""
    lock.files.append(os.open(file, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666))
    try:
        if fcntl is not None:
            fcntl.flock(lock.files[0], fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UsageError(
            f"another run writes {output}: wait until it ends, or name another output"
        ) from None
    except OSError:
        pass  # a file system without locks: runs cannot be told apart
    lock.sure = os.path.samestat(os.fstat(lock.files[0]), file.stat())


def _is_ours(work: Path, text: str) -> bool:
    """Whether lowbit made the folder, or nothing is in it. A run that is killed early leaves a part
    of the text."""
    try:
        inside = set(os.listdir(work))
        owner = (work / OWNER).read_bytes() if OWNER in inside else None
    except FileNotFoundError:  # removed at this moment
        return True
    except NotADirectoryError:
        return False
    if owner is None:
        return not inside
    return inside <= {OWNER, NEW, OLD} and text.encode(errors="surrogateescape").startswith(owner)


def _settle(work: Path, output: Path) -> None:
    """Put the old output back if nothing took its place, and remove what is left. Raises InputError
    if it cannot be put back; then it stays."""
    old = work / OLD
    if os.path.lexists(old) and not os.path.lexists(output):
        try:
            old.rename(output)
        except OSError as error:
            raise InputError(
                f"{output} could not be restored: {error.strerror}; it is kept in {old}"
            ) from error
    for left in (work / NEW, old):
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left, ignore_errors=True)
        else:
            with suppress(OSError):
                left.unlink(missing_ok=True)


def _give_back(work: Path, output: Path, lock: _Lock) -> None:
    """Remove the work folder, if it is this run's or no run's."""
    try:
        if not lock.sure:
            lock.close()
            if not work.is_dir():
                return
            with suppress(UsageError, InputError):
                _take(work, output, lock)
        if lock.sure:
            _settle(work, output)
            with suppress(OSError):
                (work / OWNER).unlink(missing_ok=True)
                work.rmdir()
    finally:
        lock.close()
