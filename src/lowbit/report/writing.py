"""A report on the disk: the ending of a file's name decides its form, and it appears whole."""

import json
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from lowbit.errors import InputError, UsageError
from lowbit.evaluation.study import Study
from lowbit.report.page import render_html, render_markdown


def check_paths(paths: Iterable[Path]) -> None:
    """Raises UsageError where a report cannot be written to one of them: asked before the work."""
    for path in paths:
        if path.suffix.lower() not in FORMS:
            raise UsageError(f"a report ends in {', '.join(FORMS)}, and {path} does not")
        if path.is_dir():
            raise UsageError(f"the report {path} would replace a folder")
        if not path.parent.is_dir():
            raise UsageError(f"the report {path} has no folder to go into")


def write(study: Study, paths: Iterable[Path]) -> None:
    """Each file in the form of its ending. Raises UsageError as `check_paths` does, and InputError
    where a file cannot be written."""
    paths = list(paths)
    check_paths(paths)
    forms = {suffix: FORMS[suffix](study) for suffix in {path.suffix.lower() for path in paths}}
    for path in paths:
        _replace(path, forms[path.suffix.lower()])


def _json(study: Study) -> str:
    # Escaped, so that even half a surrogate pair comes back as it was.
    return json.dumps(study.to_dict(), indent=1, allow_nan=False) + "\n"


FORMS: dict[str, Callable[[Study], str]] = {
    ".html": render_html,
    ".md": render_markdown,
    ".json": _json,
}


def _replace(path: Path, text: str) -> None:
    """Written beside and renamed in one step: the old file or the new one, never half of one."""
    beside: Path | None = None
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name[:64]}.", dir=path.parent)
        beside = Path(name)
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
        umask = os.umask(0)
        os.umask(umask)
        beside.chmod(0o666 & ~umask)
        beside.replace(path)
    except OSError as error:
        raise InputError(f"the report {path} cannot be written: {error.strerror}") from error
    finally:
        if beside is not None:
            beside.unlink(missing_ok=True)
