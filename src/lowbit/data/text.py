"""One long text: a file, all .txt files of a folder, or a dataset of the hub."""

from dataclasses import dataclass
from pathlib import Path

from lowbit.data import hf_datasets as hub
from lowbit.data.lines import read_text
from lowbit.errors import InputError


@dataclass(frozen=True)
class TextData:
    source: str
    text: str


def read(data: str | Path, split: str = "test", column: str = "text") -> TextData:
    """The text at a path, or of a dataset of the hub.

    data: a file; a folder, whose .txt files are joined by a line end in the order of their names;
    or the hub's `name` or `name:configuration`, whose rows are joined by an empty line, as Hugging
    Face's guide to perplexity joins WikiText's. split, column: of a dataset.

    Raises InputError.
    """
    path = Path(data)
    if path.is_dir():
        files = sorted(file for file in path.glob("*.txt") if file.is_file())
        if not files:
            raise InputError(f"{data} holds no .txt files")
        return TextData(str(data), "\n".join(map(read_text, files)))
    if path.exists() or not hub.may_have(str(data)):
        return TextData(str(data), read_text(path))
    return _from_hub(str(data), split, column)


def _from_hub(data: str, split: str, column: str) -> TextData:
    name, _, configuration = data.partition(":")
    try:
        rows = hub.load(name, configuration or None, split)
    except InputError as error:
        raise InputError(f"there is no file {data}, and {error}") from error
    if column not in rows[0]:
        raise InputError(f"{data} of the hub has no column {column!r}; it has {', '.join(rows[0])}")
    text = "\n\n".join(str(row[column]) for row in rows)
    if not text.strip():
        raise InputError(f"column {column!r} of {data} {split} is empty")
    return TextData(f"{data} {split}", text)
