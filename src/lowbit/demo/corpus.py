"""A text that every Python carries: the documentation of its own standard library.

A document is the docstrings of one source file, or one topic of the built-in help. Files are
parsed, never imported. No docstring comes twice, and every 60th file is held out.
"""

import ast
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lowbit.errors import InputError
from lowbit.progress import tracked

HELD_OUT = 60
TESTS = {"test", "tests", "idle_test"}
TOPICS = "pydoc_data/topics.py"
# Less than this does not train a language model, however small.
FEWEST_CHARACTERS = 20_000


@dataclass(frozen=True)
class Corpus:
    """Documents to train on, and documents of other files to measure on."""

    train: tuple[str, ...]
    held_out: tuple[str, ...]


def documentation(limit: int | None = None, progress: bool = True) -> Corpus:
    """The documentation of the running interpreter, the first `limit` characters of it.

    progress: show a bar if it takes more than two seconds.

    Raises InputError where this Python has no source files to read it from.
    """
    folder = Path(sysconfig.get_path("stdlib"))
    train: list[str] = []
    held_out: list[str] = []
    size = 0
    for number, (is_topic, document) in enumerate(_documents(folder, progress)):
        (held_out if number % HELD_OUT == 0 and not is_topic else train).append(document)
        size += len(document)
        if limit is not None and size >= limit:
            break
    if size < FEWEST_CHARACTERS or not held_out:
        raise InputError(
            f"this Python's library in {folder} has {size} characters of documentation;"
            f" the demo needs {FEWEST_CHARACTERS}"
        )
    return Corpus(tuple(train), tuple(held_out))


def _documents(folder: Path, progress: bool) -> Iterator[tuple[bool, str]]:
    """(whether it is a help topic, text), in the order of the file names."""
    seen: set[str] = set()
    files = [file for file in sorted(folder.rglob("*.py")) if _belongs(file.relative_to(folder))]
    for file in tracked(files, "reading documentation", "file", progress):
        try:
            tree = ast.parse(file.read_bytes())
        except (SyntaxError, ValueError):
            # Templates, and samples of another Python.
            continue
        if file == folder / TOPICS:
            yield from ((True, text) for text in _topics(tree))
            continue
        texts = [text for text in dict.fromkeys(_docstrings(tree)) if text not in seen]
        seen.update(texts)
        if texts:
            yield False, "\n\n".join(texts)


def _belongs(path: Path) -> bool:
    """Whether this file of the library's folder is of a module of the library, and no test."""
    module = path.parts[0].removesuffix(".py")
    return module in sys.stdlib_module_names and not TESTS.intersection(path.parts)


def _docstrings(node: ast.AST) -> Iterator[str]:
    """Those of a module, its classes and its functions, as written from top to bottom."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        text = ast.get_docstring(node)
        if text:
            yield text
        for child in node.body:
            yield from _docstrings(child)


def _topics(tree: ast.Module) -> Iterator[str]:
    """The values of `topics = {name: text, …}`."""
    for statement in tree.body:
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Dict):
            yield from ast.literal_eval(statement.value).values()
