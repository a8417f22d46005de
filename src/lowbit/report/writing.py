"""A report on the disk: the ending of a file's name decides its form, and it appears whole."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path

from lowbit.checkpoint.atomic_write import check_file, staged_file
from lowbit.errors import UsageError
from lowbit.evaluation.study import Study
from lowbit.report.page import render_html, render_markdown


def check_paths(paths: Iterable[Path]) -> None:
    """Raises UsageError where a report cannot be written to one of them: asked before the work."""
    for path in paths:
        if path.suffix.lower() not in FORMS:
            raise UsageError(f"a report ends in {', '.join(FORMS)}, and {path} does not")
        check_file(path, overwrite=True)


def write(study: Study, paths: Iterable[Path]) -> None:
    """Each file in the form of its ending. Raises UsageError as `check_paths` does, and InputError
    where a file cannot be written."""
    paths = list(paths)
    check_paths(paths)
    forms = {suffix: FORMS[suffix](study) for suffix in {path.suffix.lower() for path in paths}}
    for path in paths:
        with staged_file(path) as unfinished:
            unfinished.write_text(forms[path.suffix.lower()], encoding="utf-8", newline="\n")


def _json(study: Study) -> str:
    # Escaped, so that even half a surrogate pair comes back as it was.
    return json.dumps(study.to_dict(), indent=1, allow_nan=False) + "\n"


FORMS: dict[str, Callable[[Study], str]] = {
    ".html": render_html,
    ".md": render_markdown,
    ".json": _json,
}
