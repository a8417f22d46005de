"""Sentences and their translations.

    one file    source TAB target [TAB …]      a pair a line, as Tatoeba has it
    two files   test.de, test.en               line n of one is line n of the other, as WMT has it
    the hub     owner/dataset[:configuration]  columns in their order, through `datasets`

Empty lines and empty cells are sentences too, the empty ones.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lowbit.data import hf_datasets as hub
from lowbit.data.lines import read_lines
from lowbit.errors import InputError, UsageError


@dataclass(frozen=True)
class ParallelData:
    """As many targets as sources."""

    source: str
    sources: tuple[str, ...]
    targets: tuple[str, ...]


def read(
    data: str | Path,
    target: str | Path | None = None,
    source_column: int = 1,
    target_column: int | None = None,
    split: str = "test",
) -> ParallelData:
    """All pairs of a TSV file, or of two files of lines where `target` names the second.

    data: a file, a folder that holds the split's, such as test.tsv, or the id of a hub's dataset.
    source_column, target_column: of a TSV or a dataset, counted from 1; the target's is by
    default the other of the first two.

    Raises UsageError for columns that cannot be, InputError for files that cannot be used.
    """
    if target is not None:
        return _from_lines(Path(data), Path(target))
    if target_column is None:
        target_column = 1 if source_column == 2 else 2
    if min(source_column, target_column) < 1 or source_column == target_column:
        raise UsageError(
            f"columns {source_column} and {target_column} must be two different numbers from 1 on"
        )
    file = Path(data)
    if file.is_dir():
        file = file / f"{split}.tsv"
        if not file.is_file():
            raise InputError(
                f"{data} holds no {split}.tsv; if source and target are two files, name the"
                " first as data and the second as target"
            )
    if not file.exists() and hub.may_have(str(data)):
        return _from_hub(str(data), source_column, target_column, split)
    return _from_tsv(file, source_column, target_column)


def _from_hub(data: str, source_column: int, target_column: int, split: str) -> ParallelData:
    name, _, configuration = data.partition(":")
    # What files call valid, the hub calls validation.
    try:
        rows = hub.load(name, configuration or None, "validation" if split == "valid" else split)
    except InputError as error:
        raise InputError(f"there is no file {data}, and {error}") from error
    # WMT's texts are one level down, by language.
    pairs = [row.get("translation", row) for row in rows]
    # A cell may be empty: a column is one of text if any of its cells is.
    columns = [name for name in pairs[0] if any(isinstance(pair[name], str) for pair in pairs)]
    most = max(source_column, target_column)
    if len(columns) < most:
        raise InputError(
            f"the hub's dataset {data} has {len(columns)} columns of text, and column {most} is"
            " needed"
        )
    sources, targets = (
        _texts(pairs, columns[column - 1], data) for column in (source_column, target_column)
    )
    return ParallelData(f"{data}, {split}", sources, targets)


def _texts(pairs: Sequence[Mapping[str, Any]], column: str, data: str) -> tuple[str, ...]:
    for number, pair in enumerate(pairs, 1):
        if not isinstance(pair[column], str):
            raise InputError(
                f"the hub's dataset {data}, row {number}: {column} is {pair[column]!r} and no text"
            )
    return tuple(pair[column] for pair in pairs)


def _from_tsv(file: Path, source_column: int, target_column: int) -> ParallelData:
    sources, targets = [], []
    most = max(source_column, target_column)
    for number, line in enumerate(read_lines(file), 1):
        cells = line.split("\t")
        if len(cells) < most:
            plural = "s" * (len(cells) != 1)
            raise InputError(
                f"{file}, line {number}: {len(cells)} column{plural}, and column {most} is needed"
            )
        sources.append(cells[source_column - 1])
        targets.append(cells[target_column - 1])
    return ParallelData(str(file), tuple(sources), tuple(targets))


def _from_lines(source_file: Path, target_file: Path) -> ParallelData:
    sources, targets = read_lines(source_file), read_lines(target_file)
    if len(sources) != len(targets):
        raise InputError(
            f"{source_file} has {len(sources)} lines and {target_file} has {len(targets)}; each"
            " line is the translation of the other's"
        )
    return ParallelData(f"{source_file} → {target_file}", tuple(sources), tuple(targets))
